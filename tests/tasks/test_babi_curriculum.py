"""The curriculum on stories: which questions each stage draws, how often, and its resumption."""

import collections
import json
from dataclasses import replace

import pytest
import torch

import thinkers
from thinkers.comparison import budgets
from thinkers.config.experiment import build
from thinkers.errors import UsageError
from thinkers.recipes.numbers import training_settings
from thinkers.tasks.babi import Babi
from thinkers.training import estimate


@pytest.mark.parametrize("answers", ["written", "chosen"])
def test_half_of_a_stage_is_new_and_one_draw_in_four_is_of_an_earlier_kind(answers):
    own = dict(kinds=(7, 1, 2), num_stories=40, num_held_out=5, answers=answers, whole_kinds=True)
    task = Babi(Babi.Config(curriculum=True, **own), seed=1)
    other = Babi(Babi.Config(curriculum=True, **own), seed=2)
    buckets = {tuple(x.prompt): x.bucket for x in task.examples("train")}
    totals = collections.Counter(buckets.values())
    counts = [sorted({n for kind, n in buckets.values() if kind == k}) for k in range(3)]
    assert len(task.levels) == len(counts[0]) + 2 and min(map(len, counts)) > 3

    def drawn(of):
        found = []
        for update in range(400):
            batch = of.batch(update, 3)
            prompts = zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
            (bucket,) = {buckets[tuple(row[:n])] for row, n in prompts}
            found.append(bucket)
        return found

    for level in task.levels:
        task.difficulty = level
        found = drawn(task)
        kind = max(0, level - len(counts[0]) + 1)
        given = {(0, n) for n in counts[0][: level + 1]}
        given |= {(k, n) for k in range(1, kind + 1) for n in counts[k]}
        assert set(found) <= given
        wanted = [0.25 / max(1, kind)] * kind + [0.75 if kind else 1.0]
        for k, share in enumerate(wanted):
            sizes = {x: totals[x] for x in given if x[0] == k}
            expected = {x: 400 * share * n / sum(sizes.values()) for x, n in sizes.items()}
            if k == kind == 0:  # half of the draws are of what the stage added
                newest = (0, counts[0][level])
                expected = {x: n / 2 + 200 * (x == newest) for x, n in expected.items()}
            assert all(abs(found.count(x) - n) < 5 * n**0.5 for x, n in expected.items() if n > 8)
            assert sum(x[0] == k for x in found) / 400 == pytest.approx(share, abs=0.06)
    other.skip_curriculum()
    assert drawn(other) != found


def test_building_a_task_generates_no_stories(monkeypatch):
    def generate(*_):
        raise AssertionError("stories were generated")

    monkeypatch.setattr("thinkers.tasks.babi.generated_stories", generate)
    for name in ("babi/looped", "babi/thoughtsformer", "babi/thinker"):
        config = thinkers.RECIPES[name]()
        assert config.task.curriculum and Babi(config.task).difficulty == 0


def test_an_estimate_takes_the_last_stage_of_the_curriculum(monkeypatch):
    own = dict(kinds=(1,), num_stories=50, num_held_out=10, curriculum=True)
    task = Babi(Babi.Config(**own))
    task.skip_curriculum()
    assert task.difficulty == 4
    config = thinkers.Config.fit(
        thinkers.MODELS["decoder"], Babi.Config(**own), training_settings(40, batch_size=7), dim=16
    )
    _, model = build(config)
    config = replace(config, model=model.config)
    costs = [model.batch_flops(task.batch(u, 7), 1, training=True) for u in range(32)]
    assert estimate.estimate(config).flops == pytest.approx(sum(costs) / 32)
    assert budgets.updates_for(config, 100 * sum(costs) / 32) in (100, 101)


def test_stages_go_by_kind_and_number_of_statements_and_resume():
    own = dict(kinds=(2, 1), num_stories=60, num_held_out=10, curriculum=True, window=20)
    task = Babi(Babi.Config(**own), seed=3)
    plain = Babi(Babi.Config(**own | dict(curriculum=False)), seed=3)
    stop, things = task.encode(".")[-1], set(task.encode("apple book coin lamp rope spoon"))

    def bucket(batch):
        """The kind (2 asks for things) and the number of statements that all rows have."""
        pairs = zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True)
        prompts = [row[:n] for row, n in pairs]
        found = {(1 - (p[-2] in things), p.count(stop)) for p in prompts}
        assert len(found) == 1
        return found.pop()

    wanted = sorted({(0, x.prompt.count(stop)) for x in plain.examples("train") if x.bucket[0] < 1})
    wanted += [(1, n) for n in (2, 4, 6, 8, 10)]
    assert wanted[0] == (0, 4) and len(task.levels) == len(wanted)
    for last in range(len(wanted)):
        drawn = [bucket(task.batch(update, 7)) for update in range(200)]
        assert set(drawn) <= set(wanted[: last + 1])
        if wanted[last][0] == 1:
            again = sum(kind == 0 for kind, _ in drawn)
            assert 30 < again < 70 and set(drawn) >= {(1, n) for _, n in wanted[-5 : last + 1]}
        elif last < 5:
            assert set(drawn) == set(wanted[: last + 1])
        state = json.loads(json.dumps(task.state_dict()))
        task.observe(torch.arange(20) < 18)
    assert state["difficulty"] == len(wanted) - 1 == task.difficulty
    sizes = {x.count(stop) for row in [plain.batch(7, 211)] for x in row.tokens.tolist()}
    assert sizes == {2, 4, 6, 8, 10}
    again = Babi(Babi.Config(**own), seed=3)
    again.load_state_dict(state)
    assert torch.equal(again.batch(8, 31).tokens, task.batch(8, 31).tokens)
    short, long = again.batch(8, 13), task.batch(8, 31)
    assert torch.equal(short.keys, long.keys[:13])
    assert torch.equal(short.tokens, long.tokens[:13, : short.tokens.shape[1]])
    assert torch.equal(again.batch(8, 13, "test").tokens, plain.batch(8, 13, "test").tokens)
    with pytest.raises(UsageError, match="difficulty must be an integer in 0"):
        again.load_state_dict(state | {"difficulty": len(wanted)})
    with pytest.raises(UsageError, match="threshold must be above 0"):
        Babi.Config(curriculum=True, threshold=0)
