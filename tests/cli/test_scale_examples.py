"""The scripts of examples/scale, run by the shell with stand-ins that print their words."""

import subprocess

import pytest
import yaml
from paths import ROOT

from thinkers.cli import main
from thinkers.cli.parser import command_line

SCALE = ROOT / "examples" / "scale"
SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_NNODES": "2"}


@pytest.fixture
def words(tmp_path):
    """Run a script; return the words of the command that it calls at the end."""
    for name in ("thinkers", "srun", "scontrol"):
        stand_in = tmp_path / name
        stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        stand_in.chmod(0o755)

    def run(script):
        variables = SLURM | {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "a[1-2]"}
        command = ["bash", "-c", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("name", ["compare.slurm", "sky.yaml"])
def test_their_comparison_has_flags_that_exist(name, words):
    text = (SCALE / name).read_text()
    own, settings = main.split(words(yaml.safe_load(text)["run"] if "yaml" in name else text))
    options = command_line()[0].parse_args(own)
    assert (options.verb, options.task, settings) == ("compare", "add", [])
    assert options.shard == ("3/8" if name == "compare.slurm" else None)


def test_the_training_begins_or_is_resumed(words, tmp_path):
    script = (SCALE / "train.slurm").read_text()
    called = words(script)
    own, settings = main.split(called[called.index("thinkers") + 1 :])
    assert settings == ["--task.path=input.txt", "--training.sharding=full"]
    assert command_line()[0].parse_args(own).recipe == "shakespeare/looped"
    (tmp_path / "runs" / "large").mkdir(parents=True)
    (tmp_path / "runs" / "large" / "config.json").touch()
    assert words(script)[-3:] == ["train", "--resume", "runs/large"]
