"""Faults of the system calls that SQLite makes: a death, or an error, at each in turn.

strace fails the Nth call of a forked process. Weights need no such test: safetensors makes bytes of
them, which `thinkers.files` writes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import count as numbers
from pathlib import Path

import pytest
from fault_cases import CASES, Research, Search
from fault_store_cases import Memory
from faulty_disk import Ended, end_of, quick_folder

CALLS = "pwrite64,ftruncate,fsync,fdatasync"
ENDS = {"signal=KILL": (-signal.SIGKILL,), "error=EIO": (0, 6), "error=ENOSPC": (0, 6)}
NATIVE = [x for x in CASES if issubclass(x, Memory) or x in (Search, Research)]
MOST = 1000
"""Calls that no operation here makes as many of."""


def traced(act, inject, folder):
    """Call a function in a forked process that strace fails.

    Returns:
        Its exit code, what it printed, and True if a call of it was failed.
    """
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.kill(os.getpid(), signal.SIGSTOP)  # until it is traced
            ended = end_of(act)
            (folder / "said").write_text(f"{ended.said}{ended.text}")
            code = ended.code
        finally:
            os._exit(code)
    os.waitpid(process, os.WUNTRACED)
    words = ["strace", "-f", "-qq", "-o", folder / "trace", "-e", f"trace={CALLS}"]
    tracer = subprocess.Popen([*words, "-e", f"inject={CALLS}:{inject}", "-p", str(process)])
    status = Path(f"/proc/{process}/status")
    while not re.search(r"^TracerPid:\t[1-9]", status.read_text(), re.M):
        if tracer.poll() is not None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            pytest.skip("strace may not trace other processes here")
        time.sleep(0.002)
    os.kill(process, signal.SIGCONT)
    _, ended = os.waitpid(process, 0)
    tracer.wait()
    said = (folder / "said").read_text() if (folder / "said").exists() else ""
    trace = (folder / "trace").read_text()
    return os.waitstatus_to_exitcode(ended), said, "INJECTED" in trace or "SIGKILL" in trace


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("fault", ENDS)
@pytest.mark.parametrize("kind", NATIVE, ids=lambda x: x.name)
def test_no_fault_of_a_call_of_sqlite_loses_what_was_acknowledged(kind, fault):
    case, wrong, tried = kind(), [], 0
    with tempfile.TemporaryDirectory(dir=quick_folder()) as place:
        begun = Path(place) / "begun"
        begun.mkdir()
        case.begin(begun)
        for number in numbers(1):
            place_of_one = Path(place) / str(number)
            place_of_one.mkdir()
            folder = shutil.copytree(begun, place_of_one / "tried")
            inject = f"{fault}:when={number}"
            code, said, is_hit = traced(lambda x=folder: case.act(x), inject, place_of_one)
            if not is_hit or number > MOST:
                break
            tried += 1
            problems = [] if code in ENDS[fault] else [f"code {code}"]
            # What is printed before a death is lost with it: at most the operation is done.
            problems += lost(case, folder, code)
            again = end_of(lambda x=folder: case.again(x))
            problems += [f"again: {again.text}"] if again.code else []
            wrong += [f"{fault} at {number}: {x}; {said}" for x in problems]
            shutil.rmtree(place_of_one)
    print(f"{case.name}: {fault} at {tried} calls")
    assert wrong == [] and 3 < tried < MOST


def lost(case, folder, code):
    """Return what is lost of what was there before, or of a call that said it was done."""
    done = "done\nkept\nbegun\n" if code == 0 else ""
    return case.lost(folder, Ended(code, "", done))
