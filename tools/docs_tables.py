"""Generate the parts of README.md and docs/ that repeat code, docstrings or measured scores.

python tools/docs_tables.py            rewrite them
python tools/docs_tables.py --check    exit with 1 if a page would change
"""

import ast
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": ("example", "results"),
    "docs/layout.md": ("tree",),
    "docs/recipes.md": ("recipes",),
    "docs/babi.md": ("steps",),
    "docs/state_tracking.md": ("cups", "automaton", "links"),
    "docs/long_addition.md": ("long_sums", "long_products", "window_cache"),
    "docs/halting.md": (
        "halting_cups",
        "halting_links",
        "halting_others",
        "halting_guard",
        "halting_clock",
    ),
}
"""{page: names of its generated parts}; the function of that name below renders a part."""


def main() -> int:
    status = 0
    for page, parts in PAGES.items():
        old = (ROOT / page).read_text()
        new = render(old, page, parts)
        if "--check" not in sys.argv:
            (ROOT / page).write_text(new)
        elif new != old:
            print(f"{page} is behind the code; make format rewrites it", file=sys.stderr)
            status = 1
    return status


def render(text: str, page: str, parts: tuple[str, ...]) -> str:
    """Replace what stands between the marks of each part."""
    for part in parts:
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            sys.exit(f"{page} must hold {begin} and {end} once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{globals()[part]()}\n{end}{rest.partition(end)[2]}"
    return text


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def example() -> str:
    return f"```python\n{(ROOT / 'examples' / 'first.py').read_text()}```"


def tree() -> str:
    """Each file of the package with the first sentence of its docstring."""
    lines = []
    package = ROOT / "thinkers"
    for path in sorted(package.rglob("*.py"), key=_sort_key):
        place = path.relative_to(ROOT)
        is_folder = path.name == "__init__.py"
        name = f"{path.parent.name}/" if is_folder else path.name
        indent = "  " * (len(place.parts) - 1 - is_folder)
        if is_folder or _phrase(path):
            lines.append(f"{indent + name:<30} {_phrase(path)}".rstrip())
    return "```\n" + "\n".join(lines) + "\n```"


def recipes() -> str:
    """The recipes, and the measured score of each."""
    from thinkers import RECIPES
    from thinkers.recipes import results, score

    found = results()
    rows = [
        [f"`{name}`", (recipe.__doc__ or "").partition("\n")[0], score(name, found)]
        for name, recipe in RECIPES.items()
    ]
    return table(["recipe", "summary", "measured"], rows)


def results() -> str:
    """The measured recipes by task and model: mean and standard deviation over seeds."""
    from thinkers import MODELS
    from thinkers.recipes import results

    found = results()
    models = [m for m in MODELS if any(name.endswith(f"/{m}") for name in found)]
    tasks = dict.fromkeys(name.partition("/")[0] for name in found)
    rows = []
    for task in tasks:
        metric = next(x["primary_metric"] for n, x in found.items() if n.startswith(f"{task}/"))
        scores = [_spread(found.get(f"{task}/{model}"), metric) for model in models]
        rows.append([f"`{task}`, {metric}", *scores])
    return table(["task", *(f"`{model}`" for model in models)], rows)


def _spread(entry: dict | None, metric: str) -> str:
    if entry is None:
        return ""
    values = [seed["scores"][metric] for seed in entry["seeds"].values()]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def steps() -> str:
    """The scores of the recipes on stories by the number of thinking steps."""
    from thinkers import RECIPES
    from thinkers.recipes import results

    names = [name for name in RECIPES if name.startswith("babi/")]
    found = {name: results().get(name, {"seeds": {}})["seeds"] for name in names}
    counts = sorted(
        {row["num_steps"] for seeds in found.values() for x in seeds.values() for row in x["steps"]}
    )
    rows = []
    for name, seeds in found.items():
        rows.append([f"`{name}`", str(len(seeds) or "not measured")])
        for count in counts:
            all_steps = (row for x in seeds.values() for row in x["steps"])
            scores = [row["exact"] for row in all_steps if row["num_steps"] == count]
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            rows[-1].append(f"{statistics.mean(scores):.3f}{spread}" if scores else "-")
    return table(["recipe", "seeds", *(f"{n} steps" for n in counts)], rows)


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
    rows = []
    for name, seeds in _halting().items():
        if name.partition("/")[0] not in ("cups", "links"):
            score = "loss" if name.startswith("shakespeare") else "rows"
            rows.append(_points(name, seeds, "all", [score]))
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


def _sort_key(path: Path) -> tuple[object, ...]:
    """Sort folders by name, the folder's own docstring first, and files before folders."""
    *folders, name = path.relative_to(ROOT).parts
    keys = [(1, folder) for folder in folders]
    return (*keys, (0, "" if name == "__init__.py" else name))


def _phrase(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])\. ", first)[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
