"""Write into pages what stands elsewhere: README.md's example, tree and scores of the recipes, and
docs/babi.md's scores by the number of steps.

python tools/readme.py            rewrite them
python tools/readme.py --check    end with 1 if that would change one
"""

import ast
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    ROOT / "README.md": ("example", "tree", "recipes"),
    ROOT / "docs" / "babi.md": ("steps",),
}


def main() -> int:
    behind = 0
    for page, parts in PAGES.items():
        old = page.read_text()
        new = rendered(old, page.name, parts)
        if "--check" not in sys.argv:
            page.write_text(new)
        elif new != old:
            print(f"{page.name} is behind the code: make format writes it again", file=sys.stderr)
            behind = 1
    return behind


def rendered(text: str, name: str, parts: tuple[str, ...]) -> str:
    """`text` with all that is between marks written again."""
    for part in parts:
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            sys.exit(f"{name} must hold {begin} and {end} once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{globals()[part]()}\n{end}{rest.partition(end)[2]}"
    return text


def example() -> str:
    return f"```python\n{(ROOT / 'examples' / 'first.py').read_text()}```"


def tree() -> str:
    """Each file of the package with the first sentence of its docstring."""
    lines = []
    package = ROOT / "thinkers"
    for path in sorted(package.rglob("*.py"), key=_place):
        place = path.relative_to(ROOT)
        is_folder = path.name == "__init__.py"
        name = f"{path.parent.name}/" if is_folder else path.name
        indent = "  " * (len(place.parts) - 1 - is_folder)
        if phrase := _phrase(path):
            lines.append(f"{indent + name:<30} {phrase}")
    return "```\n" + "\n".join(lines) + "\n```"


def recipes() -> str:
    """The recipes and what was measured of them, as a table."""
    from thinkers import RECIPES
    from thinkers.recipes import results, score

    found = results()
    lines = ["| recipe | what it does | measured |", "|---|---|---|"]
    for name, recipe in RECIPES.items():
        summary = (recipe.__doc__ or "").partition("\n")[0]
        lines.append(f"| `{name}` | {summary} | {score(name, found)} |")
    return "\n".join(lines)


def steps() -> str:
    """What the recipes on stories score by the number of thinking steps."""
    from thinkers import RECIPES
    from thinkers.recipes import results

    names = [name for name in RECIPES if name.startswith("babi/")]
    found = {name: results().get(name, {"seeds": {}})["seeds"] for name in names}
    counts = sorted(
        {row["num_steps"] for seeds in found.values() for x in seeds.values() for row in x["steps"]}
    )
    rows = [["recipe", "seeds", *(f"{n} steps" for n in counts)], ["---"] * (2 + len(counts))]
    for name, seeds in found.items():
        rows.append([f"`{name}`", str(len(seeds) or "not measured")])
        for count in counts:
            all_steps = (row for x in seeds.values() for row in x["steps"])
            scores = [row["exact"] for row in all_steps if row["num_steps"] == count]
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            rows[-1].append(f"{statistics.mean(scores):.3f}{spread}" if scores else "-")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _place(path: Path) -> tuple[object, ...]:
    """A folder stands where its name does, its own phrase first; files before folders."""
    *folders, name = path.relative_to(ROOT).parts
    keys = [(1, folder) for folder in folders]
    return (*keys, (0, "" if name == "__init__.py" else name))


def _phrase(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])\. ", first)[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
