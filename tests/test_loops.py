"""Loops of others over `thinkers.collate` and `model.loss`: their updates are those of torch."""

import dataclasses
import runpy

import pytest
import torch
from paths import ROOT
from torch.utils.data import DataLoader

import thinkers

pytestmark = pytest.mark.extras
UPDATES, ROWS = 23, 7


@pytest.fixture
def loader():
    """Batches of unequal width, in a fixed order, the last one smaller."""
    task = thinkers.build_task("copy", max_length=3)
    rows = [task.batch(i, 1) for i in range(UPDATES * ROWS - 3)]
    data = [
        dataclasses.replace(x, tokens=x.tokens[:, : x.lengths], targets=x.targets[:, : x.lengths])
        for x in rows
    ]
    assert len({x.tokens.shape[1] for x in data}) > 2
    return DataLoader(data, batch_size=ROWS, collate_fn=thinkers.collate)


def new_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": thinkers.build_task("copy").vocab_size, "max_length": 16}
    settings = {"dim": 8, "num_heads": 2, "num_layers": 1, "num_steps": 2}
    return thinkers.build_model("looped", **sizes, **settings).double()


def by_torch(loader) -> tuple[thinkers.Model, list[float]]:
    """The obvious loop."""
    model = new_model()
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for batch in loader:
        loss = model.loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def by_lightning(loader, folder):
    pytest.importorskip("lightning")
    example = runpy.run_path(str(ROOT / "examples" / "lightning_training.py"))
    model, losses = new_model(), []
    step = example["Training"].training_step

    def watched(self, batch, index):
        losses.append(step(self, batch, index))
        return losses[-1]

    example["Training"].training_step = watched
    example["train"](model, loader)
    return model, [x.item() for x in losses]


def by_accelerate(loader, folder):
    pytest.importorskip("accelerate")
    example = runpy.run_path(str(ROOT / "examples" / "accelerate_training.py"))
    model = new_model()
    return model, example["train"](model, loader)


# Lightning uses a deprecated class of torch, and asks for workers and a logger.
@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning", "ignore::UserWarning:lightning.pytorch"
)
@pytest.mark.parametrize("way", [by_lightning, by_accelerate])
def test_their_weights_are_those_of_a_loop_in_torch(way, loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (expected, plain), (found, losses) = by_torch(loader), way(loader, tmp_path)
    assert len(losses) == UPDATES and losses == plain
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not list(tmp_path.iterdir())
