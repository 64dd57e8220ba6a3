"""Commands in forks of one process that has imported everything; nothing here runs by itself."""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser of a process imports it

import thinkers
from thinkers.cli.main import console
from thinkers.runs import checkpoint


class Command:
    """A `thinkers` command in a forked process and session of its own, which prints into a file.

    Args:
        begin: A pipe; the command begins once its second end is closed. None to begin at once.
    """

    def __init__(self, arguments: Sequence[str], log: Path, begin: tuple[int, int] | None = None):
        self.log = log
        self.code: int | None = None
        self.usage: resource.struct_rusage | None = None
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            os.setsid()
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if begin is not None:
                os.close(begin[1])
                os.read(begin[0], 1)
            os._exit(_run(arguments))

    def ends_within(self, seconds: float) -> bool:
        """Wait, and return True if the command ended within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            process, status, usage = os.wait4(self.process, os.WNOHANG)
            if process:
                self.code, self.usage = os.waitstatus_to_exitcode(status), usage
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.002)
        return self.code is not None

    def send(self, number: int) -> None:
        os.kill(self.process, number)

    def kill(self) -> None:
        """Kill the command, and wait until it has ended."""
        self.send(signal.SIGKILL)
        self.ends_within(60)

    def left(self) -> list[int]:
        """Return the processes of its session that are still there."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # The session is the fourth field after the name; a zombie has ended.
            if fields[3] == str(self.process) and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def output(self) -> str:
        return self.log.read_text()

    def acknowledged(self) -> int:
        """The newest update that the command reported as saved, 0 if there is none."""
        return max(map(int, re.findall(r"^saved update=(\d+)$", self.output(), re.M)), default=0)


def _run(arguments: Sequence[str]) -> int:
    """Run a command as the installed script does, and return its exit code."""
    sys.argv = ["thinkers", *arguments]
    code: object = 1
    try:
        console()
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # of a signal before or after the work
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        pass  # the command has closed it
    return code if isinstance(code, int) else 1


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return thinkers.load(folder).state_dict()


def differences(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors and files at the end of a run that are not equal bit for bit."""
    a, b = (checkpoint.read(checkpoint.saved(x / "checkpoints")[-1]) for x in (ours, theirs))
    found = [
        f"{file}/{name}"
        for file, tensors in b.tensors.items()
        for name, x in tensors.items()
        if not torch.equal(a.tensors[file][name], x)
    ]
    found += [n for n, x in weights(theirs).items() if not torch.equal(weights(ours)[n], x)]
    lines = [
        re.sub(r'"minutes": [^,}]+', "", (run / "metrics.jsonl").read_text())
        for run in (ours, theirs)
    ]
    return found + ["metrics.jsonl"] * (lines[0] != lines[1])
