"""Stop requests: repeated signals are ignored, later ones kill the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from thinkers.training.signals import REPEAT_SECONDS, Signals


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_repeated_signals_change_nothing(second):
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(20):
            os.kill(os.getpid(), second)
        assert signals.received() == [True, False]


def test_a_repeated_signal_while_work_is_abandoned_changes_nothing(monkeypatch):
    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    start = time.monotonic()
    with Signals() as signals:
        assert signals.unless_stopped(work) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.unless_stopped(work) is None
    assert time.monotonic() - start < 5


def test_a_later_signal_kills_the_process():
    code = (
        "import os, signal, time\n"
        "from thinkers.training import signals\n"
        "signals.REPEAT_SECONDS = 0.05\n"
        "with signals.Signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.2)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM and done.stdout == "still here\n"
    assert REPEAT_SECONDS == 2.0


def test_work_that_can_be_abandoned_does_not_begin_after_a_signal():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.unless_stopped(lambda: 5) is None
        assert signals.unless_stopped(lambda: 5, allowed=False) == 5
        assert signals.received() == [False, True]
    assert (
        Signals.first_received([0, 2.0]) == signal.SIGTERM and Signals.first_received([0, 0]) == 0
    )
