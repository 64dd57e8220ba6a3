"""Properties of losses and of what is trained: shares add up, all learns, nothing is random."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from thinkers.models import MODELS, load_model
from thinkers.models.base import IGNORED, Batch, Model
from thinkers.testing.helpers import (
    SUMS,
    Rows,
    close,
    device_of,
    draw,
    dtype_of,
    few_steps,
    lesson,
    refused,
)


def losses(model: Model) -> None:
    """The losses and gradients of shares of a batch add up to those of the batch."""
    rows = Rows.draw(model)
    batches: list[tuple[Any, int]] = [(lesson(model), rows.new * len(rows.tokens))]
    if model.causal:
        batches.append((rows.tokens, rows.tokens[:, 1:].numel()))
    else:
        with refused(ValueError, "causal"):
            model.loss(draw(model, (1, 2)))
    for batch, graded in batches:
        whole = _learned(model, batch)
        loss, counts = whole[0], model.counts(batch)
        assert counts["next_token"] == graded, f"{counts} where {graded} tokens are graded"
        assert dict(loss.counts) == counts, f"counts {dict(loss.counts)}, announced {counts}"
        assert loss.parts.keys() == counts.keys(), f"parts {list(loss.parts)}"
        assert loss.total.shape == () and loss.total.isfinite(), f"the total is {loss.total}"
        cut = batch.rows if isinstance(batch, Batch) else batch.__getitem__
        parts = (slice(0, 2), slice(2, 3), slice(3, None))
        shares = [_learned(model, cut(part), counts) for part in parts]
        for part, number in counts.items():
            assert sum(share.counts[part] for share, _ in shares) == number, f"{part} count"
            assert not loss.parts[part].requires_grad, f"{part} has a graph"
            found = torch.stack([share.parts[part] for share, _ in shares]).sum()
            close(found, loss.parts[part], f"{part}", SUMS)
        totals = torch.stack([share.total for share, _ in shares]).sum()
        close(totals, loss.total, "totals", SUMS)
        close(torch.stack([x for _, x in shares]).sum(0), whole[1], "gradients", SUMS)
        correct = torch.cat([share.correct for share, _ in shares])
        assert torch.equal(correct, loss.correct), f"correct: {correct} and {loss.correct}"


def _learned(model: Model, batch: Any, counts: Any = None) -> tuple[Any, Any]:
    """The loss, and all gradients in one vector."""
    model.zero_grad(set_to_none=False)
    loss = model.loss(batch, counts=counts)
    found = torch.autograd.grad(
        loss.total, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return loss, torch.cat([x.flatten() for x in found])


def grading(model: Model) -> None:
    """A row is correct if all its graded tokens are the likeliest; the others do not count."""
    batch = lesson(model)
    likeliest = model(
        batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths
    ).logits.argmax(-1)
    graded = batch.targets != IGNORED
    columns = torch.arange(graded.shape[1], device=graded.device)
    assert batch.lengths is not None
    last = columns == batch.lengths[:, None] - 2
    wrong = (likeliest + 1) % model.config.vocab_size
    right = likeliest.where(columns < batch.lengths[:, None], wrong).where(graded, IGNORED)
    for targets, wanted in ((right, True), (right.where(~last, wrong), False)):
        found = model.loss(dataclasses.replace(batch, targets=targets)).correct
        assert found.dtype == torch.bool and found.shape == (len(targets),), f"{found}"
        assert (found == wanted).all(), f"{found} where all are {wanted}"


def gradients(model: Model) -> None:
    """Every parameter learns from rows of 64 tokens."""
    tokens = draw(model, (3, min(64, model.config.max_length)))
    batch: Any = tokens if model.causal else Batch(tokens, draw(model, tuple(tokens.shape), 1))
    model.zero_grad()
    model.train().loss(batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero"


def repeatability(model: Model) -> None:
    """Two that are built and trained from one seed are the same, bit for bit (on CPUs)."""
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        built = type(model)(model.config).to(dtype_of(model)).train()
        optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
        losses = []
        for update in range(3):
            optimizer.zero_grad()
            loss = built.loss(lesson(built, update)).total
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        runs.append((losses, built.state_dict()))
    assert runs[0][0] == runs[1][0], f"the losses {runs[0][0]} and {runs[1][0]}"
    for name, found in runs[0][1].items():
        assert torch.equal(found, runs[1][1][name]), f"{name} differs"


def saving(model: Model) -> None:
    """What is saved and loaded again is the same, bit for bit."""
    rows = Rows.draw(model)
    for parameter in model.parameters():
        parameter.data += 0.01
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        files = sorted(path.name for path in Path(folder).iterdir())
        assert files == ["config.json", "model.safetensors"], f"the folder holds {files}"
        if MODELS.get(model.name) is type(model):
            again = load_model(folder)
        else:
            found = json.loads((Path(folder) / "config.json").read_text())
            again = type(model)(type(model.config)(**found["config"])).to(dtype_of(model))
            again.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    again = again.to(device_of(model)).eval()
    assert again.config == model.config, f"{again.config} was {model.config}"
    for steps in few_steps(model):
        for prompts in (None, rows.prompts):
            found, wanted = (
                m(rows.tokens, num_steps=steps, prompt_lengths=prompts).logits
                for m in (again, model)
            )
            assert torch.equal(found, wanted), f"the loaded one answers otherwise, {steps} steps"
