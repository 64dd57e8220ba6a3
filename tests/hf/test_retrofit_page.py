"""docs/retrofit.md: its commands and its code run as they stand, with fewer updates."""

import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT

from thinkers.cli.main import main

pytest.importorskip("transformers")
pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("plain_pages")]
PAGE = (ROOT / "docs" / "retrofit.md").read_text()
SHORT = ["--training.num_updates=2", "--training.evaluate_examples=5", "--training.batch_size=4"]


def run(command):
    words = shlex.split(command)[1:]
    if words[0] == "train":
        words += SHORT
    if words[0] == "compare":
        words += ["--budget", "1 update", "--seeds", "1", "--num_examples", "5"]
        words += ["--training.batch_size=4"]
    assert main(words) == 0, command


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    names: dict = {}
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        if kind == "python":
            short = block.replace("num_updates=1000", "num_updates=2, evaluate_examples=5")
            exec(compile(short, "docs/retrofit.md", "exec"), names)
        else:
            for command in block.splitlines():
                run(command)
    assert "12+34=" in capsys.readouterr().out
    assert Path("report.html").exists() and Path("runs/compare-add/report.html").exists()
