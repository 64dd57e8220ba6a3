"""The guides: the code of each page runs from top to bottom, as a file of the reader's own."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import thinkers
from thinkers.cli.main import main

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("own_*.md"))


@pytest.fixture(autouse=True)
def restored_registries():
    """Remove the models, tasks and recipes that a guide adds."""
    registries = (thinkers.MODELS, thinkers.TASKS, thinkers.RECIPES)
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def blocks(guide, kind):
    """The code blocks of a page in this language, "" for commands."""
    return re.findall(rf"^```{kind}\n(.*?)^```", guide.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_as_it_stands(guide, tmp_path, monkeypatch, capsys):
    """Its first block is the file that it names, the others a second one; then its commands."""
    code = blocks(guide, "python")
    assert "assert" in code[-1]  # it ends in a result
    named = re.search(r"`(\w+)\.py`", guide.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if named:
        Path(f"{named[1]}.py").write_text(code[0])
        monkeypatch.delitem(sys.modules, named[1], raising=False)
    Path("second.py").write_text("\n\n".join(code[bool(named) :]))
    runpy.run_path("second.py")
    for line in "".join(blocks(guide, "")).splitlines():
        if line.startswith("thinkers train "):
            words = shlex.split(line)
            short = ["--training.num_updates", "2", "--training.evaluate_examples", "20"]
            assert main([*words[1:], *short, "--out", "by_command"]) == 0, capsys.readouterr().err


def test_there_are_three_guides():
    assert [page.stem for page in GUIDES] == ["own_input", "own_model", "own_task"]
