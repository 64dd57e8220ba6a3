"""The prose of the package: docstrings by PEP 257, in the field's terms."""

import ast
import re

import pytest
from paths import ROOT

OPENERS = set(
    "what how who where whether which of that as if by "
    "under those their its it so also because since for".split()
)
"""First words of an indirect question or of half a sentence."""
PRIVATE = (
    r"wish(es)?|yardstick|equal means|sittings?|told|tells?|telling|farewell|go(es)? on with|"
    r"if need be|for want of|in vain|[Aa]s in every|so many|from anybody|data base|"
    r"hand(s|ed)? on|[Ii]t is no (integer|prompt|model|plain|module|run|file)"
)
"""Words of the first edition that the field has other words for."""
PAGES = ("README.md", "CONTRIBUTING.md", "docs")


def docstrings():
    for file in sorted((ROOT / "thinkers").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text is not None:
                    yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


def strings():
    """String constants of the package that are no docstrings: messages and help texts."""
    for file in sorted((ROOT / "thinkers").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


def test_docstrings_are_imperatives_or_noun_phrases():
    odd = [
        f"{place} {text.splitlines()[0]}"
        for place, text in docstrings()
        if re.split(r"\W", text, maxsplit=1)[0].lower() in OPENERS
    ]
    assert odd == []


def test_docstrings_and_messages_use_the_terms_of_the_field():
    texts = [*docstrings(), *strings()]
    odd = [
        f"{place} {text[:90]!r}" for place, text in texts if re.search(rf"\b({PRIVATE})\b", text)
    ]
    assert odd == []


def test_entries_of_arguments_are_noun_phrases():
    half = re.compile(r"^ +\w+: (Of|By|Where|Which|That|Under|Those|How|What|Whether)\b", re.M)
    odd = [
        f"{place} {x.group().strip()}" for place, text in docstrings() for x in half.finditer(text)
    ]
    assert odd == []


def test_pages_use_the_terms_of_the_field():
    files = [
        p
        for name in PAGES
        for p in ([ROOT / name] if ".md" in name else (ROOT / name).glob("*.md"))
    ]
    odd = [
        f"{file.name}:{number} {line[:90]}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(rf"\b({PRIVATE})\b", line)
    ]
    assert odd == []


@pytest.mark.parametrize("text", ["What it is.", "Of a batch.", "Whether it holds."])
def test_the_openers_are_recognised(text):
    assert re.split(r"\W", text, maxsplit=1)[0].lower() in OPENERS
