"""Evaluation of models that read documents: every pass over held-out rows has their blocks."""

import pytest
import torch

from thinkers.comparison.one_run import usual_steps
from thinkers.errors import UsageError
from thinkers.evaluation.by_step import accuracy_by_step
from thinkers.evaluation.evaluate import evaluate, find_fall
from thinkers.evaluation.halting import measure_effort
from thinkers.models.decoder import Decoder
from thinkers.models.documents import step_counts_of
from thinkers.models.thinker import Thinker
from thinkers.tasks import build_task

SIZES = {"dim": 16, "num_heads": 2, "num_layers": 1}
TASK = build_task("facts", num_sections=4, questions=3, hops=2)


def built(seed=0, **own):
    torch.manual_seed(seed)
    config = Thinker.Config(
        vocab_size=TASK.vocab_size,
        max_length=TASK.max_length,
        num_latents=2,
        num_steps=4,
        memory="blocks",
        memory_section=8,
        mixing=4,
        tie_head=False,
        **SIZES,
        **own,
    )
    model = Thinker(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # far from the start, where all rows are alike
    return model


def rows_of(number):
    """Each held-out question as a batch of its own."""
    for batch in TASK.evaluation_batches("test", number):
        yield from (batch.rows(slice(i, i + 1)) for i in range(len(batch)))


def read(model, row, memory=True, **options):
    blocks = {"memory": model.blocks_of(row)} if memory else {}
    with torch.no_grad():
        return model(
            row.tokens, lengths=row.lengths, prompt_lengths=row.prompt_lengths, **blocks, **options
        )


def test_scores_and_accuracy_by_step_are_those_of_each_row_alone():
    model = built()
    rows = list(rows_of(40))
    alone = [read(model, row).logits[0, row.lengths[0] - 1] for row in rows]
    right = torch.stack([x[: TASK.num_output_tokens] for x in alone]).argmax(-1)
    truth = torch.tensor([row.targets.max() for row in rows])
    assert torch.equal(TASK.grade(model, num_examples=40), (right == truth).double())
    without = [read(model, row, memory=False).logits[0, row.lengths[0] - 1] for row in rows]
    assert not torch.allclose(torch.stack(alone), torch.stack(without))
    found = accuracy_by_step(model, TASK.evaluation_batches("test", 40))
    of_any = (torch.stack(alone).argmax(-1) == truth).double()
    for length in (3, 4):
        own = of_any[torch.tensor([int(row.lengths[0]) == length for row in rows])]
        assert found[-1, length - 1] == pytest.approx(float(own.mean()))


def test_tokens_halt_by_what_was_read():
    model = built(halting=True)
    rows = list(rows_of(30))
    differ = False
    for halt in (0.2, 0.5, 0.8):
        effort = measure_effort(model, TASK, "test", 30, None, halt)
        steps = [[int(read(model, x, m, halt=halt).steps.sum()) for x in rows] for m in (1, 0)]
        assert effort.steps.tolist() == steps[0]
        differ |= steps[0] != steps[1]
    assert differ


def test_policies_choose_by_what_was_read():
    model = built(policy=True)
    effort = measure_effort(model, TASK, "test", 30, None, "policy")
    ends = [(row, int(row.prompt_lengths[0]) - 1) for row in rows_of(30)]
    steps = [[int(read(model, x, m, policy=True).steps[0, i]) for x, i in ends] for m in (1, 0)]
    assert effort.steps.tolist() == steps[0]


@pytest.mark.misuse
def test_a_model_without_a_memory_is_refused():
    model = Decoder(Decoder.Config(vocab_size=TASK.vocab_size, max_length=5, **SIZES))
    for call in (
        lambda: TASK.score(model, num_examples=5),
        lambda: accuracy_by_step(model, TASK.evaluation_batches("test", 5)),
    ):
        with pytest.raises(UsageError, match="a batch with sections for decoder without a memory"):
            call()


def test_accuracy_by_step_chooses_among_the_tokens_that_may_be_written():
    model, batches = built(seed=1), list(TASK.evaluation_batches("test", 40))
    choices = TASK.num_output_tokens
    found = accuracy_by_step(model, batches, num_output_tokens=choices)
    last = torch.cat([batch.lengths - 1 for batch in batches])
    shares = found[-1][last.unique()]
    counts = torch.bincount(last)[last.unique()]
    right = TASK.grade(model, num_examples=40).sum()
    assert (shares * counts).sum().round() == right > 0
    any_token = accuracy_by_step(model, batches)[-1][last.unique()]
    assert (any_token * counts).sum().round() < right


def test_documents_are_never_scored_at_one_step():
    model = built()
    assert model.step_counts[0] == 1
    rows = evaluate((model, TASK), num_examples=6)
    assert [row["num_steps"] for row in rows] == [k for k in model.step_counts if k >= 2]
    find_fall((model, TASK), num_examples=6)
    with pytest.raises(UsageError, match="num_steps 1 with a memory"):
        evaluate((model, TASK), num_steps=1, num_examples=6)
    assert usual_steps(model, TASK) == 4
    assert step_counts_of(model, None) == model.step_counts
