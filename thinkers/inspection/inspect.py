"""inspect(run, prompt): predictions, states and attention of each thinking step, as numbers."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.errors import UsageError
from thinkers.evaluation.generate import answer_text, fit_prompt, respond, steps_for
from thinkers.inspection.memory_inspection import Question, inspect_reading
from thinkers.inspection.memory_reading import reading_top
from thinkers.inspection.page import write
from thinkers.inspection.results import Inspection, ReadOut, is_end, token_with_text
from thinkers.memory.parts import Readable, Snapshot, snapshot
from thinkers.models.base import Model
from thinkers.models.generation import eval_mode
from thinkers.models.halt import Halt, check_halt, with_policy
from thinkers.models.memory_option import check_takes_memory
from thinkers.models.thinker_policy import BLOCKS, NONE
from thinkers.models.tools import Tool, check_tools
from thinkers.nn.tracing import AttentionRecord, record_attention
from thinkers.runs.result import RunLike, folder_of, open_with_task
from thinkers.tasks import Task
from thinkers.tasks.tools import find_tools
from thinkers.user_paths import output_file

SHOWN = 5
"""Number of likeliest tokens that are kept for each prediction."""


def inspect(
    run: RunLike,
    prompt: str,
    num_steps: int | None = None,
    out: str | Path | None = None,
    *,
    halt: Halt = None,
    tools: Sequence[str | Tool] = (),
    policy: bool = False,
    memory: Any = None,
    top: int | None = None,
) -> Inspection:
    """Record the thinking steps of a trained model on one prompt; write a page if `out` is given.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Thinking steps; None means those of `answer`.
        out: Path of an HTML page to write, or of JSON if it ends in .json; None writes none.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        tools: Names of tools that the model may call, or tools, as in `answer`.
        policy: Let the model choose the block of each step: see `thinkers.models.thinker_policy`.
        memory: A `LongTermMemory` of the model, or a part of one: which blocks are read at each
            step, and the answer without each of them.
        top: Number of blocks to read at a step; None means the model's `memory_top`.

    Raises:
        UsageError: The prompt is empty or too long, the task cannot read it or has no such tool,
            the model cannot halt so, or cannot read the memory.
    """
    target = None if out is None else output_file(out)
    model, task = open_with_task(run)
    steps = model.check_steps(steps_for(model, task.read_prompt(prompt), num_steps))
    halt = check_halt(model, with_policy(halt, policy))
    found = check_tools(model, find_tools(task, tools))
    given = _memory_of_one_row(model, memory, top)
    with ExitStack() as stack:
        now = None
        if given is not None:
            stack.enter_context(reading_top(model, top))
            now = stack.enter_context(snapshot(given))
        seen = inspect_model(model, task, prompt, steps, folder_of(run), halt, found, now)
    if seen.memory is not None:
        seen = replace(seen, memory=replace(seen.memory, top=top))
    seen = replace(seen, tools=tuple(tools))
    if target is not None:
        write(target, seen)
    return seen


def inspect_model(
    model: Model,
    task: Task,
    prompt: str,
    num_steps: int,
    run: str = "",
    halt: Halt = None,
    tools: Sequence[Tool] = (),
    memory: Snapshot | None = None,
) -> Inspection:
    """Inspect a model, in evaluation mode and without gradient."""
    with eval_mode(model):
        question = read_question(model, task, prompt, num_steps, halt, tools, memory)
        tokens, prompt_length = question.tokens, question.prompt_length
        with record_attention() as record:
            thought = question.think(memory)
        assert thought.states is not None
        reading = None if memory is None else inspect_reading(question, thought, memory)
        taken = torch.full((len(tokens),), num_steps)
        if halt is not None:
            assert thought.steps is not None
            taken = thought.steps[0].cpu()
        attention = _attention(model, record, taken, num_steps, prompt_length, halt)
        others = {
            name: read_out(model, x.reshape(1, -1, *x.shape[-2:]), task.num_output_tokens)
            for name, x in thought.extra.items()
            if x.ndim >= 3 and x.shape[-1] == model.config.dim and x.numel()
        }
        answers = read_out(model, thought.states, task.num_output_tokens)
    states = thought.states[0].double()
    before = torch.cat([states[:1], states[:-1]])
    distance = (states - before).norm(dim=-1)
    plane, explained = principal_plane(states.cpu())
    return Inspection(
        model=model,
        task=task,
        run=run,
        requested_steps=num_steps,
        halt=halt,
        taken=taken,
        blocks=block_names(thought.extra.get("actions")),
        prompt=prompt,
        tokens=tokens,
        prompt_length=prompt_length,
        answer=question.answer,
        answers=answers,
        others=others,
        by_position=model.by_position,
        distance=distance.cpu(),
        moved=(distance / before.norm(dim=-1).clamp(min=1e-12)).cpu(),
        cosine=F.cosine_similarity(states, before, dim=-1).cpu(),
        attention={name: x.cpu() for name, x in attention.items()},
        plane=plane,
        explained=explained,
        memory=reading,
    )


def _memory_of_one_row(model: Model, memory: Any, top: int | None) -> Readable | None:
    """Return the memory, which may be a list of one; None without."""
    check_takes_memory(model, memory)
    if isinstance(memory, list | tuple):
        if len(memory) != 1:
            raise UsageError(f"memory must be that of 1 row, got that of {len(memory)}")
        memory = memory[0]
    if memory is None and top is not None:
        raise UsageError(f"top must be None without a memory, got {top}")
    found: Readable | None = memory
    return found


def block_names(actions: Tensor | None) -> tuple[tuple[str, ...], ...]:
    """Return the names of the blocks that were chosen: for the prompt, or for each section."""
    if actions is None:
        return ()
    rows = actions[0].reshape(-1, actions.shape[-1]).tolist()
    return tuple(tuple(BLOCKS[x] for x in row if x != NONE) for row in rows)


def read_question(
    model: Model,
    task: Task,
    prompt: str,
    num_steps: int,
    halt: Halt,
    tools: Sequence[Tool],
    memory: Snapshot | None,
) -> Question:
    """Let the model answer a prompt, and return what is inspected: a text has no answer."""
    read, room = fit_prompt(model, task, prompt)
    given = model, task, prompt, num_steps, halt, tools
    if read.longest is None:
        return Question(*given, tokens=read.tokens)
    found = respond(model, task, read, room, num_steps, halt, tools, memory)
    text = answer_text(task, prompt, read.begun, found.answer)
    row, begins = found.row, found.prompt_length
    other = token_with_text(task, read.tokens)
    ends = [i for i in range(begins, len(row)) if is_end(task, row[i], other)]
    # The last token of an answer is read by nothing: after it comes no token of the answer.
    is_last = row[begins:] == found.answer and len(row) > begins
    tokens = row[: ends[0]] if ends else row[: len(row) - is_last]
    written = row[begins : ends[0]] if ends else row[begins:]
    return Question(*given, tokens, begins, text, written)


def _attention(
    model: Model,
    record: AttentionRecord,
    taken: Int[Tensor, " t"],
    num_steps: int,
    prompt_length: int | None,
    halt: Halt,
) -> Mapping[str, Float[Tensor, "k t _"]]:
    """Return `Model.attention`; tokens that have halted are not computed, and have weights 0."""
    if halt is not None:
        if type(model).attention is not Model.attention:
            # It reads the record by the layout of a pass in which all tokens take all steps.
            return {}
        for place, (name, step, weights) in enumerate(record.calls):
            live = taken > step
            if weights.shape[:2] == (1, int(live.sum())) and not live.all():
                whole = weights.new_zeros(1, len(taken), weights.shape[2])
                whole[:, live] = weights
                record.calls[place] = name, step, whole
    return model.attention(record, len(taken), num_steps, prompt_length)


def read_out(model: Model, states: Float[Tensor, "1 k t c"], vocab_size: int) -> ReadOut:
    """Predict the next token of the task's vocabulary from these vectors (the logit lens)."""
    chances = model.read_out(states)[0, ..., :vocab_size].double().log_softmax(-1)
    best = chances.topk(min(SHOWN, chances.shape[-1]), -1)
    entropy = -(chances.exp() * chances).nan_to_num(0.0).sum(-1) / math.log(2)
    return ReadOut(best.indices.cpu(), best.values.exp().cpu(), entropy.clamp(min=0).cpu())


def principal_plane(
    states: Float[Tensor, "k t c"],
) -> tuple[Float[Tensor, "k t 2"], tuple[float, float]]:
    """Project the states on two principal components; return also their shares of the variance.

    Components are those over all steps and positions together.
    """
    flat = states.flatten(0, 1)
    flat = flat - flat.mean(0)
    variances, directions = torch.linalg.eigh(flat.T @ flat)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)[:, :2]
    largest = directions.abs().argmax(0, keepdim=True)
    # An eigenvector has no sign of its own: without this, pictures would flip between machines.
    directions = directions * directions.gather(0, largest).sign()
    plane, shares = flat @ directions, variances[:2] / variances.sum().clamp(min=1e-300)
    missing = 2 - plane.shape[1]
    plane, shares = F.pad(plane, (0, missing)), F.pad(shares, (0, missing))
    return plane.unflatten(0, states.shape[:2]), (float(shares[0]), float(shares[1]))
