"""Files of this and of earlier versions are read as they were, or refused by their format."""

import json
import shutil

import memory_blocks
import pytest
import torch

import thinkers
from thinkers.comparison import plan, results
from thinkers.errors import FormatError
from thinkers.memory import rows
from thinkers.memory.sqlite import SqliteStore
from thinkers.models import base
from thinkers.research import ledger
from thinkers.runs import checkpoint
from thinkers.runs import folder as run_folder
from thinkers.training.loop import resume

from paths import ROOT  # isort: skip

STORED = ROOT / "tests" / "runs" / "stored"
FORMATS = {
    "run": run_folder.FORMAT,
    "comparison": plan.FORMAT,
    "memory": rows.FORMAT,
    "ledger": ledger.FORMAT,
}


def read_run(folder, expected):
    model, task = thinkers.open_run(folder)
    with torch.no_grad():
        found = model(torch.tensor([task.encode("3+4=")])).logits[0, -1]
    assert torch.allclose(found, torch.tensor(expected["logits"]), atol=1e-4)
    newest = checkpoint.newest(folder / "checkpoints")
    assert checkpoint.read(newest).update == expected["update"]
    resume(folder, num_updates=3)
    assert checkpoint.saved(folder / "checkpoints")[-1].name == "00000003"


def read_comparison(folder, expected):
    assert results.read(folder).mean_scores == expected["scores"]


def read_memory(folder, expected):
    state, store = memory_blocks.State(), SqliteStore(folder)
    for operation in expected["operations"]:
        state = state.after(operation)
    assert store.verify() == []
    with store.view() as view:
        assert not memory_blocks.differences(view, state)
    memory_blocks.perform(store, state, {"do": "write", "topic": "a", "count": 2})
    store.close()


def read_ledger(folder, expected):
    with ledger.Ledger(folder) as found:
        assert [x.number for x in found.chain(found.best())] == expected["chain"]
        assert found.judgement() == expected["judgement"]


READERS = {
    "run": read_run,
    "comparison": read_comparison,
    "memory": read_memory,
    "ledger": read_ledger,
}


@pytest.mark.parametrize("name", sorted(x.stem for x in STORED.glob("*.json")))
def test_stored_files_are_read_or_refused_by_their_format(name, tmp_path):
    kind, _, number = name.partition("-")
    folder = shutil.copytree(STORED / name, tmp_path / "copy")
    expected = json.loads((STORED / f"{name}.json").read_text())
    if int(number) == FORMATS[kind]:
        READERS[kind](folder, expected)
        return
    with pytest.raises(FormatError, match=f"format {number}") as caught:
        READERS[kind](folder, expected)
    assert caught.value.exit_code == 4


def test_every_format_of_this_version_is_stored():
    """After a format has changed: python tools/stored_files.py"""
    assert {f"{kind}-{number}" for kind, number in FORMATS.items()} <= {
        x.name for x in STORED.iterdir()
    }
    assert base.FORMAT == run_folder.FORMAT == checkpoint.FORMAT  # stored together
