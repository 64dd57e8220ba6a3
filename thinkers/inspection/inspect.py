"""inspect(run, prompt): what a model would answer after each thinking step; numbers, and a page."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from thinkers.errors import usage_error
from thinkers.inspection.page import write
from thinkers.inspection.results import Inspection, ReadOut, is_end
from thinkers.models.base import Model
from thinkers.models.generation import eval_mode
from thinkers.nn.tracing import record_attention
from thinkers.runs.result import RunLike, folder_of, open_with_task
from thinkers.tasks import Task

SHOWN = 5
"""How many of the likeliest tokens are kept."""


def inspect(
    run: RunLike,
    prompt: str,
    num_steps: int | None = None,
    out: str | Path | None = None,
) -> Inspection:
    """What a trained model thinks of one prompt, and with `out` a page that shows it.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: How many steps to think; None is what the model usually takes.
        out: Where the page goes, one HTML file.
    """
    model, task = open_with_task(run)
    with eval_mode(model):
        seen = look(model, task, prompt, model.check_steps(num_steps), folder_of(run))
    if out is not None:
        write(out, seen)
    return seen


def look(model: Model, task: Task, prompt: str, num_steps: int, run: str = "") -> Inspection:
    """The inspection of a model in evaluation mode."""
    given = task.encode(prompt)
    if not given:
        raise usage_error(
            "an empty prompt", "a question such as 12+34=, or the beginning of a text", "write one"
        )
    most = model.config.max_length - (task.max_answer_length() is not None)
    if len(given) > most:
        raise usage_error(f"a prompt of {len(given)} tokens", f"at most {most}", "shorten it")
    device = next(model.parameters()).device
    row, lengths, said = torch.tensor([given], device=device), None, None
    if (longest := task.max_answer_length()) is not None:
        lengths = torch.tensor([len(given)], device=device)
        room = min(longest, model.config.max_length - len(given))
        answer = model.answer(row, lengths, room, num_steps)[0].tolist()
        said = task.decode(answer)
        ends = [i for i, token in enumerate(answer) if is_end(task, token, given[0])]
        answer = answer[: ends[0] if ends else len(answer)]
        row = torch.cat([row, torch.tensor([answer], dtype=row.dtype, device=device)], 1)
    with record_attention() as watch:
        thought = model(row, num_steps=num_steps, prompt_lengths=lengths, keep_states=True)
    assert thought.states is not None
    attention = model.attention(
        watch, row.shape[1], num_steps, None if lengths is None else len(given)
    )
    states = thought.states[0].double()
    before = torch.cat([states[:1], states[:-1]])
    distance = (states - before).norm(dim=-1)
    plane, explained = principal_plane(states.cpu())
    others = {
        name: x.reshape(1, -1, *x.shape[-2:])
        for name, x in thought.extra.items()
        if x.ndim >= 3 and x.shape[-1] == model.config.dim and x.numel()
    }
    return Inspection(
        model=model,
        task=task,
        run=run,
        asked=num_steps,
        prompt=prompt,
        tokens=row[0].tolist(),
        prompt_length=None if lengths is None else len(given),
        answer=said,
        answers=read_out(model, thought.states),
        others={name: read_out(model, x) for name, x in others.items()},
        by_position=model.by_position,
        distance=distance.cpu(),
        moved=(distance / before.norm(dim=-1).clamp(min=1e-12)).cpu(),
        cosine=F.cosine_similarity(states, before, dim=-1).cpu(),
        attention={name: x.cpu() for name, x in attention.items()},
        plane=plane,
        explained=explained,
    )


def read_out(model: Model, states: Float[Tensor, "1 k t c"]) -> ReadOut:
    """What these vectors would answer."""
    chances = model.read_out(states)[0].double().log_softmax(-1)
    best = chances.topk(min(SHOWN, chances.shape[-1]), -1)
    entropy = -(chances.exp() * chances).nan_to_num(0.0).sum(-1) / math.log(2)
    return ReadOut(best.indices.cpu(), best.values.exp().cpu(), entropy.clamp(min=0).cpu())


def principal_plane(
    states: Float[Tensor, "k t c"],
) -> tuple[Float[Tensor, "k t 2"], tuple[float, float]]:
    """The states along the two directions of their largest variance, and its share along each."""
    flat = states.flatten(0, 1)
    flat = flat - flat.mean(0)
    variances, directions = torch.linalg.eigh(flat.T @ flat)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)[:, :2]
    largest = directions.abs().argmax(0, keepdim=True)
    directions = directions * directions.gather(0, largest).sign()  # else either way round
    plane, shares = flat @ directions, variances[:2] / variances.sum().clamp(min=1e-300)
    missing = 2 - plane.shape[1]
    plane, shares = F.pad(plane, (0, missing)), F.pad(shares, (0, missing))
    return plane.unflatten(0, states.shape[:2]), (float(shares[0]), float(shares[1]))
