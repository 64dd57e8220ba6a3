"""Generate the parts of README.md and docs/ that repeat code, docstrings or measured scores.

python tools/docs_tables.py            rewrite them
python tools/docs_tables.py --check    exit with 1 if a page would change
"""

import ast
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import measured_tables
import memory_tables
import reliability_tables
import training_tables
from measured_tables import table

ROOT = Path(__file__).resolve().parents[1]
MEASURED = (measured_tables, memory_tables, reliability_tables, training_tables)
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
    "docs/arithmetic.md": ("products", "large_products", "chains", "swaps"),
    "docs/policy.md": ("policy_scores", "policy_schedules"),
    "docs/memory.md": (
        "facts_scores",
        "facts_controls",
        "facts_stores",
        "gradient_cache",
        "store_faults",
        "memory_search",
    ),
    "docs/reliability.md": ("promises",),
    "docs/retrofit.md": ("retrofitted",),
    "docs/grow.md": ("grow_scores",),
    "docs/published.md": ("claims_scores", "claims_differences"),
    "docs/research.md": ("search_cups", "search_shakespeare"),
    "docs/tools.md": ("tools_measured", "tools_by_kind"),
}
"""{page: names of its generated parts}; the function of that name, here or in MEASURED, renders
a part."""


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
        text = f"{before}{begin}\n{_renderer(part)()}\n{end}{rest.partition(end)[2]}"
    return text


def _renderer(part: str) -> Callable[[], str]:
    """The function that renders a part: of this file, or of the tables of what was measured."""
    found = next((x for x in MEASURED if hasattr(x, part)), None)
    return globals()[part] if found is None else getattr(found, part)


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
