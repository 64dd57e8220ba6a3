"""Write into README.md what stands elsewhere: the example, the tree, the scores of the recipes.

python tools/readme.py            rewrite it
python tools/readme.py --check    end with 1 if that would change it
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def main() -> int:
    old = README.read_text()
    new = rendered(old)
    if "--check" in sys.argv:
        if new != old:
            print("README.md is behind the code: make format writes it again", file=sys.stderr)
        return int(new != old)
    README.write_text(new)
    return 0


def rendered(text: str) -> str:
    """`text` with all that is between marks written again."""
    for name, content in (("example", example()), ("tree", tree()), ("recipes", recipes())):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            sys.exit(f"README.md must hold {begin} and {end} once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
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
