"""What came of a comparison: runs that were judged, read back from its folder."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from thinkers.comparison.plan import Plan
from thinkers.errors import DamagedError
from thinkers.files import read_lines, write_file

RESULTS, PAGE, GRADES = "results.jsonl", "report.html", "grades.npz"


@dataclass(frozen=True)
class Result:
    """A run that was trained and judged.

    Args:
        line: What results.jsonl holds of it.
        grades: {thinking steps: the primary metric of each held-out example}.
        points: The same at the usual number of steps, of each checkpoint in line["curve"].
        questions: Which question each example asks, by its number.
    """

    line: Mapping[str, Any]
    grades: Mapping[int, np.ndarray]
    points: np.ndarray
    questions: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Args:
        results: {contender: its runs that were judged, by seed}.
        failures: The lines of runs that could not be finished.
    """

    folder: Path
    plan: Plan
    results: Mapping[str, Sequence[Result]]
    failures: Sequence[Mapping[str, Any]]

    @property
    def exit_code(self) -> int:
        """0, or what the first run that failed would have ended with."""
        return int(self.failures[0]["exit_code"]) if self.failures else 0


def read(folder: str | Path) -> Comparison:
    """What has been finished of the comparison in `folder`."""
    path = Path(folder)
    plan = Plan.read(path)
    last = {(line["model"], line["seed"]): line for line in read_lines(path / RESULTS)}
    wanted = [(one.name, seed) for one in plan.contenders for seed in range(plan.seeds)]
    found = [last[key] for key in wanted if key in last]
    results: dict[str, list[Result]] = {one.name: [] for one in plan.contenders}
    for line in found:
        if line["status"] == "done":
            results[line["model"]].append(_read_result(path, line))
    failures = [line for line in found if line["status"] == "failed"]
    return Comparison(path, plan, results, failures)


def write_grades(
    home: Path, grades: Mapping[int, np.ndarray], points: np.ndarray, questions: np.ndarray
) -> None:
    buffer = io.BytesIO()
    arrays = {f"steps_{k}": x for k, x in grades.items()}
    arrays |= {"points": points, "questions": questions}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(home / GRADES, buffer.getvalue())


def _read_result(folder: Path, line: Mapping[str, Any]) -> Result:
    file = folder / line["run"] / GRADES
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
            grades = {int(k): found[f"steps_{k}"] for k in line["scores"]}
            number = grades[line["num_steps"]].size
            asked = found["questions"] if "questions" in found else np.arange(number)
            return Result(line, grades, found["points"], asked)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DamagedError(f"{file} must hold the grades of a run: {error}") from None
