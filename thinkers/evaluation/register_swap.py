"""Answers with the register states of another question: a test of what answers are read from."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from thinkers.errors import usage_error
from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch
from thinkers.models.generation import Cached, check_call, choosable, eval_mode, ids_below
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.tasks.answers import true_answers
from thinkers.tasks.number_tokens import DIGITS
from thinkers.tasks.worked_task import WorkedTask


@dataclass(frozen=True)
class Swap:
    """Accuracy of answers whose rows have the register states of others.

    Args:
        own: Share of answers that are right for the row itself.
        other: Share of answers that are right for the row whose registers it has.
        followed: For each place of the answer, the units first: share of the digits that are the
            other row's, among those in which the two right answers differ.
        kept: Share of these digits that are the row's own.
    """

    own: float
    other: float
    followed: list[float]
    kept: list[float]


def swap_registers(
    model: Model, task: WorkedTask, batch: Batch, num_steps: int | None = None
) -> Swap:
    """Answer each question of a batch with the register states of the next row.

    Args:
        batch: Questions whose prompts have equal numbers of tokens.
    """
    others = torch.arange(len(batch)).roll(-1)
    length = task.max_answer_length()
    right = true_answers(batch, length)
    found = answer_with_registers(model, task, batch, others, num_steps)
    digits = (right >= 0) & (right < len(DIGITS))
    differ = digits & digits[others] & (right != right[others])
    places = differ.any(0)
    count = differ.sum(0)[places]
    followed, kept = (
        (((found == x) & differ).sum(0)[places] / count).tolist() for x in (right[others], right)
    )
    own, other = (task.is_exact(found, x).double().mean() for x in (right, right[others]))
    return Swap(float(own), float(other), followed, kept)


def answer_with_registers(
    model: Model,
    task: WorkedTask,
    batch: Batch,
    others: Int[Tensor, " b"],
    num_steps: int | None = None,
) -> Int[Tensor, "b n"]:
    """Answer questions, each with the register states of row `others` of the batch.

    The keys and values of all registers, the last one apart, in all layers and at all steps are
    replaced: later tokens read nothing else of them. The last register, which predicts the first
    token of the answer, is the row's own.

    Raises:
        UsageError: The task has no registers, prompts differ in their number of tokens, or the
            model keeps no keys of registers.
    """
    assert batch.prompt_lengths is not None
    lengths = batch.prompt_lengths.unique().tolist()
    if not task.registers or len(lengths) > 1:
        raise usage_error(
            f"prompts of {lengths[0]} .. {lengths[-1]} tokens"
            if task.registers
            else "a task without registers",
            "registers at the same positions in all rows",
            "choose a task with registers, and operands of one width or blanks",
        )
    count, room = len(task.registers) - 1, task.max_answer_length()
    prompts = batch.tokens[:, : lengths[0] - 1].to(next(model.parameters()).device)
    given = torch.full_like(prompts[:, 0], prompts.shape[1])
    answer = torch.full((len(batch), room), IGNORED)
    with eval_mode(model), ids_below(task.num_output_tokens):
        rows, given, steps = check_call(model, prompts, room + 1, num_steps, given)
        writer = Cached(model, rows, given, steps, True, room + 1)
        if not isinstance(writer.cache, KeyValueCache):
            raise usage_error(
                f"a cache of type {type(writer.cache).__name__}",
                "one that holds the keys and values of each token",
                "choose a decoder or a looped model",
            )
        held = slice(prompts.shape[1] - count, prompts.shape[1])
        data = writer.cache.data
        data[..., held, :] = data[:, :, others.to(data.device)][..., held, :]
        tokens = torch.full_like(prompts[:, 0], task.registers[-1])
        for place in range(room):
            writer.write(tokens)
            tokens = choosable(writer.logits()).argmax(-1)
            answer[:, place] = tokens.cpu()
    return answer
