"""The pipeline in examples/pipeline: its stages run, with and without DVC."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from thinkers.cli import main

HOME = Path(__file__).parents[1] / "examples" / "pipeline"
SMALL = {
    "data": dict(kind=1, num_stories=13, num_held_out=11),
    "train": dict(num_updates=2, seed=3),
    "evaluate": dict(num_steps="1,2"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the pipeline with small settings."""
    shutil.copytree(HOME, tmp_path / "pipeline")
    monkeypatch.chdir(tmp_path / "pipeline")
    given = yaml.safe_load(Path("params.yaml").read_text())
    assert {part: set(own) for part, own in given.items()} == {
        part: set(own) for part, own in SMALL.items()
    }
    Path("params.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path / "pipeline"


def check_results(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert set(scores) == {"1", "2"} and all(0 <= x["exact"] <= 1 for x in scores.values())
    assert "<html" in (folder / "report.html").read_text()[:200]
    record = json.loads((folder / "run" / "config.json").read_text())
    assert record["seed"] == 3 and record["config"]["task"]["kinds"] == [1]


def test_each_stage_runs_as_a_command(here, monkeypatch):
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert list(stages) == ["data", "train", "evaluate", "report"]
    for stage in stages.values():
        for needed in stage["deps"]:
            assert Path(needed).exists()
        text = re.sub(r"\$\{(\w+)\.(\w+)\}", lambda m: str(SMALL[m[1]][m[2]]), stage["cmd"])
        program, *words = shlex.split(text)
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
        else:
            assert program == "thinkers" and main.main(words) == 0
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            assert Path(out if isinstance(out, str) else next(iter(out))).exists()
    check_results(here)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dvc") is None, reason="DVC is not installed")
def test_dvc_repeats_only_the_stages_that_a_change_affects(here):
    def dvc(*words: str) -> str:
        done = subprocess.run(["dvc", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    first = dvc("repro")
    assert first.count("Running stage") == 4
    check_results(here)
    assert "Running stage" not in dvc("repro")
    changed = SMALL | {"evaluate": dict(num_steps="2")}
    Path("params.yaml").write_text(yaml.safe_dump(changed))
    again = dvc("repro")
    assert re.findall(r"Running stage '(\w+)'", again) == ["evaluate"]
    assert set(json.loads(Path("scores.json").read_text())["scores"]) == {"2"}
