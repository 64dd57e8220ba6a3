"""Shards of a comparison: parts of its runs, made by processes that share its folder alone.

Whoever comes first writes the plan; the others wait for it, and take it. Each run has a lock of its
own, and its result is a file of its own, so that the parts need not speak to each other.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from thinkers.comparison.plan import Plan
from thinkers.errors import LockedError, UsageError, usage_error
from thinkers.files import exists
from thinkers.runs import folder as run_folder

T = TypeVar("T")
WAIT, AGAIN = 600.0, 0.5
"""Seconds to wait for a part that writes the plan or the page, and between two looks."""


@dataclass(frozen=True)
class Shard:
    """Part `number` of 1 .. `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str, lrs: Sequence[float]) -> "Shard":
        """Return the shard of a text such as 2/8.

        Raises:
            UsageError: The text is of another form, or learning rates are to be searched.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text) if isinstance(text, str) else None
        number, count = (int(x) for x in found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise usage_error(
                f"--shard {text}", "I/N with I from 1 to N", "write such as --shard 1/4"
            )
        if lrs:
            raise usage_error(
                "--shard with --lrs",
                "one of them: every part would search the rates again",
                "search the rates in a comparison of its own",
            )
        return cls(number, count)

    def share(self, jobs: Sequence[T]) -> Sequence[T]:
        """Return the jobs of this part: every N-th."""
        return jobs[self.number - 1 :: self.count]

    def plan(self, folder: Path, plan: Plan | None, asked: Mapping[str, Any]) -> Plan:
        """Write the plan of the comparison, or read that of the part that came first.

        Args:
            plan: The plan that was asked for; None to continue what is there.

        Raises:
            UsageError: The folder holds something else, or a comparison with other settings.
        """
        while True:
            if plan is None or exists(folder / run_folder.RECORD):
                return Plan.read(folder).extended(**asked)
            with _owned_in_turn(folder) as is_new:
                if is_new:
                    plan.write(folder)

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Let one part at a time write the page."""
        if self == WHOLE:
            yield
            return
        with _owned_in_turn(folder):
            yield


WHOLE = Shard(1, 1)


@contextmanager
def _owned_in_turn(folder: Path) -> Iterator[bool]:
    """Own the folder of a comparison, once other parts have left it; yield True if it is new."""
    end = time.monotonic() + WAIT
    with ExitStack() as stack:
        while True:
            is_new = not exists(folder / run_folder.RECORD)
            try:
                stack.enter_context(run_folder.owned(folder, new=is_new))
                break
            except LockedError:
                if time.monotonic() > end:
                    raise
            except UsageError:
                # Another part has written the plan since: then the folder is not new.
                if not is_new or not exists(folder / run_folder.RECORD):
                    raise
            time.sleep(AGAIN)
        yield is_new
