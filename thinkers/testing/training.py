"""Properties of losses and training: shares of a batch, gradients, reproducibility, saving.

After "Check that", the docstring of a check is the rule that `check_model` reports.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from thinkers.models import MODELS, load_model
from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch, Loss
from thinkers.models.memory_option import has_memory
from thinkers.testing.helpers import (
    SHARE_TOLERANCES,
    Rows,
    call,
    close,
    device_of,
    difference,
    draw,
    dtype_of,
    fewest_and_most,
    refused,
    require,
    training_batch,
)
from thinkers.testing.memory import with_documents


def loss_shares(model: Model) -> None:
    """Check that with counts of the whole batch, losses and gradients of its shares add up to those
    of the batch, within 1e-5 (float32) or 1e-12 (float64); counts are announced by model.counts. A
    model with causal = False raises ValueError for a batch without targets."""
    rows = Rows.draw(model)
    batches: list[tuple[Any, int]] = [(training_batch(model), rows.new * len(rows.tokens))]
    if model.causal:
        batches.append((rows.tokens, rows.tokens[:, 1:].numel()))
    else:
        with refused("loss of bare tokens where causal = False", ValueError, "causal"):
            model.loss(draw(model, (1, 2)))
    for batch, graded in batches:
        counts = model.counts(batch)
        require(
            counts["next_token"] == graded,
            f"counts gives {counts} for a batch of {graded} graded tokens",
        )
        whole, gradient = _loss_and_gradient(model, batch)
        _check_parts(whole, counts)
        cut = batch.rows if isinstance(batch, Batch) else batch.__getitem__
        parts = (slice(0, 2), slice(2, 3), slice(3, None))
        shares = [_loss_and_gradient(model, cut(part), counts) for part in parts]
        for part, number in counts.items():
            added = sum(share.counts[part] for share, _ in shares)
            require(added == number, f"counts of {part!r} add up to {added}, not {number}")
            found = torch.stack([share.parts[part] for share, _ in shares]).sum()
            close(found, whole.parts[part], f"sum of the shares' part {part!r}", SHARE_TOLERANCES)
        totals = torch.stack([share.total for share, _ in shares]).sum()
        close(totals, whole.total, "sum of the shares' total", SHARE_TOLERANCES)
        summed = torch.stack([x for _, x in shares]).sum(0)
        close(summed, gradient, "sum of the shares' gradients", SHARE_TOLERANCES)
        correct = torch.cat([share.correct for share, _ in shares])
        require(
            torch.equal(correct, whole.correct),
            f"correct is {correct.tolist()} in shares and {whole.correct.tolist()} in the batch",
        )


def _check_parts(loss: Loss, counts: dict[str, int]) -> None:
    require(
        dict(loss.counts) == counts,
        f"the counts of the loss are {dict(loss.counts)}, and model.counts gives {counts}",
    )
    require(
        loss.parts.keys() == counts.keys(),
        f"the loss has the parts {list(loss.parts)}, and model.counts gives {list(counts)}",
    )
    require(
        loss.total.shape == () and loss.total.isfinite(),
        f"the total must be a finite scalar, got {loss.total.tolist()}",
    )
    for name, part in loss.parts.items():
        require(not part.requires_grad, f"the part {name!r} must be detached")


def _loss_and_gradient(model: Model, batch: Any, counts: Any = None) -> tuple[Loss, Tensor]:
    """Return the loss, and the gradients of all that is trained in one vector."""
    learned = [x for x in model.parameters() if x.requires_grad]
    model.zero_grad(set_to_none=False)
    loss = model.loss(batch, counts=counts)
    found = torch.autograd.grad(loss.total, learned, allow_unused=True, materialize_grads=True)
    return loss, torch.cat([x.flatten() for x in found])


def correctness(model: Model) -> None:
    """Check that Loss.correct (b,) bool is True for a row if and only if the largest logit is the
    target at every graded position, and that Loss.correct_tokens (b,) counts these positions, where
    the model counts them."""
    batch = training_batch(model)
    # In a loss with a gate, tokens halt at steps that only the loss knows, except after one step.
    settings: Any = {"num_steps": 1 if "gate" in model.halts_by else None}
    predicted = model(
        batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths, **settings
    ).logits.argmax(-1)
    graded = batch.targets != IGNORED
    columns = torch.arange(graded.shape[1], device=graded.device)
    assert batch.lengths is not None
    counted = (graded & (columns < batch.lengths[:, None])).sum(1)
    last = columns == batch.lengths[:, None] - 2
    wrong = (predicted + 1) % model.config.vocab_size
    # Wrong targets beyond the end of a row, and at positions that are not graded, must not count.
    right = predicted.where(columns < batch.lengths[:, None], wrong).where(graded, IGNORED)
    cases = {
        "targets that are all predicted": (right, True),
        "one graded target of each row that is not predicted": (right.where(~last, wrong), False),
    }
    for what, (targets, expected) in cases.items():
        loss = model.loss(dataclasses.replace(batch, targets=targets), **settings)
        found, tokens = loss.correct, counted - int(not expected)
        require(
            found.dtype == torch.bool and found.shape == (len(targets),),
            f"correct is {found.dtype} {list(found.shape)}, not bool [{len(targets)}]",
        )
        require((found == expected).all(), f"with {what}, correct is {found.tolist()}")
        require(
            loss.correct_tokens is None or torch.equal(loss.correct_tokens, tokens),
            f"with {what}, correct_tokens is {loss.correct_tokens} and not {tokens.tolist()}",
        )


def gradients(model: Model) -> None:
    """Check that in training mode, the loss of rows of 64 tokens gives every parameter a finite
    gradient that is not all zero, except those that it says it does not train."""
    tokens = draw(model, (3, min(64, model.config.max_length)))
    batch: Any = tokens if model.causal else Batch(tokens, draw(model, tuple(tokens.shape), 1))
    if has_memory(model):
        batch = with_documents(model, Batch(tokens, tokens.roll(-1, 1)))
    model.zero_grad()
    model.train().loss(batch).total.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if name.startswith(model.not_trained):
            require(gradient is None, f"the loss trains {name}, which is in not_trained")
            continue
        require(gradient is not None, f"the parameter {name} has no gradient")
        assert gradient is not None
        require(gradient.isfinite().all(), f"the gradient of {name} is not finite")
        require(gradient.any(), f"the gradient of {name} is zero")


def reproducibility(model: Model) -> None:
    """Check that two models built and trained from one seed have equal losses and weights, bit for
    bit (at equal numbers of threads)."""
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        built = type(model)(model.config).to(dtype_of(model)).train()
        optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
        losses = []
        for update in range(3):
            optimizer.zero_grad()
            loss = built.loss(training_batch(built, update)).total
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append((losses, built.state_dict()))
    (first, weights), (second, others) = runs
    require(first == second, f"the losses of three updates are {first} and then {second}")
    for name, found in weights.items():
        require(
            torch.equal(found, others[name]),
            f"{name} differs by {difference(found, others[name])} after 3 updates",
        )


def saving(model: Model) -> None:
    """Check that save writes config.json and model.safetensors alone, and the loaded model has the
    same configuration and the same logits, bit for bit."""
    rows = Rows.draw(model)
    for parameter in model.parameters():
        parameter.data += 0.01
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        files = sorted(path.name for path in Path(folder).iterdir())
        require(
            files == ["config.json", "model.safetensors"],
            f"save writes {files}",
        )
        if MODELS.get(model.name) is type(model):
            loaded = load_model(folder)
        else:
            found = json.loads((Path(folder) / "config.json").read_text())
            loaded = type(model)(type(model.config)(**found["config"])).to(dtype_of(model))
            loaded.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    loaded = loaded.to(device_of(model)).eval()
    require(
        loaded.config == model.config,
        f"the loaded configuration is {loaded.config}, and the saved one {model.config}",
    )
    for steps in fewest_and_most(model):
        for prompts in (None, rows.prompts):
            settings: Any = {"num_steps": steps, "prompt_lengths": prompts}
            found, expected = (m(rows.tokens, **settings).logits for m in (loaded, model))
            require(
                torch.equal(found, expected),
                f"{call(steps, prompts)}, logits of the loaded model differ by "
                f"{difference(found, expected)}",
            )
