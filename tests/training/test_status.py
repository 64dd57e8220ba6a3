"""status.json: the first rank that fails, and what is left of a run that never began."""

import json

import pytest
import torch

from thinkers.errors import NonFiniteError
from thinkers.runs.folder import owned
from thinkers.training import status
from thinkers.training.distributed import Ranks


def fail(folder, rank, error, world=2):
    with pytest.raises(type(error)):
        with status.FailureRecord(folder, Ranks(rank, world, torch.device("cpu"))):
            raise error


def test_the_first_failure_stays_until_the_run_is_started_again(tmp_path):
    fail(tmp_path, 1, NonFiniteError("the loss is nan"))
    fail(tmp_path, 0, RuntimeError("a peer is gone"))
    found = json.loads((tmp_path / "status.json").read_text())
    assert found == {"code": 5, "rank": 1, "step": 0, "message": "the loss is nan"}
    assert [x.name for x in tmp_path.iterdir()] == ["status.json"]
    status.clear(tmp_path)
    status.clear(tmp_path)
    fail(tmp_path, 0, RuntimeError("one process alone needs no file"), world=1)
    fail(tmp_path / "elsewhere", 1, RuntimeError("a computer that does not see the folder"))
    assert list(tmp_path.iterdir()) == []


def test_the_record_of_a_failure_before_the_first_update_does_not_block_its_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError), owned(folder, new=True):
        fail(folder, 1, RuntimeError("no such device"))
        raise RuntimeError("a peer is gone")
    assert json.loads((folder / "status.json").read_text())["rank"] == 1
    with owned(folder, new=True):
        pass
