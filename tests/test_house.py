"""The layout: rooms on floors, no import that runs upward, files of a readable size."""

import ast
import itertools

import pytest
from paths import ROOT

PACKAGE = ROOT / "thinkers"
FLOORS = (
    ("version", "terminal"),
    ("errors",),
    ("strict_json", "optional", "problems"),
    ("checks", "files", "prng", "devices", "process_state", "registry"),
    ("json_files", "user_paths"),
    ("plugins",),
    ("ops",),
    ("nn",),
    ("data", "report"),
    ("models",),
    ("tasks", "published", "testing"),
    ("config",),
    ("recipes",),
    ("runs", "policies"),
    ("distillation",),
    ("training", "memory"),
    ("evaluation",),
    ("inspection", "comparison", "hf"),
    ("research", "export", "serve"),
    ("",),
    ("cli",),
    ("__main__",),
)
"""Rooms, from the ground up; a room imports rooms of lower floors only, besides itself.

"" is the package itself, whose public names the command line calls as any user does.
"""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = ("train", "evaluate", "compare", "inspect", "generate", "answer", "ablate", "reproduce")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
LONGER_FILES = {"models/thinker.py"}


def modules():
    """{dotted name: file} of the package, a room's `__init__` by the room's name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ("thinkers", *file.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file, known):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def graph():
    known = modules()
    return {name: set(imports(file, known)) - {name} for name, file in known.items()}


def room_of(name):
    return name.split(".")[1] if "." in name else ""


def circles(arrows):
    """Groups of two or more nodes that reach each other (Tarjan 1972)."""
    index, low, stack, found, number = {}, {}, [], [], itertools.count()

    def visit(node):
        index[node] = low[node] = next(number)
        stack.append(node)
        for other in arrows[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def test_every_room_has_a_floor():
    assert {room_of(name) for name in modules()} == set(FLOOR)


def test_no_import_runs_upward():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if room_of(other) != room_of(name) and FLOOR[room_of(other)] >= FLOOR[room_of(name)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(graph()) == []


def test_the_walk_finds_a_circle_and_an_import_for_types_alone(tmp_path):
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    file = tmp_path / "x.py"
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import thinkers.a\n")
    assert list(imports(file, {"thinkers.a"})) == ["thinkers.a"]


def test_two_levels_and_no_room_is_called_like_a_public_function():
    for name in modules():
        assert name.count(".") <= 2, name
        assert room_of(name) not in PUBLIC, name


@pytest.mark.parametrize("folder", ["thinkers", "tests", "benchmarks", "examples", "tools"])
def test_files_and_functions_are_short(folder):
    long = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        text = file.read_text()
        name = file.relative_to(ROOT / folder).as_posix()
        if len(text.splitlines()) > LONGEST_FILE and name not in LONGER_FILES:
            long.append(f"{name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{name}: {node.name} has {length} lines")
    assert long == []


def test_the_tests_have_the_rooms_of_the_package():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    tested = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert tested - {"faults"} == rooms  # of all rooms: what the disk does to them


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by these names, and fails where two are equal."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_test_lists_the_models():
    """A model that is added is tested without an edit: tests ask it what it can do."""
    from thinkers.models import MODELS

    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.List | ast.Tuple | ast.Set):
                names = [x.value for x in node.elts if isinstance(x, ast.Constant)]
                if len([x for x in names if x in MODELS]) >= len(MODELS) - 2:
                    found.append(f"{file.name}:{node.lineno}")
    assert found == []
