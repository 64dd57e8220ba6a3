"""Pages of the documentation that are written from the code: models, commands, the Python API.

docs/conf.py calls `write` before each build, and `as_rest` for each docstring.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_tables import table

import thinkers
from thinkers.cli.parser import actions_of, command_line

SECTIONS = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Note|Source)s?:$")
"""Headings of the sections of a docstring, which napoleon reads."""
SIZES = dict(vocab_size=64, max_length=64)
"""Sizes that the cards of models are computed for, besides the defaults of each."""


def write(folder: Path) -> None:
    """Write all pages into `folder`, and remove those of before."""
    folder.mkdir(exist_ok=True)
    pages = {"models": models_page(), "commands": commands_page(), "tasks": tasks_page()}
    pages |= {f"api_{name.replace('.', '_')}": page for name, page in api_pages()}
    for old in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in pages}:
        old.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text() != text:  # an unchanged page is not built again
            file.write_text(text)


# Cards of models --------------------------------------------------------------------------------


def models_page() -> str:
    """Return the page with a card for each model."""
    intro = (
        "# Models\n\nParameters and operations (FLOPs) are those of the default settings for a "
        "vocabulary of {vocab_size} and rows of {max_length} tokens: of one row, in a forward pass "
        "with the default number of thinking steps.\n"
    ).format(**SIZES)
    return "\n".join([intro, *(card(name) for name in sorted(thinkers.MODELS))])


def card(name: str) -> str:
    """Return the card of a model: its equations, sizes, settings and methods."""
    kind = thinkers.MODELS[name]
    model = thinkers.build_model(name, **SIZES)
    parameters = sum(p.numel() for p in model.parameters())
    flops = model.flops(1, SIZES["max_length"])
    facts = [
        ["class", f"`{kind.__module__}.{kind.__qualname__}`"],
        ["parameters", f"{parameters:,}"],
        ["FLOPs of a row", f"{flops / 1e6:,.1f} million"],
        ["thinking steps", ", ".join(map(str, model.step_counts))],
        ["causal", "yes" if model.causal else "no"],
    ]
    return "\n".join(
        [
            f"## {name}\n",
            markdown(inspect.getdoc(kind) or ""),
            "",
            table(["", ""], facts),
            "",
            f"Settings (`--model.*`) of `{name}`:\n",
            table(["setting", "default", ""], settings_of(kind.Config)),
            "",
        ]
    )


def settings_of(config: type) -> list[list[str]]:
    """Return name, default and meaning of each field of a configuration."""
    found = []
    notes = notes_of(config)
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        found.append([f"`{field.name}`", default, notes.get(field.name, "")])
    return [[cell.replace("|", "\\|") for cell in row] for row in found]


def notes_of(config: type) -> dict[str, str]:
    """Return the text under each field in the source of a configuration and of its bases."""
    notes: dict[str, str] = {}
    for part in reversed(config.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        try:
            source = inspect.getsource(part)
        except (OSError, TypeError):  # a Config that was derived at run time has no source
            continue
        for name, note in re.findall(r'\n +(\w+): [^\n]+\n +"""(.+?)"""', source, re.S):
            notes[name] = " ".join(note.split())
    return notes


# Tasks and commands ------------------------------------------------------------------------------


def tasks_page() -> str:
    """Return the page with the settings of each task."""
    lines = ["# Tasks\n"]
    for name, kind in sorted(thinkers.TASKS.items()):
        lines += [f"## {name}\n", markdown(inspect.getdoc(kind) or ""), ""]
        lines += [f"Settings (`--task.*`) of `{name}`:\n"]
        lines += [table(["setting", "default", ""], settings_of(kind.Config)), ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Return the page with the help of each command."""
    lines = ["# Commands and flags\n", "What `thinkers COMMAND --help` prints.\n"]
    _, verbs = command_line()
    for name, verb in verbs.items():
        lines += [f"## thinkers {name}\n", f"```text\n{verb.format_help().strip()}\n```\n"]
        for action, parser in actions_of(verb).items():
            lines += [f"### thinkers {name} {action}\n"]
            lines += [f"```text\n{parser.format_help().strip()}\n```\n"]
    return "\n".join(lines)


# The Python API ----------------------------------------------------------------------------------


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield (module, page): the public names of the package, and of each public room."""
    homes = [*thinkers._HOMES.values(), *thinkers._HOMES_OF_EXTRAS.values()]
    own = [name for names in homes for name in names]
    yield "thinkers", api_page("thinkers", own)
    for room in (*thinkers._ROOMS, *thinkers._ROOMS_OF_EXTRAS):
        module = importlib.import_module(f"thinkers.{room}")
        public = [name for name in getattr(module, "__all__", ()) if name not in own]
        yield f"thinkers.{room}", api_page(f"thinkers.{room}", public)


def api_page(module: str, names: list[str]) -> str:
    """Return the page of one module: its docstring, and each of these names."""
    found = importlib.import_module(module)
    lines = [f"# {module}\n", markdown(inspect.getdoc(found) or ""), ""]
    for name in sorted(names, key=str.lower):
        value = getattr(found, name)
        lines += [f"## {name}\n", directive(f"{module}.{name}", value), ""]
    return "\n".join(lines)


def directive(path: str, value: Any) -> str:
    """Return the directive that shows a class, a function or a value, in Markdown."""
    if inspect.isclass(value):
        kind, options = "autoclass", [":members:", ":show-inheritance:"]
    elif callable(value):
        kind, options = "autofunction", []
    else:
        return f"`{path}`: {type(value).__name__} of {len(value)}: {', '.join(sorted(value))}"
    inner = "\n".join([f".. {kind}:: {path}", *(f"   {x}" for x in options)])
    return f"```{{eval-rst}}\n{inner}\n```"


# Docstrings --------------------------------------------------------------------------------------


def blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield (verbatim, lines): indented blocks outside of sections, which hold equations."""
    inside, section, block = False, False, []
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() and not indented:
            section = bool(SECTIONS.match(line.strip()))
        starts = indented and not section
        if line.strip() and starts != inside:
            if block:
                yield inside, block
            inside, block = starts, []
        block.append(line)
    if block:
        yield inside, block


def markdown(text: str) -> str:
    """Return a docstring as Markdown: equations verbatim, the rest as it is."""
    out: list[str] = []
    for verbatim, lines in blocks(text.splitlines()):
        if not verbatim:
            out += lines
            continue
        body = "\n".join(x.removeprefix("    ") for x in lines).strip("\n")
        out += ["```text", body, "```", ""]
    return "\n".join(out)


def as_rest(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring as reStructuredText: equations verbatim, | and * as text."""
    out: list[str] = []
    for verbatim, block in blocks(list(lines)):
        if verbatim:
            out += ["::", "", *block, ""]
        else:
            out += [escape(line) for line in block]
    lines[:] = out


def escape(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [
        re.sub(r"([|*\\])|(?<=\w)_(?=\W|$)", lambda m: "\\" + m[0], x) for x in parts[::2]
    ]
    return "".join(parts)
