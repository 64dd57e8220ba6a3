"""status.json of a run: the exit code, rank, update and message of the first rank that failed.

A launcher such as torchrun ends with code 1 whatever happened, and the ranks that lose a peer fail
after it with errors of their own.
"""

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from thinkers.errors import ThinkersError, describe, exit_code
from thinkers.files import is_folder, unlink, write_once
from thinkers.runs.folder import STATUS
from thinkers.strict_json import to_json
from thinkers.training.distributed import Ranks
from thinkers.training.state import TrainState


class FailureRecord:
    """While entered, write status.json if an error ends a run of several ranks.

    The first failure stays; `clear` removes it when the run is started again. Ranks on a computer
    that does not see the folder write nothing.

    Args:
        state: The state of the training, once there is one, for the number of updates made.
    """

    def __init__(self, folder: Path, ranks: Ranks):
        self._folder, self._ranks = folder, ranks
        self.state: TrainState | None = None

    def __enter__(self) -> "FailureRecord":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Without this the model would outlive the process group.
        update, self.state = 0 if self.state is None else self.state.update, None
        if error is None or self._ranks.world == 1:
            return
        own = isinstance(error, ThinkersError)
        record = {
            "code": exit_code(error),
            "rank": self._ranks.rank,
            "step": update,
            "message": str(error) if own else f"{type(error).__name__}: {describe(error)}",
        }
        # The error that ends the run is the one to report, also if this file cannot be written.
        with suppress(OSError):
            if is_folder(self._folder):
                write_once(self._folder / STATUS, to_json(record), str(self._ranks.rank))


def clear(folder: Path) -> None:
    """Remove the status.json of an earlier start."""
    unlink(folder / STATUS)
