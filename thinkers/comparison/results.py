"""Results of a comparison: a result.json of each run, and all of them read back."""

import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from thinkers.comparison.plan import Plan
from thinkers.errors import DamagedError, ThinkersError, describe, exit_code
from thinkers.files import own_folder, read_file, write_file
from thinkers.json_files import read_with_digest, with_digest
from thinkers.tasks.due import Steps
from thinkers.user_paths import user_path

RUNS, RESULT, PAGE, GRADES = "runs", "result.json", "report.html", "grades.npz"
LARGEST_GRADES = 1 << 27
"""Bytes of grades.npz, and of the arrays that are unpacked from it."""


@dataclass(frozen=True)
class Result:
    """A run that was trained and evaluated.

    Args:
        record: The content of its result.json.
        grades: {thinking steps, or "due": the primary metric of each held-out example}.
        points: Grades at the configured number of steps, for each checkpoint in record["curve"].
        questions: Index of each example's question; repeated questions share one.
    """

    record: Mapping[str, Any]
    grades: Mapping[Steps, np.ndarray]
    points: np.ndarray
    questions: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison.

    Args:
        results: {contender: its runs that were evaluated, by seed}.
        failures: The content of result.json of each run that failed.
    """

    folder: Path
    plan: Plan
    results: Mapping[str, Sequence[Result]]
    failures: Sequence[Mapping[str, Any]]

    @property
    def is_complete(self) -> bool:
        """True if every run has finished or failed; parts of a shard may not have yet."""
        done = sum(map(len, self.results.values())) + len(self.failures)
        return done == len(self.results) * self.plan.seeds

    @property
    def exit_code(self) -> int:
        """The exit code of the first run that failed; 0 if none did."""
        return int(self.failures[0]["exit_code"]) if self.failures else 0

    @property
    def mean_scores(self) -> dict[str, float]:
        """{contender: the mean over seeds of its primary metric}."""
        return {
            name: float(np.mean([run.record["score"] for run in runs]))
            for name, runs in self.results.items()
            if runs
        }

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in self.mean_scores.items())
        plan = self.plan
        return f"Comparison({plan.task}: {plan.primary_metric} {scores}; {self.folder})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{len(self.results[name])}</td>"
            f"<td>{score:.4f}</td></tr>"
            for name, score in self.mean_scores.items()
        )
        head = f"<th>model</th><th>seeds</th><th>{html.escape(self.plan.primary_metric)}</th>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of a run of the comparison in `folder`."""
    return folder / RUNS / f"{name}-{seed}"


def read(folder: str | Path) -> Comparison:
    """Read the finished runs of the comparison in `folder`.

    Raises:
        DamagedError: A file of the comparison cannot be read.
    """
    path = user_path(folder, "folder")
    plan = Plan.read(path)
    results: dict[str, list[Result]] = {one.name: [] for one in plan.contenders}
    failures = []
    for name in results:
        for seed in range(plan.seeds):
            home = run_folder(path, name, seed)
            record = read_result(home)
            if record is not None and record["status"] == "done":
                results[name].append(_with_grades(home, record))
            elif record is not None:
                failures.append(record)
    return Comparison(path, plan, results, failures)


def read_result(home: Path) -> dict[str, Any] | None:
    """Read the result.json of a run; None if the run is not finished.

    Raises:
        DamagedError: It has changed since it was written, or the folder is a link.
    """
    file = home / RESULT
    if not (own_folder(home.parent) and own_folder(home)):
        return None
    try:
        record = read_with_digest(file, {"status": str, "model": str, "seed": (int, NoneType)})
    except FileNotFoundError:
        return None
    if record["status"] not in ("done", "failed"):
        raise DamagedError(f"{file} must hold the result of a run, with its status")
    return record


def write_result(home: Path, record: Mapping[str, Any]) -> None:
    """Write the result.json of a run; its folder is created if it is missing."""
    own_folder(home.parent, make=True)
    own_folder(home, make=True)
    write_file(home / RESULT, with_digest(record))


def failure(error: Exception) -> dict[str, Any]:
    """Return the content of result.json of a run that ended with this error."""
    message = " ".join(str(error).split()) if isinstance(error, ThinkersError) else describe(error)
    text = f"{type(error).__name__}: {message}"[:500]
    return {"status": "failed", "error": text, "exit_code": exit_code(error)}


def write_grades(
    home: Path, grades: Mapping[Steps, np.ndarray], points: np.ndarray, questions: np.ndarray
) -> str:
    """Write the arrays of a `Result` beside its result.json; return their SHA-256 for it."""
    buffer = io.BytesIO()
    arrays = {f"steps_{k}": x for k, x in grades.items()}
    arrays |= {"points": points, "questions": questions}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(home / GRADES, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _with_grades(home: Path, record: Mapping[str, Any]) -> Result:
    file = home / GRADES
    try:
        content = read_file(file, LARGEST_GRADES)
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing, which holds the grades of a run") from None
    if hashlib.sha256(content).hexdigest() != record.get("grades"):
        raise DamagedError(f"{file} has changed since it was written: its SHA-256 differs")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            size = sum(entry.file_size for entry in found.zip.infolist())
            if size > LARGEST_GRADES:
                raise ValueError(f"they take {size} bytes, at most {LARGEST_GRADES} are read")
            grades: dict[Steps, np.ndarray] = {
                "due" if k == "due" else int(k): found[f"steps_{k}"] for k in record["scores"]
            }
            return Result(record, grades, found["points"], found["questions"])
    except Exception as error:  # of zip, zlib or numpy, which raise many kinds
        raise DamagedError(f"{file} must hold the grades of a run: {error}") from None
