"""Runs that are killed by SIGKILL lose nothing that was saved."""

import os
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_like_one_that_was_not(kills, tmp_path):
    script = ROOT / "benchmarks" / "kill_resume.py"
    command = [sys.executable, str(script), f"--kills={kills}", "--num_updates=40"]
    command.append(f"--out={tmp_path}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{kills} kills" in found.stdout and "nothing was lost" in found.stdout
