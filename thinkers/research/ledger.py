"""The ledger of a search: every experiment with its change, its result and what became of it.

SQLite, one row for each experiment and one for each judgement on the test split. A row is written
before its training begins, so that an experiment whose process was killed is there too.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from thinkers.errors import DamagedError, FormatError, ResourceError, three_lines, usage_error
from thinkers.files import exists, is_folder, open_file, rename_synced, unlink
from thinkers.strict_json import Schema, check_schema

LEDGER = "ledger.db"
LEFTOVERS = (f".{LEDGER}.tmp", f".{LEDGER}.tmp-journal")
"""Files that a process may leave if it is killed while it makes a ledger."""
FORMAT = 1
Status = Literal["running", "keep", "discard", "crash"]
TABLES = (
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE experiment(id INTEGER PRIMARY KEY AUTOINCREMENT, base INTEGER, digest TEXT NOT "
    "NULL, change TEXT NOT NULL, description TEXT NOT NULL, seed INTEGER NOT NULL, started REAL "
    "NOT NULL, status TEXT NOT NULL, result TEXT NOT NULL)",
    "CREATE TABLE judgement(id INTEGER PRIMARY KEY CHECK (id = 1), made REAL NOT NULL, result TEXT "
    "NOT NULL)",
)
"""There is one judgement at most: the test split is used once."""
META: Schema = {
    "recipe": str,
    "minutes": (int, float),
    "task_flags": list,
    "metric": str,
    "higher_is_better": bool,
}
INTERVALS = ("of_first", "of_best", "of_gain")
JUDGEMENT: Schema = {"seeds": int, "first": int, "best": int, **dict.fromkeys(INTERVALS, dict)}
INTERVAL: Schema = dict.fromkeys(("value", "low", "high"), (int, float))


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Args:
        number: From 1, in the order in which they began.
        base: The experiment whose settings and files this one changes; None for the first.
        digest: SHA-256 of the change: its settings, the content of its files, the base, the seed.
        change: {"flags": [..], "files": [names in the folder changes]} that were added to the base.
        seed: Seed of its training.
        started: Seconds since 1970.
        result: metric, seconds, memory (bytes), updates, parameters; of a crash, error.
    """

    number: int
    base: int | None
    digest: str
    change: Mapping[str, list[str]]
    description: str
    seed: int
    started: float
    status: Status
    result: Mapping[str, Any]

    @property
    def metric(self) -> float | None:
        """The score on the validation split; None unless it was reached."""
        return self.result.get("metric")


class Ledger:
    """The ledger in a folder.

    Raises:
        UsageError: There is none.
        DamagedError: The file is not a ledger.
        FormatError: Another version wrote it.
    """

    def __init__(self, folder: Path):
        self.path = folder / LEDGER
        if not exists(self.path):
            found = f"no {LEDGER} in it" if is_folder(folder) else "there is no such folder"
            raise usage_error(
                f"{folder}, which holds no experiments: {found}",
                "the folder of thinkers research RECIPE --out DIR",
                "name another one, or begin one by a recipe",
            )
        open_file(self.path).close()  # refuses a link
        self._db = self._connect()
        with ledger_errors(self.path):
            self.meta = {
                name: json.loads(value)
                for name, value in self._db.execute("SELECT name, value FROM meta")
            }
        if self.meta.get("format") != FORMAT:
            self.close()
            raise FormatError(
                f"{self.path} has format {self.meta.get('format')}, this version reads {FORMAT}"
            )
        try:
            check_schema(self.meta, META, str(self.path))
            if not all(isinstance(x, str) for x in self.meta["task_flags"]):
                raise _damaged(self.path, "task_flags must be texts")
        except DamagedError:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> "Ledger":
        """Create the ledger of a new search.

        Args:
            meta: The fields of META, the same for all its experiments.
        """
        # Complete before it has its name: a process that is killed here leaves no half ledger.
        # Its journal too, which would be played back into the new file.
        for name in LEFTOVERS:
            unlink(folder / name)
        new = folder / LEFTOVERS[0]
        with ledger_errors(new), closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN")
            for table in TABLES:
                db.execute(table)
            for name, value in {**meta, "format": FORMAT}.items():
                db.execute("INSERT INTO meta VALUES (?, ?)", (name, json.dumps(value)))
            db.execute("COMMIT")
        rename_synced(new, folder / LEDGER)
        return cls(folder)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def experiments(self) -> list[Experiment]:
        """Return all experiments, oldest first."""
        columns = "id, base, digest, change, description, seed, started, status, result"
        with ledger_errors(self.path):
            rows = self._db.execute(f"SELECT {columns} FROM experiment ORDER BY id").fetchall()
            return [_experiment(*row) for row in rows]

    def best(self) -> Experiment | None:
        """Return the experiment that was kept last; None before the first."""
        return next((x for x in reversed(self.experiments()) if x.status == "keep"), None)

    def chain(self, last: Experiment | None) -> list[Experiment]:
        """Return an experiment and those it builds on, the first one first."""
        by_number, found = {x.number: x for x in self.experiments()}, []
        while last is not None:
            found.append(last)
            if last.base is not None and last.base not in by_number:
                raise _damaged(self.path, f"experiment {last.base} is missing")
            last = None if last.base is None else by_number[last.base]
        return found[::-1]

    def begin(
        self,
        base: int | None,
        digest: str,
        change: Mapping[str, list[str]],
        description: str,
        seed: int,
    ) -> int:
        """Write the row of an experiment that begins; return its number."""
        row = (base, digest, json.dumps(change), description, seed, time.time())
        with ledger_errors(self.path):
            found = self._db.execute(
                "INSERT INTO experiment(base, digest, change, description, seed, started, status, "
                "result) VALUES (?, ?, ?, ?, ?, ?, 'running', '{}')",
                row,
            )
        assert found.lastrowid is not None
        return found.lastrowid

    def end(self, number: int, status: Status, result: Mapping[str, Any]) -> None:
        """Write what became of an experiment."""
        with ledger_errors(self.path):
            self._db.execute(
                "UPDATE experiment SET status = ?, result = ? WHERE id = ?",
                (status, json.dumps(result), number),
            )

    def judgement(self) -> dict[str, Any] | None:
        """Return the result on the test split; None before it was made."""
        with ledger_errors(self.path):
            row = self._db.execute("SELECT result FROM judgement").fetchone()
            found = None if row is None else json.loads(row[0])
        if found is not None:
            check_schema(found, JUDGEMENT, f"{self.path}: the judgement")
            for name in INTERVALS:
                check_schema(found[name], INTERVAL, f"{self.path}: {name}")
        return found

    def judge(self, result: Mapping[str, Any]) -> None:
        """Write the result on the test split, once."""
        with ledger_errors(self.path):
            self._db.execute(
                "INSERT INTO judgement VALUES (1, ?, ?)", (time.time(), json.dumps(result))
            )

    def _connect(self) -> sqlite3.Connection:
        with ledger_errors(self.path):
            db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA trusted_schema=OFF")
            return db


@contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """Give errors of SQLite the classes of this package."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise _damaged(path, str(error)) from error
        raise ResourceError(
            three_lines(
                f"{path} cannot be used: {error}",
                "a disk and rights that suffice; the experiments that it has stay in it",
                "free disk space, or change the rights, and repeat the command",
            )
        ) from error
    except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(
        three_lines(
            f"{path}, which is damaged: {what}",
            "a ledger as it was written",
            "restore it from a copy, or begin another folder",
        )
    )


def _experiment(
    number: int,
    base: int | None,
    digest: str,
    change: str,
    description: str,
    seed: int,
    started: float,
    status: Status,
    result: str,
) -> Experiment:
    """Return the experiment of a row.

    Raises:
        ValueError: A value is not one that is written.
    """
    about, reached = json.loads(change), json.loads(result)
    _require(number, {"change": about, "result": reached}, dict)
    texts = {"digest": digest, "description": description, "error": reached.get("error", "")}
    _require(number, texts, str)
    measured = {name: reached.get(name, 0) for name in ("metric", "seconds", "updates")}
    memory = reached.get("memory") or 0  # null where it is not known
    _require(number, {"seed": seed, "started": started, "memory": memory, **measured}, int, float)
    for name in ("flags", "files"):
        _require(number, {name: about.get(name)}, list)
        for text in about[name]:
            _require(number, {f"each of {name}": text}, str)
    if any(Path(x).name != x for x in about["files"]):
        raise ValueError(f"experiment {number} names a file outside its folder")
    if base is not None and not (type(base) is int and 0 < base < number):
        raise ValueError(f"experiment {number} builds on {base!r}, which is none before it")
    if status not in get_args(Status) or (status == "keep" and "metric" not in reached):
        raise ValueError(f"experiment {number} has status {status!r} and result {result[:80]}")
    return Experiment(number, base, digest, about, description, seed, started, status, reached)


def _require(number: int, values: Mapping[str, Any], *kinds: type) -> None:
    """Raise a ValueError unless these values of an experiment have one of these types."""
    for name, value in values.items():
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            found = f"{value!r:.80}"
            raise ValueError(f"{name} of experiment {number} must be {expected}, got {found}")
