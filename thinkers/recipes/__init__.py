"""RECIPES: functions that return tested configurations, and the measured scores of each."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thinkers.config.experiment import Config
from thinkers.errors import UsageError
from thinkers.recipes import arithmetic, babi, facts, numbers, star_graph, state_tracking, text
from thinkers.tasks.text import Text

RESULTS = Path(__file__).with_name("results.json")


def _named(name: str, recipe: Callable[[], Config]) -> Callable[[], Config]:
    @functools.cache
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
        "add/long": numbers.add_long,
        "copy/thinker": numbers.copy_thinker,
        "sort/thinker": numbers.sort_thinker,
        "multiply/thinker": numbers.multiply_thinker,
        "multiply/long": numbers.multiply_long,
        "multiply/direct": arithmetic.multiply_direct,
        "multiply/direct_decoder": arithmetic.multiply_direct_decoder,
        "multiply/looped": arithmetic.multiply_looped,
        "multiply/decoder": arithmetic.multiply_decoder,
        "multiply/free": arithmetic.multiply_free,
        "multiply/written": arithmetic.multiply_written,
        "multiply/written_decoder": arithmetic.multiply_written_decoder,
        "multiply/direct_3x3": arithmetic.large_direct,
        "multiply/direct_decoder_3x3": arithmetic.large_direct_decoder,
        "multiply/looped_3x3": arithmetic.large_looped,
        "multiply/decoder_3x3": arithmetic.large_decoder,
        "multiply/free_3x3": arithmetic.large_free,
        "multiply/written_3x3": arithmetic.large_written,
        "multiply/written_decoder_3x3": arithmetic.large_written_decoder,
        "arithmetic/direct": arithmetic.arithmetic_direct,
        "arithmetic/direct_decoder": arithmetic.arithmetic_direct_decoder,
        "arithmetic/looped": arithmetic.arithmetic_looped,
        "arithmetic/decoder": arithmetic.arithmetic_decoder,
        "arithmetic/free": arithmetic.arithmetic_free,
        "arithmetic/written": arithmetic.arithmetic_written,
        "arithmetic/written_decoder": arithmetic.arithmetic_written_decoder,
        "arithmetic/calculator": arithmetic.arithmetic_calculator,
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
        "babi_sections/thinker": facts.stories,
        "facts/thinker": facts.thinker,
        "facts_two_hops/thinker": facts.two_hops,
        "facts_levels/thinker": facts.levels,
        "cups/looped": state_tracking.cups_looped,
        "cups/halting": state_tracking.cups_halting,
        "cups/decoder": state_tracking.cups_decoder,
        "cups/deep_decoder": state_tracking.cups_deep_decoder,
        "cups/written": state_tracking.cups_written,
        "cups/thinker": state_tracking.cups_thinker,
        "cups/thoughtsformer": state_tracking.cups_thoughtsformer,
        "automaton/looped": state_tracking.automaton_looped,
        "automaton/decoder": state_tracking.automaton_decoder,
        "automaton/deep_decoder": state_tracking.automaton_deep_decoder,
        "links/looped": state_tracking.links_looped,
        "links/halting": state_tracking.links_halting,
        "mixed/thinker": state_tracking.mixed_thinker,
        "links/decoder": state_tracking.links_decoder,
        "lookup/looped": state_tracking.lookup_looped,
    }.items()
}


def needs_gpu(name: str) -> bool:
    """Return True if a recipe is meant for a GPU: its device is cuda."""
    return RECIPES[name]().training.device == "cuda"


def needs_text(name: str) -> bool:
    """Return True if a recipe trains on a text that must be named by --task.path."""
    return isinstance(RECIPES[name]().task, Text.Config)


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that a measurement is valid for: all but the seed."""
    settings = config.to_dict()
    del settings["training"]["seed"]
    return settings


def results() -> dict[str, Any]:
    """Return the measurements of benchmarks/recipes.py whose recipes have not changed since."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: entry for name, entry in found.items() if _is_current(name, entry["settings"])}


def _is_current(name: str, settings: Mapping[str, Any]) -> bool:
    """Return True if a recipe still has these settings; a new field counts as its default."""
    try:
        measured = settings_of(Config.from_dict(settings))
    except UsageError:
        return False
    return name in RECIPES and measured == settings_of(RECIPES[name]())


def score(name: str, found: Mapping[str, Any] | None = None) -> str:
    """Describe the measured score: mean and standard deviation over seeds, minutes of a seed."""
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
