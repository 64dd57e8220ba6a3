"""Batches are joined to batches, as the collate_fn of a DataLoader does."""

import pytest
import torch
from model_cases import CASES, ids, tiny
from torch.utils.data import DataLoader, Dataset

import thinkers
from thinkers import Batch, collate


def row(t: int, seed: int, **more) -> Batch:
    return Batch(ids(1, t, seed=seed), ids(1, t, seed=seed + 100), **more)


def test_rows_are_padded_on_the_right_and_lengths_are_set():
    rows = [row(t, t) for t in (5, 2, 7)]
    found = collate(rows)
    assert found.tokens.shape == found.targets.shape == (3, 7)
    assert found.lengths.tolist() == [5, 2, 7]
    assert found.prompt_lengths is None and found.keys is None
    for one, tokens, targets in zip(rows, found.tokens, found.targets, strict=True):
        t = one.tokens.shape[1]
        assert torch.equal(tokens[:t], one.tokens[0]) and not tokens[t:].any()
        assert torch.equal(targets[:t], one.targets[0]) and (targets[t:] == -100).all()


def test_batches_of_several_rows_keep_their_lengths_prompts_and_keys():
    first = Batch(ids(2, 6), ids(2, 6), torch.tensor([3, 2]), torch.tensor([6, 4]), torch.arange(2))
    second = Batch(ids(1, 8), ids(1, 8), torch.tensor([5]), None, torch.tensor([9]))
    found = collate([first, second])
    assert found.lengths.tolist() == [6, 4, 8]
    assert found.prompt_lengths.tolist() == [3, 2, 5] and found.keys.tolist() == [0, 1, 9]
    assert len(found) == 3 and found.tokens.shape == (3, 8)
    again = collate([found])
    for name in ("tokens", "targets", "prompt_lengths", "lengths", "keys"):
        assert torch.equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize("name, own", CASES)
def test_the_loss_of_joined_rows_is_that_of_the_rows(name, own):
    model = tiny(name, own).double()
    rows = [row(t, t, prompt_lengths=torch.tensor([2])) for t in (9, 17, 23)]
    whole = collate(rows)
    counts = model.counts(whole)
    wanted = sum(model.loss(one, counts=counts).total for one in rows)
    torch.testing.assert_close(model.loss(whole).total, wanted, rtol=1e-9, atol=0)


class Rows(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> Batch:
        return row(3 + place, place)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_takes_it(workers):
    loader = DataLoader(Rows(), batch_size=2, collate_fn=thinkers.collate, num_workers=workers)
    found = list(loader)
    assert [batch.lengths.tolist() for batch in found] == [[3, 4], [5, 6], [7]]
    assert tiny("looped").loss(found[0]).total.isfinite()


@pytest.mark.misuse
def test_what_cannot_be_joined_is_refused_with_its_place():
    with pytest.raises(ValueError, match="at least one Batch, got an empty one"):
        collate([])
    with pytest.raises(TypeError, match=r"list of Batches, got int64 \[1, 3\] at 1; let the data"):
        collate([row(3, 0), ids(1, 3)])
    prompted = row(3, 0, prompt_lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match="prompt_lengths must be set in all .* 1 of 2, first at 1"):
        collate([prompted, row(3, 1)])
    with pytest.raises(ValueError, match="keys must be set in all"):
        collate([row(3, 0), row(3, 1, keys=torch.arange(1))])
    with pytest.raises(TypeError, match="got one Batch"):
        collate(row(3, 0))
    one, other = row(3, 0), ids(1, 3)
    for wrong, error, message in (
        (Batch(ids(1, 3)[0], ids(1, 3)[0]), ValueError, r"tokens .* at 1 must have shape \(b, t\)"),
        (Batch(other.float(), other), TypeError, r"tokens .* int64 tensor, got float32 \[1, 3\]"),
        (Batch(other.int(), other), TypeError, r"tokens of the batch at 1 .* got int32"),
        (Batch(other, other.int()), TypeError, r"targets of the batch at 1 .* got int32"),
        (Batch(other, ids(1, 4)), ValueError, r"targets .* shape of tokens \[1, 3\], got \[1, 4\]"),
        (Batch(other.to("meta"), other.to("meta")), ValueError, "cpu at 0 and tokens on meta at 1"),
    ):
        with pytest.raises(error, match=message):
            collate([one, wrong])
    due = [row(3, 0, due=ids(1, t)) for t in (3, 5)]
    with pytest.raises(ValueError, match=r"due of the batch at 1 .* got \[1, 5\]"):
        collate(due)
    long = row(3, 0, lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match=r"lengths of the batch at 1 must be in 1 .. 3, got 4"):
        collate([one, long])
    images = [row(3, 0, extra={"image": torch.zeros(1, n)}) for n in (2, 4)]
    with pytest.raises(ValueError, match="image.*one dtype and shape"):
        collate(images)
