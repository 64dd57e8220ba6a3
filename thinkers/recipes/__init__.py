"""RECIPES: functions that return a Config known to work, and what was measured of each."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thinkers.config.experiment import Config
from thinkers.errors import UsageError
from thinkers.recipes import babi, numbers, star_graph, text
from thinkers.tasks.text import Text

RESULTS = Path(__file__).with_name("results.json")


def _named(name: str, recipe: Callable[[], Config]) -> Callable[[], Config]:
    def named() -> Config:
        return dataclasses.replace(recipe(), recipe=name)

    named.__doc__ = recipe.__doc__
    return named


RECIPES: dict[str, Callable[[], Config]] = {
    name: _named(name, recipe)
    for name, recipe in {
        "add/decoder": numbers.add_decoder,
        "add/looped": numbers.add_looped,
        "add/thinker": numbers.add_thinker,
        "add/thoughtsformer": numbers.add_thoughtsformer,
        "add/reasoning_tokens": numbers.add_reasoning_tokens,
        "add/deepsight": numbers.add_deepsight,
        "copy/thinker": numbers.copy_thinker,
        "sort/thinker": numbers.sort_thinker,
        "arithmetic/looped": numbers.arithmetic_looped,
        "multiply/thinker": numbers.multiply_thinker,
        "factorise/thinker": numbers.factorise_thinker,
        "shakespeare/decoder": text.decoder,
        "shakespeare/looped": text.looped,
        "shakespeare/thoughtsformer": text.thoughtsformer,
        "shakespeare/reasoning_tokens": text.reasoning_tokens,
        "shakespeare/deepsight": text.deepsight,
        "shakespeare/thinker": text.thinker,
        "shakespeare/decoder_gpu": text.decoder_gpu,
        "star_graph/decoder": star_graph.decoder,
        "star_graph/deepsight": star_graph.deepsight,
        "babi/looped": babi.looped,
        "babi/thoughtsformer": babi.thoughtsformer,
        "babi/thinker": babi.thinker,
    }.items()
}


def needs_gpu(name: str) -> bool:
    """Whether a recipe is meant for a GPU: then its device is one."""
    return RECIPES[name]().training.device == "cuda"


def needs_text(name: str) -> bool:
    """Whether a recipe learns from a text that is to be named."""
    return isinstance(RECIPES[name]().task, Text.Config)


def settings_of(config: Config) -> dict[str, Any]:
    """What a measurement holds for: everything but the seed."""
    found = config.to_dict()
    del found["training"]["seed"]
    return found


def results() -> dict[str, Any]:
    """{recipe: what benchmarks/recipes.py found}, of those measured with the settings of today."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: entry for name, entry in found.items() if _is_of_today(name, entry["settings"])}


def _is_of_today(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a recipe still has these settings; one added since then had its default."""
    try:
        measured = settings_of(Config.from_dict(settings))
    except UsageError:
        return False
    return name in RECIPES and measured == settings_of(RECIPES[name]())


def score(name: str, found: Mapping[str, Any] | None = None) -> str:
    """The measured score of a recipe in a few words: mean, deviation over seeds, minutes."""
    entry = (results() if found is None else found).get(name)
    if not entry:
        return "not measured, needs a GPU" if needs_gpu(name) else "not measured"
    seeds = list(entry["seeds"].values())
    values = [seed["scores"][entry["primary_metric"]] for seed in seeds]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    times = [seed["cpu_minutes"] for seed in seeds if seed["cpu_minutes"] is not None]
    times = times or [seed["minutes"] for seed in seeds]
    many = f"{len(values)} seeds" if len(values) > 1 else "1 seed"
    mean = statistics.mean(values)
    minutes = f"{statistics.mean(times):.1f} minutes"
    return f"{entry['primary_metric']} {mean:.3f}{spread} ({many}, {minutes})"
