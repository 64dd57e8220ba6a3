"""A SQLite store under kills, full disks and other faults: all or nothing, and nothing lost."""

import os
import resource
import shutil
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from faulty_disk import FaultyDisk
from memory_cases import FakeModel, Words, filled, rows, text

from thinkers.errors import DamagedError, LockedError, ResourceError, UsageError
from thinkers.memory import LongTermMemory, keys, sqlite

LEVELS = dict(memory_levels=2, memory_group=2)


def state(folder, model=None):
    """Everything that a memory holds: a digest of its blocks, by id."""
    memory = LongTermMemory.open(folder, model)
    assert memory.verify() == []
    with memory.view() as view:
        ids = sorted({*view.ids(1).tolist(), *view.ids(view.meta.levels).tolist()})
        blocks = view.fetch(ids)
        found = [
            (id, topic, latents.numpy().tobytes(), keys.numpy().tobytes())
            for id, topic, latents, keys in zip(
                ids, blocks.topics, blocks.latents, blocks.keys, strict=True
            )
        ]
        topics = view.topics()
    memory.close()
    return topics, found


class Crashes:
    """Copies of a folder as a kill at any moment would leave it.

    The files are copied before each statement of SQL and each operation on a file: what a process
    wrote is in the files even if it is killed.
    """

    OPERATIONS = ("replace", "rename", "unlink", "fsync", "open")

    def __init__(self, folder, out, patch):
        self.folder, self.out, self.count, self.busy = folder, out, 0, False
        connect = sqlite3.connect

        def traced(*given, **named):
            connection = connect(*given, **named)
            connection.set_trace_callback(lambda _: self.copy())
            return connection

        patch.setattr(sqlite3, "connect", traced)
        for name in self.OPERATIONS:
            patch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call):
        def copied(*given, **named):
            self.copy()
            return call(*given, **named)

        return copied

    def copy(self):
        if not self.busy:
            self.busy = True
            shutil.copytree(self.folder, self.out / str(self.count))
            self.count += 1
            self.busy = False


CHANGES = {
    "write": lambda m: m.write(rows(3, 7), "b"),
    "clear": lambda m: m.clear("b"),
    "clear all": lambda m: m.clear(),
    "compact": lambda m: m.compact(),
    "rebuild": lambda m: m.rebuild(),
    "recompress": lambda m: LongTermMemory.recompress(
        m.store.folder, FakeModel(seed=1, **LEVELS), Words()
    ).close(),
}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_moment_leaves_what_was_or_what_is(tmp_path, monkeypatch, name, every):
    for module in (keys, sqlite):
        monkeypatch.setattr(module, "EXACT", 10)  # with an index
    memory = LongTermMemory.create(tmp_path / "m", FakeModel(**LEVELS), Words())
    memory.write([text(40), text(9, 1)], "a", keep_text=True)
    memory.write([text(15, 2)], "b", keep_text=True)
    memory.rebuild()
    memory.close()
    before = state(tmp_path / "m")
    with monkeypatch.context() as patch:
        crashes = Crashes(tmp_path / "m", tmp_path / "out", patch)
        memory = LongTermMemory.open(tmp_path / "m", FakeModel(**LEVELS), Words())
        CHANGES[name](memory)
        memory.close()
    after = state(tmp_path / "m")
    assert crashes.count > 5
    found = [state(tmp_path / "out" / str(i)) for i in range(1, crashes.count, every)]
    assert all(x in (before, after) for x in found)
    # Once it was written, it stays.
    assert found == sorted(found, key=lambda x: x == after)
    assert (before == after) == (name in ("compact", "rebuild"))


def test_what_was_acknowledged_is_on_the_disk_without_close(tmp_path):
    memory = filled(tmp_path / "m", {"a": 5})
    for i in range(3):
        memory.write(rows(2, i), "b")
        shutil.copytree(tmp_path / "m", tmp_path / str(i))
        assert state(tmp_path / str(i))[0] == {"a": 5, "b": 2 * i + 2}
    memory.clear("a")
    shutil.copytree(tmp_path / "m", tmp_path / "cleared")
    assert state(tmp_path / "cleared")[0] == {"b": 6}


def test_a_folder_that_a_killed_process_began_is_used(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()  # from which the copies are made
    with monkeypatch.context() as patch:
        crashes = Crashes(tmp_path / "m", tmp_path / "out", patch)
        LongTermMemory.create(tmp_path / "m", FakeModel()).close()
    assert crashes.count > 10
    for i in range(1, crashes.count, 6):
        folder = tmp_path / "out" / str(i)
        try:
            memory = LongTermMemory.create(folder, FakeModel())
        except UsageError:
            memory = LongTermMemory.open(folder, FakeModel())
        memory.write(rows(2))
        assert memory.topics() == {"default": 2} and memory.verify() == []
        memory.close()
        names = {x.name for x in folder.iterdir()}
        assert names == {".lock", "memory.db", "generation.json"}


# Full disks and failing ones


def test_a_full_disk_leaves_the_memory_as_it_was(tmp_path):
    memory = filled(tmp_path / "m", {"a": 5}, **LEVELS)
    before = state(tmp_path / "m")
    connection = memory.store._writer.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(ResourceError, match="no room on the disk") as error:
        memory.write(rows(300))
    assert error.value.exit_code == 6 and len(str(error.value).splitlines()) == 3
    assert state(tmp_path / "m") == before
    connection.execute("PRAGMA max_page_count=100000")
    memory.write(rows(300))
    assert memory.topics() == {"a": 5, "default": 300}


def test_a_limit_of_file_sizes_leaves_the_memory_as_it_was(tmp_path):
    """The operating system refuses to write, to the log, and to the database as it is rewritten."""
    memory = filled(tmp_path / "m", {"a": 5, "b": 1000})
    gone = memory.read([1]).latents.half().numpy().tobytes()
    memory.close()
    before = state(tmp_path / "m")

    def is_refused(call):
        # Of the number of bytes of a file; the process gets an error, no signal.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
        memory = LongTermMemory.open(tmp_path / "m", FakeModel())
        try:
            call(memory)
        except ResourceError as error:
            return error.exit_code == 6 and len(str(error).splitlines()) == 3

    assert holds_in_a_fork(lambda: is_refused(lambda m: m.write(rows(500))))
    assert state(tmp_path / "m") == before
    assert holds_in_a_fork(lambda: is_refused(lambda m: m.clear("a")))  # deleted, not compacted
    assert state(tmp_path / "m")[0] == {"b": 1000}
    with LongTermMemory.open(tmp_path / "m") as memory:
        memory.compact()
    assert gone not in (tmp_path / "m" / "memory.db").read_bytes()


def test_a_change_of_the_disk_that_fails_is_an_error_of_the_system(tmp_path):
    memory = filled(tmp_path / "m", {"a": 2})
    for number in range(1, 30):
        before = memory.topics()
        disk = FaultyDisk(tmp_path / "m", number, ("EIO", "ENOSPC")[number % 2], changes=True)
        try:
            with disk:
                memory.write(rows(1))
        except ResourceError as error:
            assert len(str(error).splitlines()) in (1, 3)
            is_written = "all that was asked for was written" in str(error)
        else:
            is_written = True
        after = memory.topics()
        assert after.get("default", 0) == before.get("default", 0) + is_written
        assert memory.verify() == []
        if not disk.failed:
            assert number > 5
            return
    pytest.fail("it never got through")


def test_rights_that_are_missing_are_an_error_of_the_system(tmp_path, monkeypatch):
    filled(tmp_path / "m", {"a": 2}).close()

    def refuse(*_, **__):
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(ResourceError, match="readonly") as error:
        LongTermMemory.open(tmp_path / "m")
    assert len(str(error.value).splitlines()) == 3


def test_a_database_that_others_hold_too_long_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("thinkers.memory.database.WAIT", 0.05)
    memory = filled(tmp_path / "m", {"a": 2})
    other = sqlite3.connect(tmp_path / "m" / "memory.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    memory.store._writer.connection.execute("PRAGMA busy_timeout=50")
    with pytest.raises(LockedError, match="in use by another process"):
        memory.write(rows(1))
    other.execute("ROLLBACK")
    other.close()
    memory.write(rows(1))


# What a folder from elsewhere may hold


def test_links_are_not_followed(tmp_path):
    filled(tmp_path / "m", {"a": 2}).close()
    for name in ("memory.db", "generation.json", ".lock"):
        folder = shutil.copytree(tmp_path / "m", tmp_path / name)
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "m" / name)
        with pytest.raises(DamagedError, match="link"):
            LongTermMemory.open(folder, FakeModel()).write(rows(1))
    assert len(LongTermMemory.open(tmp_path / "m")) == 2


def test_views_triggers_and_journals_are_refused(tmp_path):
    filled(tmp_path / "m", {"a": 2}).close()
    statements = (
        "CREATE TRIGGER t AFTER INSERT ON key BEGIN DELETE FROM block; END",
        "CREATE VIEW v AS SELECT * FROM block",
        "CREATE TABLE other(x)",
        "CREATE INDEX by_topic ON key(topic)",
        "DROP TABLE key",
        "PRAGMA journal_mode=DELETE",
    )
    for number, sql in enumerate(statements):
        folder = shutil.copytree(tmp_path / "m", tmp_path / str(number))
        connection = sqlite3.connect(folder / "memory.db", isolation_level=None)
        connection.execute(sql)
        connection.close()
        with pytest.raises(DamagedError, match="memory.db"):
            LongTermMemory.open(folder)
    (tmp_path / "m" / "memory.db-journal").write_bytes(b"x" * 512)
    with pytest.raises(DamagedError, match="a file that no store has"):
        LongTermMemory.open(tmp_path / "m")


def test_threads_read_while_one_writes(tmp_path):
    memory = filled(tmp_path / "m", {"a": 30}, **LEVELS)
    queries = torch.randn(3, 8)
    done = threading.Event()

    def read(_):
        counts = []
        while not done.is_set():
            with memory.view() as view:
                found = view.search(queries, 10_000, level=1)
                counts.append(len(view))
                assert (found.ids[0] > 0).sum() == len(view) == len(view.ids())
                assert sum(view.topics().values()) == len(view)
        return counts

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, i) for i in range(3)]
        try:
            for i in range(12):
                memory.write(rows(2, i), f"b{i % 3}")
                if i % 5 == 4:
                    memory.clear("b1")
        finally:
            done.set()
    for reader in readers:
        assert reader.result()
    assert memory.verify() == []


def holds_in_a_fork(condition):
    """Return True if a condition, computed in a forked process, is true."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if condition() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_process_reads_by_connections_of_its_own(tmp_path):
    memory = filled(tmp_path / "m", {"a": 4})
    queries = torch.randn(2, 8)
    expected = memory.store.search(queries, 3).ids
    assert holds_in_a_fork(lambda: torch.equal(memory.store.search(queries, 3).ids, expected))

    def is_refused():
        try:
            memory.write(rows(1))
        except LockedError as error:
            memory.close()
            return f"process {os.getppid()} on" in str(error)

    assert holds_in_a_fork(is_refused)
    memory.write(rows(1))
    with pytest.raises(LockedError):  # what the fork closed is still the parent's
        LongTermMemory.open(tmp_path / "m", FakeModel()).write(rows(1))
    assert memory.verify() == [] and memory.topics() == {"a": 4, "default": 1}


def test_folders_may_have_any_name(tmp_path):
    folder = tmp_path / "a b?mode=ro#%41 'é" / "m"
    memory = filled(folder, {"a": 2})
    memory.clear("a")
    memory.close()
    memory.write(rows(1))
    assert len(LongTermMemory.open(folder)) == 1
    assert {x.name for x in tmp_path.iterdir()} == {folder.parent.name}
