"""Callbacks are called after each update, change nothing, and end the run by an error."""

import dataclasses

import pytest
import torch
from training_cases import losses, make

import thinkers
from thinkers.errors import UsageError
from thinkers.training.state import TrainState


def test_a_callback_gets_the_state_and_the_result_of_each_update(tmp_path):
    seen = []

    def watch(state, result):
        assert isinstance(state, TrainState) and state.update == result.update
        seen.append((result.update, result.loss, result.accuracy))

    order = []
    both = [watch, lambda state, result: order.append(len(seen))]
    run = thinkers.train(make(), tmp_path / "a", callbacks=both)
    assert [update for update, *_ in seen] == order == list(range(1, 12))
    assert [loss for _, loss, _ in seen] == losses(run.folder)


def test_a_callback_that_reads_and_draws_changes_no_weight(tmp_path):
    def read(state, result):
        torch.rand(3)
        sum(float(x.detach().norm()) for x in state.model.parameters())

    config = make(dropout=0.3)
    watched = thinkers.train(config, tmp_path / "a", callbacks=[read])
    plain = thinkers.train(config, tmp_path / "b")
    for one, other in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_error_of_a_callback_ends_the_run_which_can_be_resumed(tmp_path):
    class Mine(Exception):
        pass

    def fail(state, result):
        if result.update == 7:
            raise Mine("enough")

    config = make(settings=dict(checkpoint_every=3))
    with pytest.raises(Mine, match="enough"):
        thinkers.train(config, tmp_path / "a", callbacks=[fail])
    assert losses(tmp_path / "a")[-1:]  # the lines of the last updates are kept
    seen = []
    run = thinkers.resume(
        tmp_path / "a", callbacks=[lambda state, result: seen.append(result.update)]
    )
    assert seen == [7, 8, 9, 10, 11]  # from the checkpoint of update 6
    whole = thinkers.train(config, tmp_path / "b")
    assert losses(run.folder) == losses(whole.folder)
    for one, other in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [3, "print", None])
def test_a_callback_that_cannot_be_called_is_refused_before_anything_is_written(tmp_path, wrong):
    for start in (
        lambda: thinkers.train(make(), tmp_path / "a", callbacks=[wrong]),
        lambda: thinkers.resume(tmp_path / "a", callbacks=[wrong]),
    ):
        with pytest.raises(
            UsageError, match=r"callbacks must be functions f\(state, result\), got"
        ):
            start()
    assert not (tmp_path / "a").exists()


def test_a_result_cannot_be_changed(tmp_path):
    def change(state, result):
        result.loss = 0.0

    with pytest.raises(dataclasses.FrozenInstanceError):
        thinkers.train(make(), tmp_path / "a", callbacks=[change])
