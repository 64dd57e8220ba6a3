"""Tables of docs/ that show what benchmarks measured, from the JSON beside each page."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def cups() -> str:
    """The results of benchmarks/state_tracking.py on cups, by the number of swaps."""
    return _state_tracking("cups", {f"{n} swaps": f"{n}" for n in (4, 8, 12, 16, 24)})


def automaton() -> str:
    return _state_tracking(
        "automaton", {f"{n} update{'s' * (n > 1)}": f"{n}" for n in (1, 2, 4, 8, 12, 16)}
    )


def links() -> str:
    columns = {f"{n} links, {n} steps": f"{n}" for n in (4, 8, 12)}
    columns |= {f"{n} links, 12 steps": f"{n} at 12 steps" for n in (4, 8, 12)}
    return _state_tracking("links", columns)


def _state_tracking(task: str, columns: dict[str, str]) -> str:
    """A row for each model: parameters, FLOPs, minutes, and scores over seeds."""
    found = json.loads((ROOT / "docs" / "state_tracking.json").read_text())
    rows = []
    for name, seeds in found.items():
        if name.partition("/")[0] != task:
            continue
        first, runs = seeds["0"], list(seeds.values())
        minutes = statistics.mean(run["cpu_minutes"] for run in runs if not run["resumed"])
        row = [f"`{name}`", f"{first['parameters']:,}", f"{first['flops']:.2g}", str(len(runs))]
        for key in columns.values():
            values = [run["scores"][key] for run in runs]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            row.append(f"{statistics.mean(values):.4f}{spread}")
        rows.append([*row, f"{minutes:.1f}"])
    return table(["model", "parameters", "FLOPs", "seeds", *columns, "CPU minutes"], rows)


def long_sums() -> str:
    """The results of benchmarks/long_addition.py on sums, by seed."""
    sizes = {f"{n} digits": f"{n}" for n in (10, 20, 100, 300, 1000)}
    columns = sizes | {"300 digits, all with long carries": "long carries"}
    return _by_seed(("add/long", "without window", "without coupling", "tied head"), columns)


def long_products() -> str:
    return _by_seed(("multiply/long",), {f"{n} x 2 digits": f"{n}" for n in (10, 20, 40)})


def window_cache() -> str:
    """What the trained models of add/long do with sums of nines, and with a cache."""
    rows = []
    for seed, run in _long_addition().get("add/long", {}).items():
        right = ["right" if x else "wrong" for x in run["named"].values()]
        cache = run["cache"]
        slots = "; ".join(map(str, cache["slots"]))
        rows.append([seed, *right, f"{cache['difference']:.1e}", slots])
    columns = ["seed", *(f"300 digits: {name}" for name in ("9..9 + 9..9", "9..9 + 1", "1 + 9..9"))]
    return table([*columns, "cached - uncached", "keys: after the prompt; most; at the end"], rows)


def _long_addition() -> dict:
    return json.loads((ROOT / "docs" / "long_addition.json").read_text())


def _by_seed(names: tuple[str, ...], columns: dict[str, str]) -> str:
    """A row for each case: its parameters, minutes, and the scores of each seed."""
    rows = []
    for name in names:
        runs = list(_long_addition().get(name, {}).values())
        if not runs:
            rows.append([name, "not measured", *[""] * (len(columns) + 2)])
            continue
        minutes = [run["cpu_minutes"] for run in runs if not run["resumed"]]
        row = [name, f"{runs[0]['parameters']:,}", str(len(runs))]
        for key in columns.values():
            scores = [f"{run['scores'][key]:.4g}" for run in runs if key in run["scores"]]
            row.append(", ".join(scores) or "-")
        rows.append([*row, ", ".join(f"{x:.1f}" for x in minutes)])
    return table(["case", "parameters", "seeds", *columns, "CPU minutes"], rows)


def _halting() -> dict:
    """{case: {seed: result}} of benchmarks/halting.py."""
    return json.loads((ROOT / "docs" / "halting.json").read_text())


def _mean(values: list[float], digits: int = 4) -> str:
    """The mean, and with several values their standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _points(name: str, seeds: dict, place: str, scores: list[str]) -> list[str]:
    """Scores without and with halting, then mean steps and FLOPs of halting, over seeds."""
    points = [seed["points"][place] for seed in seeds.values()]
    row = [
        _mean([p[way][score] for p in points]) for way in ("fixed", "halting") for score in scores
    ]
    costs = [_mean([p["halting"][key] for p in points], 2) for key in ("steps", "flops")]
    return [f"`{name}`", str(len(points)), *row, *costs]


def halting_cups() -> str:
    """The results of benchmarks/halting.py on cups."""
    found, rows = _halting(), []
    for name in (name for name in found if name.startswith("cups/")):
        for place in next(iter(found[name].values()))["points"]:
            row = _points(name, found[name], place, ["last", "tokens"])
            rows.append([row[0], place, *row[1:]])
    ways = [f"{score}, {way}" for way in ("fixed steps", "halting") for score in ("last", "all")]
    return table(["model", "swaps", "seeds", *ways, "mean steps", "share of FLOPs"], rows)


def halting_links() -> str:
    rows = []
    for name, seeds in _halting().items():
        if not name.startswith("links/"):
            continue
        for key, way in (("fixed", "12 steps"), ("halting", "first answer")):
            points = [seed["points"]["all"][key] for seed in seeds.values()]
            equal = _mean([seed["steps_equal_depth"] for seed in seeds.values()])
            row = [f"`{name}`", way, str(len(points)), _mean([p["tokens"] for p in points])]
            rows.append([*row, _mean([p["steps"] for p in points], 2)])
            rows[-1].append(equal if key == "halting" else "-")
    columns = ["model", "stops at", "seeds", "right answers", "mean steps", "steps equal the depth"]
    return table(columns, rows)


def halting_others() -> str:
    found, rows = _halting(), []
    for name in ("add/halting", "arithmetic/halting", "shakespeare/halting"):
        if name not in found:
            rows.append([f"`{name}`", "not measured", *["-"] * 4])
            continue
        score = "loss" if name.startswith("shakespeare") else "rows"
        rows.append(_points(name, found[name], "all", [score]))
    return table(["model", "seeds", "fixed steps", "halting", "mean steps", "share of FLOPs"], rows)


def halting_guard() -> str:
    rows = []
    for name, seeds in _halting().items():
        guards = [seed["guard"] for seed in seeds.values() if "guard" in seed]
        for way in ("fixed", "halting") if guards else ():
            scores = [_mean([g[n][way]["rows"] for g in guards]) for n in ("1x", "2x", "4x")]
            rows.append([f"`{name}`", way, str(len(guards)), *scores])
    return table(["model", "steps", "seeds", "1x", "2x", "4x"], rows)


def halting_clock() -> str:
    rows = []
    for seed, run in _halting().get("cups/halting", {}).items():
        found = run["clock"]
        scores = [f"{found[way]:.4f}" for way in ("fixed", "halting")]
        rows.append([seed, *scores, f"{found['times faster']:.2f}"])
    return table(["seed", "right at 16 steps", "right halting", "times faster"], rows)


def _policy() -> dict:
    """{case: {seed: result}} of benchmarks/policy.py."""
    return json.loads((ROOT / "docs" / "policy.json").read_text())


def policy_scores() -> str:
    """The results of benchmarks/policy.py: the policy and its controls, by seed."""
    rows, shuffled_rows = [], []
    for name, what in (
        ("policy", "policy"),
        ("free", "`cost_weight` 0, `entropy` 0"),
        ("quotient", "reward g C_max / C"),
    ):
        for seed, run in _policy().get(name, {}).items():
            rows.append([what, seed, *_policy_row(run), f"{run['minutes']:.1f}"])
            if shuffled := run.get("shuffled"):
                known = {**run, **shuffled}
                what_else = "policy, its inputs shuffled"
                shuffled_rows.append([what_else, seed, *_policy_row(known), "-"])
        if name not in _policy():
            rows.append([what, "not measured", *["-"] * 6])
    columns = [
        "exact",
        "mean blocks",
        "best fixed schedule",
        "difference",
        "FLOPs saved, of the best fixed",
    ]
    return table(["case", "seed", *columns, "CPU minutes"], rows + shuffled_rows)


def _policy_row(run: dict) -> list[str]:
    of, best = run["best_fixed"]
    mean, low, high = run["difference"]
    number = sum(kind["questions"] for kind in run["by_kind"])
    blocks = sum(k["questions"] * k["mean_blocks"] for k in run["by_kind"]) / number
    return [
        f"{run['exact']:.4f}",
        f"{blocks:.2f}",
        f"{best} steps ({of}), {run['fixed'][of][best - 1]:.4f}",
        f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) points",
        f"{100 * run['saved']:.0f} %",
    ]


def policy_schedules() -> str:
    """The blocks that each kind of question chooses, mean over seeds, and schedules of seed 0."""
    seeds = _policy().get("policy", {})
    if not seeds:
        return "not measured"
    rows = []
    for kind, first in enumerate(seeds["0"]["by_kind"]):
        own = [run["by_kind"][kind] for run in seeds.values()]
        (name, share), *_ = first["schedules"]
        what = "list" if kind == 0 else f"{kind} swap{'s' if kind > 1 else ''}"
        exact, blocks = (_mean([x[key] for x in own], n) for key, n in _KIND_COLUMNS)
        short = name.replace("process", "P").replace("reflect", "F").replace("read", "R")
        rows.append([what, exact, blocks, f"{short.replace('output', 'O')} ({100 * share:.0f} %)"])
    columns = ["question", "exact", "mean blocks", "most frequent schedule of seed 0"]
    return table(columns, rows)


_KIND_COLUMNS = (("exact", 4), ("mean_blocks", 2))


def products() -> str:
    """The results of benchmarks/arithmetic.py on numbers of two digits."""
    return _arithmetic(lambda name: name.startswith("multiply/") and not name.endswith("3x3"))


def large_products() -> str:
    return _arithmetic(lambda name: name.endswith("3x3"))


def chains() -> str:
    return _arithmetic(lambda name: name.startswith("arithmetic/"))


def _arithmetic(shown: Callable[[str], bool]) -> str:
    """A row for each recipe: scores over seeds, and what training and an answer cost."""
    found = _measured_arithmetic()
    rows = []
    for name in filter(shown, found):
        runs = list(found[name].values())
        if not runs:
            rows.append([f"`{name}`", "not measured", *["-"] * 6])
            continue
        first, answer = runs[0], runs[0]["answer"]
        values = [run["scores"]["exact"] for run in runs]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        rows.append(
            [
                f"`{name}`",
                f"{statistics.mean(values):.4f}{spread}",
                str(len(runs)),
                f"{first['parameters']:,}",
                f"{first['flops']:.2g}",
                # Of a run that was continued, only the minutes since are known.
                f"{statistics.mean(x['cpu_minutes'] for x in runs if not x['resumed']):.1f}",
                f"{answer['flops'] / 1e6:.1f}",
                f"{answer['passes']:.1f}",
            ]
        )
    costs = ["training FLOPs", "CPU minutes", "million FLOPs of an answer", "passes"]
    return table(["recipe", "exact", "seeds", "parameters", *costs], rows)


def swaps() -> str:
    """The share of the digits of an answer that follow the registers of another row, by place."""
    rows = []
    for name, seeds in _measured_arithmetic().items():
        for seed, run in seeds.items():
            if not run["registers"] or not name.startswith("multiply/"):
                continue
            swap = run["registers"]["swap"]
            right = run["registers"].get("right")
            rows.append(
                [
                    f"`{name}`, seed {seed}",
                    "-" if right is None else f"{right:.3f}",
                    f"{swap['own']:.3f}",
                    f"{swap['other']:.3f}",
                    ", ".join(f"{x:.2f}" for x in swap["followed"]),
                    ", ".join(f"{x:.2f}" for x in swap["kept"]),
                ]
            )
    whole = ["registers right", "own product", "other product"]
    return table(["recipe", *whole, "digits of the other, units first", "own digits"], rows)


def _measured_arithmetic() -> dict:
    """{recipe: {seed: result}}; empty for a recipe that was not measured."""
    from thinkers import RECIPES

    found = json.loads((ROOT / "docs" / "arithmetic.json").read_text())
    names = [n for n in RECIPES if n.partition("/")[0] in ("multiply", "arithmetic")]
    elsewhere = ("multiply/thinker", "multiply/long", "arithmetic/calculator")
    return {name: found.get(name, {}) for name in names if name not in elsewhere}


def _measured_tools() -> dict:
    """{case: {seed: result}} of benchmarks/tools.py; empty for a case that was not measured."""
    return json.loads((ROOT / "docs" / "tools.json").read_text())


def tools_measured() -> str:
    """The results of benchmarks/tools.py: a row for each case."""
    rows = []
    for name, seeds in _measured_tools().items():
        runs = list(seeds.values())
        if not runs:
            rows.append([f"`{name}`", "not measured", *["-"] * 7])
            continue
        first = runs[0]
        minutes = [run["cpu_minutes"] for run in runs if not run["resumed"]]
        calls, without, due = "-", "-", "-"
        if "without the tool" in first:
            calls = _mean([run["scores"]["calls"] for run in runs])
            without = _mean([run["without the tool"] for run in runs])
            due = _mean([_calls_due(run["by_kind"]) for run in runs])
        rows.append(
            [
                f"`{name}`",
                _mean([run["scores"]["exact"] for run in runs]),
                without,
                calls,
                due,
                str(len(runs)),
                f"{first['parameters']:,}",
                f"{first['flops']:.2g}",
                f"{statistics.mean(minutes):.1f}" if minutes else "-",
            ]
        )
    columns = ["exact", "exact without the tool", "calls", "products or hops", "seeds"]
    return table(["case", *columns, "parameters", "training FLOPs", "CPU minutes"], rows)


def _calls_due(by_kind: dict) -> float:
    """The mean number of calls that the questions of a run need."""
    rows = sum(kind["rows"] for kind in by_kind.values())
    return sum(kind["due"] * kind["rows"] for kind in by_kind.values()) / rows


def tools_by_kind() -> str:
    """Exact, and rows with the right number of calls, by operators or hops, over seeds."""
    rows = []
    for name, seeds in _measured_tools().items():
        # The runs with fewer updates are a row of the first table alone.
        runs = [run["by_kind"] for run in seeds.values() if name != "1200_updates"]
        for kind in runs[0] if runs else ():
            found = [run[kind] for run in runs]
            what = f"{kind} hops" if kind.isdigit() else f"`{kind}`"
            exact, *calls = [_mean([x[key] for x in found]) for key in ("exact", "calls", "equal")]
            calls = ["-", "-"] if name == "direct" else calls
            rows.append([f"`{name}`", what, exact, calls[0], f"{found[0]['due']:.0f}", calls[1]])
    columns = ["case", "questions", "exact", "calls", "products or hops", "as many calls as these"]
    return table(columns, rows)


def retrofitted() -> str:
    """The results of benchmarks/retrofit.py: exact by steps, and beside the untouched model."""
    found = json.loads((ROOT / "docs" / "retrofit.json").read_text())
    once = {seed: run["scores"]["1"] for seed, run in found["one_step"].items()}
    rows = []
    for name, runs in found.items():
        scores = [_mean([x["scores"][k] for x in runs.values() if k in x["scores"]], 3)
                  if any(k in x["scores"] for x in runs.values()) else ""
                  for k in ("1", "4", "16")]  # fmt: skip
        own = "1" if name in ("decoder", "one_step") else "4"
        gains = [runs[seed]["scores"][own] - x for seed, x in once.items() if seed in runs]
        first = next(iter(runs.values()))
        shown = "" if name in ("decoder", "one_step") else _mean(gains, 3)
        gates = ", ".join(f"{x['gate']:.3f}" for x in runs.values() if "gate" in x)
        rows.append([f"`{name}`", str(first.get("updates", "")), gates, *scores, shown])
    columns = ["case", "updates", "gate, by seed", "1 step", "4 steps", "16 steps"]
    return table([*columns, "4 steps - `one_step`"], rows)
