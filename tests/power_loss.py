"""What a disk may hold after the power fails: images of a folder, from a record of what was done.

A `RecordedDisk` records writes, syncs, renames, links, removals and new folders as they are made
through `os`. At a crash the disk holds what was synced; of everything else any part, in any order:
an entry of a folder may be lost, renames that were not synced are undone or not, and content that
was not synced is absent, torn at a sector, or zeros (as the tests of SQLite do it:
https://sqlite.org/testing.html, section 3.3). SQLite writes its files itself, and syncs them: they
are taken as they are at that moment.
"""

import ast
import contextlib
import hashlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulty_disk import Case, Ended, WatchedDisk, end_of, writes

SECTOR = 512
RECOVERED = 40
"""One of so many images is also continued, until the result is that of an undisturbed operation."""
CALLS = ("fsync", "sync_folder", "replace", "rename", "rename_synced")
"""Calls by which the package makes what it wrote last."""
Site = tuple[str, int]
"""File and line of a call."""


@dataclass(eq=False)
class Node:
    """A file with its content, or a folder with its entries, when the record begins."""

    is_folder: bool
    content: bytes = b""
    entries: dict[str, "Node"] = field(default_factory=dict)


@dataclass
class Event:
    """Something that was done.

    Args:
        kind: entry, data, native, sync or say.
        node: The file or folder that was written, or synced.
        entries: (folder, name, node or None) of a change of entries, all of which is made at once.
        offset: Place of `content` in a file; -1 for the whole file.
        files: All that SQLite has changed since the last record.
        sites: Calls of the package that a sync or a rename was part of.
    """

    kind: str
    node: Node | None = None
    entries: Sequence[tuple[Node, str, Node | None]] = ()
    offset: int = 0
    content: bytes = b""
    files: Sequence[tuple[Node, bytes]] = ()
    text: str = ""
    sites: frozenset[Site] = frozenset()


class RecordedDisk(WatchedDisk):
    """A record of what is done to the files in a folder, and of what is said meanwhile."""

    def __init__(self, folder: Path, sites: dict[str, list[tuple[int, int]]]):
        super().__init__(folder)
        self.events: list[Event] = []
        self._sites = sites
        self._nodes: dict[str, Node] = {}
        self._sizes: dict[Node, int] = {}
        self._native: dict[str, tuple[int, int]] = {}
        self.root = self._read(self.folder)

    def _read(self, path: str) -> Node:
        if os.path.isdir(path):
            node = Node(True, entries={x: self._read(f"{path}/{x}") for x in os.listdir(path)})
        else:
            with open(path, "rb") as stream:
                node = Node(False, stream.read())
            self._sizes[node] = len(node.content)
            if is_native(path):
                self._native[path] = stamp(path)
        self._nodes[path] = node
        return node

    # What is printed is what is acknowledged: the record is the standard output meanwhile.

    def write(self, text: str) -> int:
        self.see_native()
        self.events.append(Event("say", text=text))
        return len(text)

    def flush(self) -> None:
        pass

    def before(self, name: str, where: Any, changes: bool) -> None:
        if changes:
            self.see_native()

    def after(self, name: str, where: Any, given: tuple[Any, ...], found: Any) -> None:
        if name == "write":
            self._written(self._nodes[self.open[where]], bytes(given[0][:found]))
        elif name == "fsync":
            self.events.append(Event("sync", self._nodes[self.open[where]], sites=self._called()))
        elif name == "open":
            self._opened(path_of(where), writes(*given))
        elif name == "mkdir":
            self._enter(path_of(where), Node(True))
        elif name in ("unlink", "rmdir"):
            self._enter(path_of(where), None)
        elif name in ("rename", "replace"):
            self._renamed(path_of(where), path_of(given[0]))
        elif name == "link":
            self._enter(path_of(given[0]), self._nodes[path_of(where)])

    def _opened(self, path: str, changes: bool) -> None:
        """Record a file that is created, or emptied."""
        if not changes or is_native(path) or os.path.isdir(path):
            return
        if path not in self._nodes:
            node = Node(False)
            self._sizes[node] = 0
            self._enter(path, node)
        elif os.path.getsize(path) < self._sizes[self._nodes[path]]:
            self.events.append(Event("data", self._nodes[path], offset=-1))
            self._sizes[self._nodes[path]] = 0

    def _written(self, node: Node, content: bytes) -> None:
        self.events.append(Event("data", node, offset=self._sizes[node], content=content))
        self._sizes[node] += len(content)

    def _enter(self, path: str, node: Node | None) -> None:
        folder, name = os.path.split(path)
        self.events.append(Event("entry", entries=[(self._nodes[folder], name, node)]))
        if node is None:
            del self._nodes[path]
        else:
            self._nodes[path] = node

    def _renamed(self, old: str, new: str) -> None:
        (source, a), (target, b) = os.path.split(old), os.path.split(new)
        node = self._nodes[old]
        entries = [(self._nodes[source], a, None), (self._nodes[target], b, node)]
        self.events.append(Event("entry", entries=entries, sites=self._called()))
        for path in [x for x in self._nodes if x == old or x.startswith(f"{old}/")]:
            self._nodes[new + path[len(old) :]] = self._nodes.pop(path)
            if path in self._native:
                self._native[new + path[len(old) :]] = self._native.pop(path)

    def see_native(self) -> None:
        """Record what SQLite has done to its files since the last time, all of it at once."""
        there = [str(x) for x in Path(self.folder).rglob("*.db*") if is_native(x)]
        entries, files = [], []
        for path in [x for x in self._native if x not in there]:
            del self._native[path]
            folder, name = os.path.split(path)
            entries.append((self._nodes[folder], name, None))
            del self._nodes[path]
        for path in [x for x in there if self._native.get(x) != stamp(x)]:
            if path not in self._nodes and path.endswith(".tmp"):
                self._enter(path, Node(False))  # its name is for others to make last
            elif path not in self._nodes:
                folder, name = os.path.split(path)
                self._nodes[path] = Node(False)
                entries.append((self._nodes[folder], name, self._nodes[path]))
            self._native[path] = stamp(path)
            files.append((self._nodes[path], Path(path).read_bytes()))
        if entries or files:
            self.events.append(Event("native", entries=entries, files=files))

    def _called(self) -> frozenset[Site]:
        """Return the calls of the package that this one is part of."""
        found, frame = set(), sys._getframe(3)
        while frame is not None:
            for first, last in self._sites.get(frame.f_code.co_filename, ()):
                if first <= frame.f_lineno <= last:
                    found.add((frame.f_code.co_filename, first))
            frame = frame.f_back
        return frozenset(found)


def path_of(where: Any) -> str:
    return os.path.abspath(os.fsdecode(where))


def is_native(path: Any) -> bool:
    """Return True for a file that SQLite writes."""
    return ".db" in os.path.basename(path)


def stamp(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def find_sites(package: Path) -> dict[str, list[tuple[int, int]]]:
    """Return the first and last line of each call in CALLS, by file."""
    found: dict[str, list[tuple[int, int]]] = {}
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = node.func
                is_of_os = isinstance(name, ast.Attribute) and ast.unparse(name.value) == "os"
                called = name.attr if is_of_os else getattr(name, "id", "")
                if called in CALLS and (is_of_os or called in ("sync_folder", "rename_synced")):
                    found.setdefault(str(file), []).append((node.lineno, node.end_lineno))
    return found


def recorded(
    case: Case, place: Path, sites: dict[str, list[tuple[int, int]]]
) -> tuple[Case, Node, list[Event], Any]:
    """Return a case, the folder before its operation, what was done, and its result."""
    folder = place / f"{case.name} recorded"
    folder.mkdir()
    case.begin(folder)
    disk = RecordedDisk(folder, sites)
    with contextlib.redirect_stdout(disk), disk:
        case.act(folder)
    disk.see_native()
    return case, disk.root, disk.events, case.result(folder)


# Images -------------------------------------------------------------------------------------------

Disk = dict[Node, Any]
"""{file: its content, folder: {name: node}} after a crash."""


def images(root: Node, events: Sequence[Event], mixes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what was said before a crash, and what the disk may then hold, each pair once.

    Args:
        mixes: Random choices of what is kept, at each moment, beyond those of a fixed kind.
    """
    seen = set()
    for end in range(len(events) + 1):
        said = "".join(event.text for event in events[:end])
        for chosen in choices(pending(events[:end]), random.Random(end), mixes):
            tree = after_crash(root, events[:end], chosen)
            digest = hashlib.sha256(repr((said, tree and sorted(tree.items()))).encode()).digest()
            if tree is not None and digest not in seen:
                seen.add(digest)
                yield said, tree


def pending(events: Sequence[Event]) -> list[Event]:
    """Return the changes that no later sync of their file, or of their folders, has made last."""
    synced: set[Node] = set()
    found = []
    for event in reversed(events):
        if event.kind == "sync":
            synced.add(event.node)  # type: ignore[arg-type]
        elif event.kind == "data" and event.node not in synced:
            found.append(event)
        elif event.kind == "entry" and not {x[0] for x in event.entries} <= synced:
            found.append(event)
    return found[::-1]


Fate = Callable[[bytes], bytes]


def whole(content: bytes) -> bytes:
    return content


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2 // SECTOR * SECTOR]


def choices(
    changes: Sequence[Event], rng: random.Random, mixes: int
) -> Iterator[dict[int, Fate | None]]:
    """Yield what becomes of pending changes, by their identity: a fate, or None if it is lost."""
    yield {id(x): None for x in changes}
    if not changes:
        return
    yield {id(x): whole for x in changes}
    for fate in (None, zeros, torn):  # names without their content
        yield {id(x): whole if x.kind == "entry" else fate for x in changes}
    yield {id(x): None if x.kind == "entry" else whole for x in changes}
    for one in changes[-8:]:
        yield {id(x): whole if x is one else None for x in changes}
        yield {id(x): None if x is one else whole for x in changes}
    for _ in range(mixes):
        yield {
            id(x): rng.choice((None, whole) if x.kind == "entry" else (None, whole, zeros, torn))
            for x in changes
        }


def after_crash(
    root: Node, events: Sequence[Event], chosen: dict[int, Fate | None]
) -> dict[str, Any] | None:
    """Return {path: content, or None for a folder} of what is left.

    None if a folder that is not empty would have been replaced, which no disk does.
    """
    folders: dict[Node, dict[str, Node]] = {}
    files: dict[Node, bytes] = {}
    for event in events:
        fate = chosen.get(id(event), whole)
        if event.kind in ("sync", "say") or fate is None:
            continue
        for folder, name, node in event.entries:
            entries = folders.setdefault(folder, dict(folder.entries))
            replaced = entries.pop(name, None)
            if node is not None:
                if replaced is not None and folders.get(replaced, replaced.entries):
                    return None
                entries[name] = node
        files.update(event.files)
        if event.node is not None:
            content = fate(event.content)
            before = files.get(event.node, event.node.content) if event.offset >= 0 else b""
            before = before.ljust(max(event.offset, 0), b"\0")
            files[event.node] = before[: max(event.offset, 0)] + content
    found: dict[str, Any] = {}

    def visit(node: Node, path: str) -> None:
        for name, child in folders.get(node, node.entries).items():
            place = f"{path}{name}"
            found[place] = None if child.is_folder else files.get(child, child.content)
            if child.is_folder:
                visit(child, f"{place}/")

    visit(root, "")
    return found


def write_image(tree: dict[str, Any], folder: Path) -> None:
    """Write an image into a folder."""
    folder.mkdir()
    for name, content in tree.items():
        path = folder / name
        path.mkdir() if content is None else path.write_bytes(content)


def loss(case: Case, said: str, tree: dict[str, Any], folder: Path, expected: Any = None) -> str:
    """Return what is lost in an image, "" if nothing is; continue it if a result is expected."""
    write_image(tree, folder)
    try:
        wrong = case.lost(folder, Ended(0, "", said))
        if not wrong and expected is not None:
            ended = end_of(lambda: case.again(folder))
            if ended.code or case.result(folder) != expected:
                wrong = [f"not recovered: code {ended.code}, {ended.text}"]
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)
    return "; ".join(wrong)


def without(root: Node, events: Sequence[Event], site: Site) -> list[Event] | None:
    """Return the record of a package that lacks the call at this place; None if it would fail."""
    left = [event for event in events if site not in event.sites]
    return None if after_crash(root, left, {}) is None else left
