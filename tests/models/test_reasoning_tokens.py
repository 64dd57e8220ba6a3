"""Reasoning tokens: the author's numbers, a dense oracle, and which future optimises what."""

import dataclasses

import pytest
import torch
from golden import read_golden
from model_cases import ids
from torch.nn import functional as F

from thinkers import published
from thinkers.errors import DataError
from thinkers.models import Batch, build_model, load_model

NAMES = ("all_predict", "masked", "stop_grad")
SYSTEM = "self_reasoning_tokens"


def golden(name):
    return read_golden(f"reasoning_tokens_{name}")


def agree(ours, theirs, name, limit=1e-9):
    assert ours.shape == theirs.shape, f"{name}: {list(ours.shape)} is not {list(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    error, scale = float((ours - theirs).abs().max()), max(float(theirs.abs().max()), 1e-6)
    assert error <= limit * scale, f"{name}: {error} of {scale}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_author(name):
    settings, groups = golden(name)
    model = published.load(SYSTEM, groups["weights"], settings)
    found = published.outputs(model, groups["in"], settings)
    assert found.keys() == groups["out"].keys()
    for key, theirs in groups["out"].items():
        agree(found[key].detach(), theirs, key)
    found["loss"].backward()
    grads = published.dump(model, grads=True)
    assert grads.keys() == groups["grad"].keys()
    for key, theirs in groups["grad"].items():
        agree(grads[key], theirs, key)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_unchanged_also_after_saving(name, tmp_path):
    settings, groups = golden(name)
    model = published.load(SYSTEM, groups["weights"], settings)
    model.save(tmp_path)
    for which in (model, load_model(tmp_path)):
        dumped = published.dump(which)
        assert dumped.keys() == groups["weights"].keys()
        assert all(torch.equal(dumped[key], w) for key, w in groups["weights"].items())


def test_without_reasoning_tokens_their_weights_are_kept_but_are_no_parameters(tmp_path):
    """Sizes with heads that do not divide the width, and the prefix that compiling adds."""
    small = {"dim": 10, "num_tokens": 7, "depth": 1, "heads": 3, "dim_head": 4, "max_seq_len": 9}
    settings = {**small, "num_reason_tokens": 2, "max_reason_seq_len": 3}
    weights = published.dump(shaped(settings))
    prefixed = {f"_orig_mod.{key}": weight for key, weight in weights.items()}
    model = published.load(SYSTEM, prefixed, {**settings, "num_reason_tokens": 0})
    tokens = ids(2, 6, high=7)
    published.outputs(model, {"tokens": tokens}, settings={})["loss"].backward()
    assert "reasoning" not in dict(model.named_parameters())
    grads = published.dump(model, grads=True)
    assert grads.keys() == weights.keys() - {"reason_tokens"}
    model.save(tmp_path)
    dumped = published.dump(load_model(tmp_path))
    assert all(torch.equal(dumped[key], weight) for key, weight in weights.items())
    with pytest.raises(DataError, match="at most max_reason_seq_len 3, got 4"):
        published.load(SYSTEM, weights, {**settings, "num_reason_tokens": 4})
    with pytest.raises(DataError, match="reason_tokens must have shape"):
        published.load(SYSTEM, weights, {**settings, "max_reason_seq_len": 5})


def shaped(settings):
    """A published model of these sizes, with weights of its own."""
    own = {"variant": "published", "mode": "mask", "num_learned": 3, "head_dim": 4}
    sizes = {"vocab_size": 7, "dim": 10, "num_layers": 1, "num_heads": 3, "num_steps": 2}
    return build_model("reasoning_tokens", **own, **sizes, max_length=9)


SIZE = {"vocab_size": 13, "dim": 12, "num_layers": 2, "num_heads": 3, "max_length": 17}


def make(**own):
    torch.manual_seed(1)
    model = build_model("reasoning_tokens", **{**SIZE, "num_steps": 2, **own}).double()
    for x in model.parameters():
        # Away from the starting point, where scores are too small to tell pairs apart.
        x.data += 0.3 * torch.randn_like(x)
    return model


def oracle(model, tokens, steps):
    """Logits of all elements (b, t, n, v): loops over pairs say who sees, and who learns."""
    config, (b, t) = model.config, tokens.shape
    published, size = config.variant == "published", steps + 1
    rows = [] if not steps else list(model.reasoning)
    rows += [rows[-1] for _ in range(steps - len(rows))] if rows else []
    x = torch.stack([model.embedding(tokens), *(r.expand(b, t, -1) for r in rows[:steps])], 2)
    if published:
        x = x + model.positions.weight[:t, None]
    x = x.flatten(1, 2)
    h, length = config.num_heads, t * size
    seen = torch.zeros(length, length, dtype=torch.bool)
    factors = {part: torch.ones(h, length, length).double() for part in ("query", "key", "value")}
    for q in range(length):
        for k in range(q + 1):
            age, reasons = q // size - k // size, k % size > 0
            near = reasons and 1 <= age <= config.window
            far = reasons and age > config.window
            seen[q, k] = not (near and config.mode == "mask")
            for part, factor in factors.items():
                for place, here in (("near", near), ("far", far)):
                    scale = getattr(config, f"{place}_{part}")
                    scale = scale if isinstance(scale, tuple) else (scale,) * h
                    if here:
                        factor[:, q, k] = torch.tensor(scale).double()
    for block in model.blocks:
        x = attended(block, x, seen, factors, size, published)
    w = model.head.weight if published else model.embedding.weight
    return (normed(x, model.norm.weight, published) @ w.T).unflatten(1, (t, size))


def normed(x, gain, published):
    c = x.shape[-1]
    if published:
        return c**0.5 * gain * x / x.norm(dim=-1, keepdim=True)
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def scaled(x, factor):
    """`x`, whose gradient is multiplied by `factor`."""
    return x.detach() + factor * (x - x.detach())


def turned(x, size):
    """Rotary positions by complex numbers: the elements of a time step share its angle."""
    d = x.shape[-1]
    times = torch.arange(x.shape[2]).double() // size
    speeds = (10000.0 ** (-torch.arange(0, d, 2).float() / d)).double()
    angles = times[:, None] * speeds
    z = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(angles * 0 + 1, angles)
    return torch.cat([z.real, z.imag], -1)


def attended(block, x, seen, factors, size, published):
    h = len(factors["key"])
    y = normed(x, block.attention_norm.weight, published)
    weights = [block.query.weight, *block.key_value.weight.chunk(2)]
    q, k, v = ((y @ w.T).unflatten(-1, (h, -1)).transpose(1, 2) for w in weights)
    if not published:
        q, k = turned(q, size), turned(k, size)
    # One score for each pair, from copies of q and k that only this pair owns.
    q, k, v = q[:, :, :, None], k[:, :, None], v[:, :, None]
    scores = (
        scaled(q.expand(-1, -1, -1, k.shape[3], -1), factors["query"][..., None])
        * scaled(k.expand(-1, -1, q.shape[2], -1, -1), factors["key"][..., None])
    ).sum(-1)
    p = (scores * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    v = scaled(v.expand(-1, -1, q.shape[2], -1, -1), factors["value"][..., None])
    out = (p[..., None] * v).sum(3).transpose(1, 2).flatten(2)
    x = x + out @ block.output.weight.T
    y = normed(x, block.feed_forward_norm.weight, published)
    ff = block.feed_forward
    if published:
        return x + F.gelu(y @ ff.up.weight.T + ff.up.bias) @ ff.down.weight.T + ff.down.bias
    gate, up = (y @ ff.gate_up.weight.T).chunk(2, -1)
    return x + (F.silu(gate) * up) @ ff.down.weight.T


CASES = [
    {},
    {"window": 1, "num_steps": 3, "prediction": "all"},
    {"window": 0},
    {"mode": "mask", "window": 2},
    {"mode": "mask", "window": 1, "far_query": 0.5, "far_key": -2.0, "prediction": "all"},
    {"near_key": (0.0, 1.0, 1.0), "near_value": (0.0, 1.0, 1.0), "window": 3},
    {"near_query": 0.0, "near_key": (0.25, -1.0, 0.0), "far_value": 2.0, "window": 2},
    {"variant": "published", "window": 2, "head_dim": 5},
    {"variant": "published", "window": 2, "mode": "mask", "prediction": "all", "hidden": 11},
    {"num_learned": 1, "window": 2},
    {"num_steps": 0},
]


@pytest.mark.parametrize("own", CASES, ids=str)
def test_logits_loss_and_gradients_are_those_of_loops_over_pairs(own):
    model = make(**own)
    tokens = ids(2, 7, high=13)
    wanted = oracle(model, tokens, model.config.num_steps)
    thought = model(tokens, keep_states=True)
    agree(thought.logits, wanted[:, :, 0], "logits")
    agree(model(tokens).logits, wanted[:, :, 0], "logits of ordinary elements alone")
    kept = torch.cat([thought.states[:, -1:], thought.extra["reasoning"]], 1)
    agree(model.read_out(kept).transpose(1, 2), wanted, "logits of all elements")
    with torch.no_grad():
        agree(model(tokens).logits, wanted[:, :, 0], "logits without gradients")

    wanted = wanted if model.config.prediction == "all" else wanted[:, :, :1]
    targets = tokens[:, 1:, None].expand(-1, -1, wanted.shape[2])
    loss = F.cross_entropy(wanted[:, :-1].flatten(0, 2), targets.flatten())
    found = model.loss(tokens)
    agree(found.total, loss, "loss")
    assert found.counts == {"next_token": 12} == model.counts(tokens)
    names, parameters = zip(*model.named_parameters(), strict=True)
    theirs = torch.autograd.grad(loss, parameters)
    for name, x, y in zip(names, torch.autograd.grad(found.total, parameters), theirs, strict=True):
        agree(x, y, name)


def gradient_at(model, tokens, position):
    """Of the loss at `position`, by what each element (t, n) was before the first block."""
    size, seen = model.config.num_steps + 1, []
    hook = model.blocks[0].register_forward_pre_hook(
        lambda block, given: seen.append(given[0]) or given[0].retain_grad()
    )
    targets = torch.full_like(tokens, -100)
    targets[:, position] = tokens[:, position + 1]
    model.loss(Batch(tokens, targets)).total.backward()
    hook.remove()
    return seen[0].grad.abs().amax((0, 2)).unflatten(0, (-1, size))


@pytest.mark.parametrize("own", [{}, {"mode": "mask"}, {"variant": "published"}], ids=str)
def test_reasoning_tokens_learn_from_the_far_future_and_never_from_the_near(own):
    window, position = 3, 9
    grads = gradient_at(make(window=window, **own), ids(2, 11, high=13), position)
    for time in range(11):
        reaches = time < position - window
        assert (grads[time, 1:] > 0).all() == reaches, f"reasoning tokens of time {time}"
        assert (grads[time, 1:] == 0).all() == (not reaches), f"reasoning tokens of time {time}"
        assert (grads[time, 0] > 0) == (time <= position), f"ordinary element of time {time}"


def test_some_heads_may_learn_from_the_near_future():
    factors = (0.0, 1.0, 1.0)
    grads = gradient_at(make(window=3, near_key=factors, near_value=factors), ids(2, 11), 9)
    assert (grads[:9, 1:] > 0).all() and (grads[9:, 1:] == 0).all()


def test_stopped_gradients_leave_outputs_unchanged():
    tokens, plain = ids(2, 9), make(near_key=1.0, near_value=1.0)
    stopped = make(window=9)
    agree(stopped(tokens).logits, plain(tokens).logits, "logits", 1e-14)
    for model in (plain, stopped):
        model.loss(tokens).total.backward()
    assert (stopped.reasoning.grad == 0).all() and (plain.reasoning.grad != 0).any()


def test_in_mask_mode_a_reasoning_token_is_visible_behind_the_window():
    """Checked by cached generation: another reasoning token changes only what sees it."""
    model = make(mode="mask", window=3, num_steps=1, num_layers=1)
    prompt = ids(1, 2)
    _, before = model.generate(prompt, 9, return_logits=True)
    other = make(mode="mask", window=3, num_steps=1, num_layers=1)
    other.reasoning.data += 1.0
    out, after = other.generate(prompt, 9, return_logits=True)
    agree(after[0], other(out).logits[0, 1:-1], "cached logits", 1e-10)
    moved = (before != after).any(-1)[0].tolist()
    assert moved.index(True) == 3, "time 0 is seen from time 4 on, which is the new token 3"


def test_without_reasoning_tokens_it_is_the_decoder():
    torch.manual_seed(0)
    decoder = build_model("decoder", **SIZE, hidden=11).double()
    model = build_model("reasoning_tokens", **SIZE, hidden=11, num_steps=0).double()
    weights = {name.replace("heads.", ""): x for name, x in decoder.state_dict().items()}
    model.load_state_dict(weights)
    tokens = ids(2, 7)
    assert torch.equal(model(tokens).logits, decoder(tokens).logits)
    assert torch.equal(model.generate(tokens, 5), decoder.generate(tokens, 5))
    assert model.flops(2, 7) == decoder.flops(2, 7)


def test_steps_beyond_the_learned_ones_use_the_last_row():
    model, longer = make(num_steps=2, max_steps=5), make(num_steps=5)
    weights = model.state_dict()
    last = weights["reasoning"][-1:].expand(3, -1)
    longer.load_state_dict({**weights, "reasoning": torch.cat([weights["reasoning"], last])})
    tokens = ids(2, 7)
    assert model.step_counts == (0, 1, 2, 4)
    assert torch.equal(model(tokens, num_steps=5).logits, longer(tokens, num_steps=5).logits)
    assert not torch.equal(model(tokens, num_steps=5).logits, model(tokens, num_steps=4).logits)
    with pytest.raises(ValueError, match=r"num_steps must be an integer in 0 \.\. 5"):
        model(tokens, num_steps=6)


def test_shares_of_a_batch_add_up_where_all_elements_predict():
    model = make(prediction="all")
    batch = Batch(ids(4, 7), ids(4, 7, seed=1), lengths=torch.tensor([7, 3, 5, 1]))
    whole = model.loss(batch)
    parts = [model.loss(batch.rows(slice(i, i + 2)), counts=whole.counts) for i in (0, 2)]
    agree(sum(p.total for p in parts), whole.total, "loss", 1e-12)
    assert whole.counts == model.counts(batch) == {"next_token": 16}


@pytest.mark.misuse
@pytest.mark.parametrize(
    "own, message",
    [
        ({"mode": "stop"}, "mode must be one of"),
        ({"variant": "old"}, "variant must be one of"),
        ({"prediction": "last"}, "prediction must be one of"),
        ({"window": -1}, "window must be an integer at least 0, got -1"),
        ({"window": True}, "window must be an integer at least 0, got True"),
        ({"num_learned": 0}, "num_learned must be an integer at least 1, got 0"),
        ({"head_dim": 0}, "head_dim must be an integer at least 1, got 0"),
        ({"hidden": 1.5}, "hidden must be an integer at least 1, got 1.5"),
        ({"num_steps": -1}, "num_steps must be an integer at least 0, got -1"),
        ({"near_key": (0.0, 1.0)}, r"near_key must be a finite number, or 3 of them"),
        ({"far_value": float("nan")}, "far_value must be a finite number"),
        ({"near_query": "0"}, "near_query must be a finite number"),
        ({"near_query": True}, "near_query must be a finite number"),
        ({"dim": 13}, "dim must be a multiple of num_heads, got 13 and 3"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        build_model("reasoning_tokens", **{**SIZE, **own})


def test_factors_of_heads_are_saved_and_read_back(tmp_path):
    model = make(near_key=[0, 1, 0.5])
    model.save(tmp_path)
    config = load_model(tmp_path).config
    assert config == model.config and config.near_key == (0.0, 1.0, 0.5)
    assert dataclasses.replace(config, num_steps=0).num_learned == 2
