"""The guides: the code of each page runs from top to bottom, as a file of the reader's own."""

import re
import runpy
from pathlib import Path

import pytest

import thinkers

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


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.stem)
def test_the_code_of_a_guide_runs(guide, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.DOTALL | re.MULTILINE)
    assert "assert" in blocks[-1] or "assert" in blocks[-2]  # it ends in a result
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "guide.py"
    file.write_text("\n\n".join(blocks))
    runpy.run_path(str(file))


def test_there_are_three_guides():
    assert [page.stem for page in GUIDES] == ["own_input", "own_model", "own_task"]
