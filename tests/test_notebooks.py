"""The notebooks: each runs from top to bottom in an empty folder and shows what its text says."""

import os
import re

import pytest
from paths import ROOT

FOLDER = ROOT / "examples" / "notebooks"
INSTALL = """\
# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')
"""
CLAIMS = {
    "first_steps": (
        "answer == '48+69=117'",
        "scores[2] > 0.9 > 2 * scores[1]",
        "by_step[-1] == '117' and len(by_step) == 2",
    ),
    "does_thinking_pay": (
        "comparison.mean_scores['looped'] > comparison.mean_scores['decoder'] + 0.1",
        "all(means['looped'][i] > means['decoder'][i] + 0.2 for i in (3, 4, 5))",
    ),
    "inside_a_thought": (
        "right.min() > 0.95 and len(right) == 2 * STEPS",
        "0.6 < near <= 1.0001",
        "scores['its own'] > 0.95 and max(x.score for x in ablation.effects) < 0.6",
    ),
    "your_own": ("answer == '39170=9'", "run.scores['exact'] > 0.9", "right > 0.8"),
    "halting": (
        "results[0.5]['exact'] > 0.95",
        "results[0.5]['mean_steps'] < 0.75 * STEPS and results[0.5]['flops_share'] < 0.75",
        "sum(abs(steps - swap) for swap, steps in enumerate(taken, 1)) <= 2",
    ),
    "memory": (
        "topics == {'letters': 3, 'diary': 1} and left == {'letters': 3} and cleared == 1",
        "run.scores['exact'] > 0.8 and with_both.endswith('harbour')",
        "without.endswith('attic') and forgotten == without",
        "max(reading.blocks, key=lambda block: block.mass).topic == 'diary'",
        "reading.chance > 0.8 and min(chances) < 0.2",
    ),
}
"""What holds after the last cell of each, by its own names."""
PICTURES = {"does_thinking_pay": 1, "inside_a_thought": 2, "halting": 1, "memory": 1}
"""Figures that each shows."""


@pytest.mark.extras
@pytest.mark.parametrize("name", CLAIMS)
def test_a_notebook_runs_and_shows_what_it_says(name, tmp_path, monkeypatch):
    needed = ("jupytext", "nbclient", "nbformat", "ipykernel")
    jupytext, nbclient, nbformat, _ = (pytest.importorskip(module) for module in needed)
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))  # nothing of it goes into the home
    monkeypatch.delenv("MKL_CBWR", raising=False)  # as a reader's kernel has it; see the Makefile
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = jupytext.read(FOLDER / f"{name}.py")
    shown = len(notebook.cells)
    new_cell = type(notebook.cells[0])
    for claim in CLAIMS[name]:
        cell = {"cell_type": "code", "source": f"assert {claim}", "metadata": {}, "outputs": []}
        notebook.cells.append(
            new_cell(cell, execution_count=None, id=f"claim-{len(notebook.cells)}")
        )
    place = tmp_path / "empty"
    place.mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.execute()  # an error of a cell is one of the test, with the cell and its traceback
    outputs = [x for cell in notebook.cells[:shown] for x in cell.get("outputs", [])]
    assert [x.text for x in outputs if x.get("name") == "stderr"] == []
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) == PICTURES.get(name, 0)


def test_every_notebook_has_claims_and_begins_with_the_same_installation():
    files = {file.stem: file.read_text() for file in FOLDER.glob("*.py")}
    assert set(files) == set(CLAIMS)
    for name, text in files.items():
        first = text.index("# %%\n")
        assert text[first:].startswith(INSTALL), name
        assert text[:first].startswith("# %% [markdown]\n# # "), name


def test_the_page_lists_every_notebook_by_its_title():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    for file in FOLDER.glob("*.py"):
        title = re.search(r"^# # (.*)$", file.read_text(), re.MULTILINE)[1]
        assert f"[{title}](../examples/notebooks/{file.name})" in page
