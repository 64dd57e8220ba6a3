"""ThoughtsFormer against its golden files and against dense recomputation of every element."""

import pytest
import torch
from golden import read_golden
from torch.nn import functional as F

import thinkers
from thinkers import Batch, published
from thinkers.nn.layers import sinusoidal
from thinkers.ops import masks

NAMES = ("thoughtsformer_a", "thoughtsformer_noncausal", "thoughtsformer_padded")
KINDS = ("weight", "bias")
B, T, N, V = 3, 11, 4, 13

FORMS = {
    "one layer": {"variant": "published", "num_layers": 1},
    "published": {"variant": "published", "num_layers": 2, "hidden": 10},
    "modern": {"num_layers": 3},
    "non-causal, one layer": {"variant": "published", "num_layers": 1, "causal": False},
    "non-causal": {"num_layers": 2, "causal": False},
    "words": {"variant": "published", "num_layers": 2, "thoughts": "words"},
}


def make(**settings):
    torch.manual_seed(1)
    settings = {"dim": 12, "num_heads": 2, "num_steps": 3, "max_length": 19} | settings
    return thinkers.build_model("thoughtsformer", vocab_size=V, **settings).double()


def tokens(b=B, t=T, seed=0):
    return torch.randint(V, (b, t), generator=torch.Generator().manual_seed(seed))


def read(name):
    settings, parts = read_golden(name)
    return parts, settings


def agree(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        error = (found[name] - x).abs().max()
        assert error <= 1e-9 * max(x.abs().max(), 1e-6), f"{name}: {error}"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_published_ones(name, training):
    parts, settings = read(name)
    model = published.load("thoughtsformer", parts["weights"], settings).train(training)
    outputs = published.outputs(model, parts["in"], settings)
    outputs["loss"].backward()
    agree(outputs, parts["out"])
    agree(published.dump(model, grads=True), parts["grad"])
    dumped = published.dump(model)
    assert dumped.keys() == parts["weights"].keys()
    assert all(torch.equal(dumped[name], x) for name, x in parts["weights"].items())


def test_published_outputs_are_computed_without_dropout():
    parts, settings = read("thoughtsformer_a")
    model = published.load("thoughtsformer", parts["weights"], settings | {"dropout": "0.4"})
    assert model.training and model.config.dropout == 0.4
    agree(published.outputs(model, parts["in"], settings), parts["out"])
    assert model.training and all(part.training for part in model.modules())
    assert not torch.equal(model(parts["in"]["tokens"]).logits, parts["out"]["logits"])


def test_the_compile_prefix_is_dropped_and_a_missing_weight_is_named():
    parts, settings = read("thoughtsformer_a")
    weights = {f"_orig_mod.{name}": x for name, x in parts["weights"].items()}
    agree(
        published.outputs(
            published.load("thoughtsformer", weights, settings), parts["in"], settings
        ),
        parts["out"],
    )
    del weights["_orig_mod.time_embedding"]
    with pytest.raises(thinkers.errors.DataError, match="time_embedding"):
        published.load("thoughtsformer", weights, settings)


def test_a_checkpoint_with_fewer_classes_than_words_is_loaded():
    parts, settings = read("thoughtsformer_noncausal")
    weights = parts["weights"] | {f"output.{x}": parts["weights"][f"output.{x}"][:5] for x in KINDS}
    model = published.load("thoughtsformer", weights, settings)
    found = published.outputs(model, {"tokens": parts["in"]["tokens"]}, settings)
    agree(found, {"logits": parts["out"]["logits"][..., :5]})
    assert all(torch.equal(x, weights[name]) for name, x in published.dump(model).items())


class Dense:
    """Recompute the whole sequence of (s + 1) * t elements at every step, with an explicit mask."""

    def __init__(self, model):
        self.w, self.config = dict(model.named_parameters()), model.config
        self.published = model.config.variant == "published"

    def states(self, tokens, steps, hidden=None):
        w, t = self.w, tokens.shape[1]
        place = torch.arange(t)
        elements, states = [self.embed(F.one_hot(tokens, V).double(), place)], []
        for step in range(steps):
            x = torch.cat([e + self.code(i) for i, e in enumerate(elements)], 1)
            visible = self.visible(t, step + 1)
            if hidden is not None:
                visible = visible & ~hidden.repeat(1, step + 1)[:, None, None]
            for layer in range(self.config.num_layers):
                x = self.block(x, f"blocks.{layer}.", visible, place.repeat(step + 1))
            state = x[:, -t:]
            if not self.published:
                state = F.rms_norm(state, state.shape[-1:], w["norm.weight"], 1e-6)
            states.append(state)
            if self.config.thoughts == "words":
                soft = self.logits(state).softmax(-1)
                hard = F.one_hot(soft.argmax(-1), V).double()
                state = self.embed(hard + soft - soft.detach(), place)
            elements.append(state)
        return torch.stack(states, 1)

    def visible(self, t, number):
        place, step = torch.arange(t).repeat(number), torch.arange(number).repeat_interleave(t)
        if not self.config.causal:
            return torch.ones(1, 1, t * number, t * number, dtype=torch.bool)
        base = (step == 0) & (place <= place[:, None])
        own = (place == place[:, None]) & (step <= step[:, None])
        return (base | own)[None, None]

    def embed(self, words, place):
        x = words @ self.w["embedding.weight"]
        if self.published:
            return x + self.w["positions.weight"][place]
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def code(self, step):
        if step < self.config.num_steps:
            return self.w["codes.weight"][step]
        return sinusoidal(torch.tensor([step]), self.config.dim, torch.float64)[0]

    def logits(self, states):
        if self.published:
            return F.linear(states, self.w["head.weight"], self.w["head.bias"])
        return F.linear(states, self.w["embedding.weight"])

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def block(self, x, name, visible, place):
        if self.published:
            x = self.norm(x + self.attention(x, name, visible, None), f"{name}attention_norm")
            up = self.linear(x, f"{name}feed_forward.up").clamp(min=0)
            down = self.linear(up, f"{name}feed_forward.down")
            return self.norm(x + down, f"{name}feed_forward_norm")
        normed = self.norm(x, f"{name}attention_norm")
        x = x + self.attention(normed, name, visible, place)
        normed = self.norm(x, f"{name}feed_forward_norm")
        gate, up = self.linear(normed, f"{name}feed_forward.gate_up").chunk(2, -1)
        return x + self.linear(F.silu(gate) * up, f"{name}feed_forward.down")

    def norm(self, x, name):
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        if bias is None:
            return F.rms_norm(x, x.shape[-1:], weight, 1e-6)
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def attention(self, x, name, visible, place):
        heads = self.config.num_heads
        width = self.config.dim // heads
        q = self.linear(x, f"{name}heads.query")
        k, v = self.linear(x, f"{name}heads.key_value").chunk(2, -1)
        q, k, v = (y.unflatten(-1, (heads, width)).transpose(1, 2) for y in (q, k, v))
        if place is not None:
            q, k = rotated(q, place), rotated(k, place)
        scores = (q @ k.mT / width**0.5).masked_fill(~visible, -torch.inf)
        found = scores.softmax(-1).nan_to_num(0.0) @ v
        return self.linear(found.transpose(1, 2).flatten(2), f"{name}heads.output")


def rotated(x, place):
    """Rotate each pair (i, i + half), as a complex number, by place * 10000 ** (-2 i / width)."""
    half = x.shape[-1] // 2
    speed = (10000.0 ** (-torch.arange(0, 2 * half, 2).float() / (2 * half))).double()
    turn = torch.polar(torch.ones(len(place), half).double(), place[:, None] * speed)
    z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_dense_recompute(form, steps):
    model = make(**FORMS[form])
    lengths = torch.tensor([T, 5, 8])
    hidden = torch.arange(T) >= lengths[:, None]
    whole = Dense(model)
    for given, mask in ((None, None), (lengths, hidden)):
        x = tokens() if mask is None else tokens().masked_fill(mask, 0)
        thought = model(tokens(), num_steps=steps, lengths=given, keep_states=True)
        states = whole.states(x, steps, mask)
        torch.testing.assert_close(thought.states, states, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            thought.logits, whole.logits(states[:, -1]), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_dense_recompute(form):
    model = make(**FORMS[form])
    weight = torch.randn(B, N, T, V, generator=torch.Generator().manual_seed(3)).double()
    found, wanted = [], []
    ours = model.read_out(model(tokens(), num_steps=N, keep_states=True).states)
    whole = Dense(model)
    theirs = whole.logits(whole.states(tokens(), N))
    for logits, kept in ((ours, found), (theirs, wanted)):
        for part in (logits * weight, logits[:, -1] * weight[:, 0]):
            grads = torch.autograd.grad(part.sum(), model.parameters(), retain_graph=True)
            kept.extend(grads)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def test_steps_beyond_the_trained_ones_have_a_sinusoidal_code():
    model = make(num_steps=2)
    codes = sinusoidal(torch.arange(2), 12, torch.float32).double()
    torch.testing.assert_close(model.codes.weight.data, codes)
    usual, more = model(tokens()).logits, model(tokens(), num_steps=3).logits
    with torch.no_grad():
        model.codes.weight[1] += 1
    assert not torch.equal(model(tokens()).logits, usual)
    assert not torch.equal(model(tokens(), num_steps=3).logits, more)
    assert torch.equal(model(tokens(), num_steps=1).logits, model(tokens(), num_steps=1).logits)


def test_base_keys_are_computed_once_and_a_step_projects_one_element_per_position():
    model, projected = make(num_layers=2), []
    for block in model.blocks:
        block.heads.key_value.register_forward_hook(lambda _, __, x: projected.append(x.shape[1]))
    model(tokens(), num_steps=N)
    assert projected == [T] * 2 * N


def test_saved_tensors_grow_linearly_with_the_number_of_steps():
    model, kept = make(num_layers=1), []
    for steps in (4, 8, 12):
        storages = {}

        def pack(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(tokens(), num_steps=steps).total
        kept.append(sum(storages.values()))
        del loss
    assert kept[2] - kept[1] <= 1.05 * (kept[1] - kept[0])


def test_the_generation_cache_keeps_base_keys_and_values_alone():
    model = make(num_layers=2).eval()
    lengths, capacity = torch.tensor([6, 2, 4]), 9
    _, cache = model.prefill(tokens(t=6), lengths, N, False, capacity)
    assert [x.shape for x in cache.kept[0]] == [(B, 2, capacity + N - 1, 6)] * 2
    before = [x[0, :, :6].clone() for layer in cache.kept for x in layer]
    model.extend(torch.tensor([1, 2, 3]), cache)
    after = [x[0, :, :7] for layer in cache.kept for x in layer]
    assert all(torch.equal(x, y[:, :6]) for x, y in zip(before, after, strict=True))
    row = torch.cat([tokens(t=6)[:1], torch.ones(1, 1, dtype=torch.int64)], 1)
    _, once = model.prefill(row, torch.tensor([7]), 1, False, 7)
    whole = [x[0] for layer in once.kept for x in layer]
    for x, y in zip(after, whole, strict=True):
        torch.testing.assert_close(x, y)


def test_a_non_causal_model_refuses_causal_calls_and_classifies():
    model = make(causal=False, num_layers=1)
    assert not model.causal
    for call in (
        lambda: model.loss(tokens()),
        lambda: model.score(tokens()),
        lambda: model.generate(tokens(), 2),
    ):
        with pytest.raises(ValueError, match="causal"):
            call()
    targets = torch.full((B, T), -100)
    targets[:, 0] = torch.tensor([3, 1, 4])
    lengths = torch.tensor([T, 5, 8])
    loss = model.loss(Batch(tokens(), targets, lengths=lengths))
    logits = model(tokens(), lengths=lengths).logits[:, 0]
    torch.testing.assert_close(loss.total, F.cross_entropy(logits, targets[:, 0]))
    assert loss.counts == {"next_token": B}
    other = tokens()
    other[0, -1] = (other[0, -1] + 1) % V
    assert not torch.equal(model(other).logits[0, 0], model(tokens()).logits[0, 0])


def test_a_non_causal_model_answers_with_one_token_after_the_prompt():
    model, lengths = make(causal=False, num_layers=1).train(), torch.tensor([T, 5, 8])
    prompts = torch.full((B, T), 10**12)
    for row, n in enumerate(lengths.tolist()):
        prompts[row, T - n :] = tokens()[row, :n]
    found = model.answer(prompts, lengths, 1, num_steps=2)
    assert found.shape == (B, 1) and model.training
    for row, n in enumerate(lengths.tolist()):
        alone = model.eval()(tokens()[row : row + 1, :n], num_steps=2).logits[0, -1]
        assert found[row, 0] == alone.argmax()
    with pytest.raises(ValueError, match="causal"):
        model.answer(prompts, lengths, 2)
    with pytest.raises(ValueError, match="prompt_lengths"):
        model.answer(prompts, lengths + 1, 1)


def test_word_thoughts_are_a_function_of_the_keys_of_rows():
    model = make(thoughts="words", num_layers=1)
    targets = tokens(seed=1)
    keys = torch.tensor([5, 7, 11])
    batch = Batch(tokens(), targets, keys=keys)

    def gradient(batch, counts=None):
        model.zero_grad()
        loss = model.loss(batch, counts=counts)
        loss.total.backward()
        return loss.total.detach(), model.blocks[0].heads.query.weight.grad

    total, grad = gradient(batch)
    assert torch.equal(gradient(batch)[0], total)
    assert not torch.equal(gradient(Batch(tokens(), targets, keys=keys + 1))[0], total)
    plain, _ = gradient(Batch(tokens(), targets))
    assert not torch.equal(plain, total)
    shares = [gradient(batch.rows(slice(r, None, 2)), {"next_token": B * T}) for r in (0, 1)]
    torch.testing.assert_close(sum(total for total, _ in shares), total)
    torch.testing.assert_close(sum(grad for _, grad in shares), grad)
    model.eval()
    torch.testing.assert_close(gradient(batch)[0], plain)


def test_word_thoughts_are_drawn_from_the_softmax():
    model = make(thoughts="words", num_layers=1, dim=4)
    state = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0)).double() * 9
    rows = 4001
    with torch.no_grad():
        thought = model._next_thought(
            state.expand(rows, 1, 4), torch.arange(1), 0, torch.arange(rows) * 77
        )
        table = model.place(model.embedding.weight[:, None], torch.arange(1))
    drawn = (thought == table[:, 0]).all(-1).double().mean(0)
    chances = model.read_out(state[None])[0, 0, 0].softmax(-1)
    assert (drawn - chances).abs().max() < 4 * (0.25 / rows) ** 0.5


@pytest.mark.misuse
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "new"},
        {"thoughts": "image"},
        {"causal": None},
        {"word_temperature": 0.0},
        {"hidden": 0},
        {"num_classes": 5},
        {"num_classes": V + 1, "variant": "published"},
        {"dropout": 1.0},
    ],
    ids=str,
)
def test_invalid_settings_are_named(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        make(**settings)


def test_the_documented_mask_is_the_mask_that_is_computed():
    number = N + 1
    shown = masks.table(masks.thought_chains(N), T * number)[0]
    order = torch.arange(T * number).view(T, number).T.flatten()
    assert torch.equal(shown[order][:, order], Dense(make()).visible(T, number)[0, 0])
