"""The arguments of a comparison, checked together: names, budget, numbers, settings."""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from thinkers import registry
from thinkers.checks import check_int
from thinkers.comparison.contenders import model_of
from thinkers.comparison.matching import BEGIN, CONTROLS, problems_of_flags
from thinkers.config.experiment import PLANNED
from thinkers.data.sources import absolute_path
from thinkers.errors import nearest, usage_error
from thinkers.models import MODELS
from thinkers.problems import Collector
from thinkers.tasks import TASKS
from thinkers.user_paths import user_path

DEFAULTS: dict[str, float] = {"flops": 2e12, "parameters": 1000, "seconds": 60}
"""{quantity that is equal in all runs, besides size: its default budget}."""
TIMES = {"s": 1, "sec": 1, "min": 60, "h": 3600}
COUNTS = {"flops": "flops", "updates": "parameters", "update": "parameters"}
"""{unit of a budget: the quantity that is then equal beside the size}; times are seconds."""
MOST_SEEDS = 10_000
UNIT_OF = {"flops": "FLOPs", "parameters": "updates", "seconds": "s, min or h"}
"""{quantity: the unit of its budget, for errors}."""
RESERVED = (
    *("num_updates", "max_flops", "max_minutes", "seed", "lr", "warmup_updates"),
    *("evaluate_every", "evaluate_examples", "checkpoint_every", "keep_last"),
)
"""Training settings that the comparison chooses."""


def check_arguments(
    task: Any,
    models: Sequence[str],
    match: str | None,
    budget: str | float | None,
    seeds: int | None,
    lrs: Sequence[float],
    controls: Sequence[str],
    settings: Mapping[str, Any],
    num_examples: int | None,
) -> dict[str, Any]:
    """Return the arguments of a comparison, checked, with defaults in the place of None.

    Raises:
        UsageError: Arguments, or settings of the models, are invalid: all of them are named.
    """
    _check_types(models, match, lrs, controls, settings)
    problems = Collector()
    with problems:
        _known("task", task, TASKS)
    with problems:
        _several("models", models, MODELS)
    with problems:
        if not models:
            names = ", ".join(list(MODELS)[:3])
            raise usage_error("no models", f"names such as {names}", "add --models")
    are_known = not problems.found
    with problems:
        _several("controls", controls, CONTROLS)
    with problems:
        match, amount = _budget(match, budget)
    for name, value, most in (("seeds", seeds, MOST_SEEDS), ("num_examples", num_examples, None)):
        with problems:
            if value is not None:
                check_int(name, value, 1, most)
    for lr in lrs:
        with problems:
            if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
                raise usage_error(f"--lrs {lr}", "learning rates above 0", "change --lrs")
    chosen = {}
    for key, value in sorted(settings.items()):
        with problems:
            _check_setting(key)
            chosen[key] = setting_text(key, value)
    if problems.found and are_known and BEGIN not in chosen:
        flags = [f"--{key}={value}" for key, value in chosen.items()]
        problems.found += problems_of_flags(task, models, flags)
    problems.raise_all()
    assert match is not None
    return {
        "task": task,
        "models": tuple(models),
        "match": match,
        "budget": amount,
        "seeds": 3 if seeds is None else seeds,
        "lrs": tuple(float(lr) for lr in lrs),
        "controls": tuple(controls),
        "settings": chosen,
        "num_examples": 2000 if num_examples is None else num_examples,
    }


def _check_types(models: Any, match: Any, lrs: Any, controls: Any, settings: Any) -> None:
    problems = Collector()
    for name, given in (("models", models), ("lrs", lrs), ("controls", controls)):
        with problems:
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise usage_error(f"{name} {given!r}", "a list", f"change {name}")
    with problems:
        if not isinstance(settings, Mapping):
            raise usage_error(f"settings {settings!r}", "a dict, by setting", "change settings")
    with problems:
        if not isinstance(match, str | None):
            raise usage_error(f"match {match!r}", f"one of {', '.join(DEFAULTS)}", "change match")
    problems.raise_all()
    registry.check(MODELS, "model")
    registry.check(TASKS, "task")


def _known(kind: str, name: Any, known: Any) -> None:
    if not isinstance(name, str) or name not in known:
        registry.check_extra(name)
        found = f"no {kind}" if name is None else f"unknown {kind} {name!r}"
        expected = nearest(str(name), known) if name is not None else ", ".join(known)
        raise usage_error(found, expected, f"choose from {', '.join(known)}")


def _several(kind: str, names: Sequence[str], known: Any) -> None:
    for name in names:
        own = model_of(name) if kind == "models" and isinstance(name, str) else name
        _known(kind.removesuffix("s"), own, known)
        if not re.fullmatch(r"[A-Za-z0-9._-]*[A-Za-z0-9_-]", own):
            raise usage_error(f"{kind} {name!r}", "letters, digits, . _ and -", "rename it")
        if kind == "models" and name in CONTROLS:
            raise usage_error(
                f"a model with the name {name!r}, which is that of a control",
                f"a name other than {', '.join(CONTROLS)}, since results are kept by name",
                f"register it by another: thinkers.MODELS[NAME] = {MODELS[name].__qualname__}",
            )
        if list(names).count(name) > 1:
            raise usage_error(f"--{kind} with {name} twice", "each once", f"change --{kind}")


def _check_setting(key: str) -> None:
    part, _, field = key.partition(".")
    if (part == "training" and field in RESERVED) or key in PLANNED:
        raise usage_error(
            f"--{key}", "a setting that the comparison does not choose", "see --budget and --lrs"
        )
    if key == "model.hidden":
        raise usage_error(
            f"--{key}", "another setting: the comparison chooses hidden", "set --model.dim"
        )


def _budget(match: str | None, budget: str | float | None) -> tuple[str, float]:
    """Return (quantity that is equal, amount); an amount with a unit of time is in seconds."""
    if match is not None and match not in DEFAULTS:
        raise usage_error(
            f"--match {match}", nearest(match, DEFAULTS), f"one of {', '.join(DEFAULTS)}"
        )
    if budget is None:
        chosen = match or "flops"
        return chosen, DEFAULTS[chosen]
    parts = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?) *([a-z]*)", str(budget).strip().lower())
    amount, unit = _number(parts[1]) if parts else None, parts[2] if parts else ""
    of_unit = {"": match or "flops", **dict.fromkeys(TIMES, "seconds"), **COUNTS}
    if amount is None or unit not in of_unit:
        raise usage_error(
            f"--budget {budget}",
            "a number above 0 and its unit: 2e13 or '2e13 FLOPs', '3000 updates', 90s, 5min or 2h",
            "change --budget",
        )
    chosen = match or of_unit[unit]
    if of_unit[unit] != chosen:
        raise usage_error(
            f"--budget {budget} with --match {chosen}",
            f"a budget in {UNIT_OF[chosen]}",
            f"give it in {UNIT_OF[chosen]}, or leave --match out",
        )
    amount *= TIMES.get(unit, 1)
    if chosen == "parameters" and amount != int(amount):
        raise usage_error(f"--budget {budget}", "an integer number of updates", "change --budget")
    return chosen, amount


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value > 0 else None


def setting_text(key: str, value: Any) -> str:
    """Return a setting as text; a path is absolute, the same from every working folder."""
    text = text_of(value)
    if key == BEGIN:
        return str(user_path(text, f"--{BEGIN}").absolute())
    if not (key.startswith("task.") and key.endswith("path")):
        return text
    place = absolute_path(text, f"--{key}")
    return str(Path(place).resolve()) if place.startswith("/") else place


def text_of(value: Any) -> str:
    """Return a setting as text: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
