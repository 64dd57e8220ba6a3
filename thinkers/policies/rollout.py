"""Roll-outs: questions answered under blocks that the policy draws, and what each answer took."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.document_blocks import DocumentBlocks
from thinkers.models.thinker_policy import (
    OUTPUT,
    Choose,
    Decision,
    PolicyThinking,
    likeliest,
)
from thinkers.models.thinker_policy_flops import of_all_steps, of_blocks
from thinkers.models.thinker_recall import BlockThinking, check_memory
from thinkers.models.thinker_sizes import answer_room
from thinkers.prng import mix_tensor, uniform

SMALLEST = 2.0**-60
"""Instead of a drawn 0, which has no logarithm."""


@dataclass(frozen=True)
class Rollout:
    """Answers to questions, each after the blocks that were chosen for it.

    Args:
        logits: Scores of the answer's tokens after each step, or after the last; those of OUTPUT
            stay.
        targets: Tokens of the answer, -100 beyond its end.
        actions: Numbers of the blocks, in the order of `thinkers.models.thinker_policy.BLOCKS`.
        decisions: The choices of each step after the first.
        flops: Operations of each answer by itself.
        full_flops: Operations of the same answer after `max_steps` steps without a policy.
        index: Loss of the index for each row; None without documents, or where nothing learns.
    """

    logits: Float[Tensor, "b k o v"]
    targets: Int[Tensor, "b o"]
    actions: Int[Tensor, "b s"]
    decisions: list[Decision]
    flops: Int[Tensor, " b"]
    full_flops: Int[Tensor, " b"]
    index: Float[Tensor, " b"] | None = None

    @property
    def is_right(self) -> Bool[Tensor, "b k"]:
        """True for rows all of whose answer is right, with the tokens before each given."""
        right = self.logits.detach().argmax(-1) == self.targets[:, None]
        return (right | (self.targets == IGNORED)[:, None]).all(2)


@dataclass(frozen=True)
class Drawn:
    """Draw the block of each row from the policy, as a function of the row's key and the step.

    Args:
        keys: One key per row.
        explore: Probability that a block of thinking is drawn instead, all of them equally likely.
            An answer at a random time would teach the model to guess.
    """

    keys: Int[Tensor, " b"]
    explore: float = 0.0

    def __call__(
        self, scores: Float[Tensor, "r 5"], step: int, rows: Int[Tensor, " r"]
    ) -> Int[Tensor, " r"]:
        drawn = uniform(self.keys[rows], step, (1 + scores.shape[1],), torch.float64)
        explores = drawn[:, :1] < self.explore
        scores = scores.double()
        scores = scores.masked_fill(explores & scores.isfinite(), 0.0)
        scores[:, OUTPUT] = scores[:, OUTPUT].masked_fill(explores[:, 0], -torch.inf)
        # The argmax of scores plus Gumbel noise is a sample of their softmax.
        noise = -(-drawn[:, 1:].clamp(min=SMALLEST).log()).log()
        return (scores + noise).argmax(1)


def roll_out(model: Any, batch: Batch, choose: Choose = likeliest, learns: bool = False) -> Rollout:
    """Answer the questions of a batch, each after the blocks that are chosen for it.

    Questions about documents may choose to RECALL those.

    Args:
        learns: Keep what supervised updates learn from: the logits after each step, and the loss of
            the index, for which RECALL reads all blocks of a document. Otherwise it reads as many
            as in inference.

    Raises:
        UsageError: Not every row is a question with an answer.
    """
    room = question_room(batch)
    steps, live = model.config.num_steps, PolicyThinking(model, None, choose)
    memory: DocumentBlocks | None = model.blocks_of(batch)
    check_memory(model, memory, len(batch), steps)
    top = None if learns else model.config.memory_top
    thinking = None if memory is None else BlockThinking(model, memory, live, top)
    states, _, answers = model.answer_states(batch, room, steps, learns, thinking=thinking or live)
    index = None
    if learns and thinking is not None:
        assert thinking.reading is not None
        index = thinking.reading.index_loss(steps)
    assert batch.prompt_lengths is not None
    sizes = batch.prompt_lengths.cpu(), rooms_of(answers.targets).cpu()
    known = None if memory is None else memory.counts()
    return Rollout(
        model.read_out(states),
        answers.targets,
        live.actions,
        live.decisions,
        of_blocks(model, live.actions, *sizes, known),
        of_all_steps(model, model.config.max_steps, *sizes, known),
        index,
    )


def rooms_of(targets: Int[Tensor, "b o"]) -> Int[Tensor, " b"]:
    """Return the positions of each answer, up to its last target; a tool's result has none."""
    places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return places.where(targets != IGNORED, 0).amax(1)


def question_room(batch: Batch) -> int:
    """Return the positions of the longest answer of a batch.

    Raises:
        UsageError: Not every row is a question with an answer.
    """
    prompts = batch.prompt_lengths
    room = 0 if prompts is None else answer_room(batch.targets, prompts)
    if not room:
        raise usage_error(
            "rows that are graded before their prompt ends, or that have none",
            "questions with answers, at whose ends a policy decides",
            "choose a task of questions, such as mixed, add or cups with task.targets last",
        )
    return room


def repeated(batch: Batch, times: int) -> Batch:
    """Return each row `times` times in succession, each copy with a key of its own."""
    found = batch.rows(torch.arange(len(batch)).repeat_interleave(times))
    return replace(found, keys=group_keys(keys_of(found), times))


def keys_of(batch: Batch) -> Int[Tensor, " b"]:
    """Return the keys of a batch, from which blocks are drawn.

    Raises:
        UsageError: It has none.
    """
    if batch.keys is None:
        raise UsageError(
            "keys of the batch must be set to draw roll-outs, got None; let the task give one for "
            "each row, as thinkers.prng.row_keys does"
        )
    return batch.keys


def group_keys(keys: Int[Tensor, " b"], times: int) -> Int[Tensor, " b"]:
    """Return distinct keys for the `times` copies of each key in succession."""
    numbers = torch.arange(len(keys), device=keys.device) % times
    return mix_tensor(keys + mix_tensor(numbers))
