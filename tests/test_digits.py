"""The example of images: handwritten digits that were held out are read."""

import runpy

import pytest
from paths import ROOT

import thinkers

pytestmark = pytest.mark.extras
pytest.importorskip("sklearn")


def test_held_out_digits_are_read_by_a_thinker(tmp_path, monkeypatch):
    for registry in (thinkers.MODELS, thinkers.TASKS):
        for name in ("image_thinker", "digits"):
            monkeypatch.setitem(registry, name, None)
            monkeypatch.delitem(registry, name)
    example = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    run = thinkers.train(example["config"](), tmp_path / "a")
    (row,) = thinkers.evaluate(run.folder, num_steps=[2])
    assert run.scores["exact"] >= 0.95 and row["exact"] >= 0.94
    task = thinkers.open_run(run.folder)[1]
    splits = [set(task.order[x]) for x in example["PLACES"].values()]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 1797
