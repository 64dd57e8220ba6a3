"""Operations on a memory: what they must not lose, and what they must come to.

It holds blocks of `memory_blocks`, whose content follows from their ids. What SQLite writes, it
writes itself: the injector has the generation, the files of indexes, and the making of a store.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import memory_blocks
from faulty_disk import Case, Ended
from memory_blocks import SETTINGS, State

from thinkers.memory import keys, sqlite
from thinkers.memory.sqlite import SqliteStore


class Memory(Case):
    """An operation on a store of two topics, with an index."""

    every, images = (1, 4), 20
    operation: ClassVar[dict[str, Any]]
    before = State().written("a", 60).written("b", 9)

    @contextmanager
    def early_indexes(self) -> Iterator[None]:
        known = keys.EXACT, sqlite.EXACT
        memory_blocks.index_early()
        try:
            yield
        finally:
            keys.EXACT, sqlite.EXACT = known

    def begin(self, folder: Path) -> None:
        with self.early_indexes():
            store, state = SqliteStore.create(folder / "store", **SETTINGS), State()
            for topic, number in (("a", 60), ("b", 9)):
                memory_blocks.perform(
                    store, state, {"do": "write", "topic": topic, "count": number}
                )
                state = state.written(topic, number)
            store.close()

    def act(self, folder: Path) -> None:
        self.perform(folder)

    def perform(self, folder: Path) -> None:
        with self.early_indexes(), closing(SqliteStore(folder / "store")) as store:
            memory_blocks.perform(store, self.before, self.operation)
            print("done", flush=True)

    def again(self, folder: Path) -> None:
        with self.early_indexes(), closing(SqliteStore(folder / "store")) as store:
            with store.view() as view:
                is_done = not memory_blocks.differences(view, self.before.after(self.operation))
            if is_done:
                store.lock()  # a writer removes what another left
        if self.operation["do"] in ("compact", "rebuild") or not is_done:
            self.perform(folder)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        after = self.before.after(self.operation)
        with self.early_indexes(), closing(SqliteStore(folder / "store")) as store:
            faults = [str(fault) for fault in store.verify()]
            with store.view() as view:
                wrong = memory_blocks.differences(view, after)
                if wrong and "done" not in ended.said:
                    wrong = memory_blocks.differences(view, self.before)
        return faults + wrong

    def result(self, folder: Path) -> Any:
        return self.lost(folder, Ended(0, "", "done"))


class Write(Memory):
    name = "memory write"
    operation: ClassVar = {"do": "write", "topic": "c", "count": 5}


class Clear(Memory):
    name = "memory clear"
    operation: ClassVar = {"do": "clear", "topic": "a"}


class Compact(Memory):
    name = "memory compact"
    operation: ClassVar = {"do": "compact"}


class Rebuild(Memory):
    name = "memory rebuild"
    operation: ClassVar = {"do": "rebuild"}


class Create(Memory):
    """A store is made."""

    name = "memory create"
    before, operation = State(), {"do": "write", "topic": "c", "count": 5}

    def begin(self, folder: Path) -> None:
        pass

    def act(self, folder: Path) -> None:
        SqliteStore.create(folder / "store", **SETTINGS).close()
        self.perform(folder)

    def again(self, folder: Path) -> None:
        is_made = (folder / "store" / "memory.db").exists()
        super().again(folder) if is_made else self.act(folder)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        if not (folder / "store" / "memory.db").exists():
            return ["the store is gone"] if "done" in ended.said else []
        return super().lost(folder, ended)
