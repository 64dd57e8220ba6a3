"""Building blocks of Thinker, called in any order, against concatenation and autograd."""

import pytest
import torch
from torch import nn

from thinkers.nn.latent_noise import Disturb, random_latents
from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.processor import Output, Probe, Process, Read, TextInput
from thinkers.prng import normal, uniform

DIM, HEADS, HIDDEN, B, INPUTS, LATENTS, KNOWN = 22, 1, 40, 3, 5, 4, 2


def process(num_layers=2, **settings):
    torch.manual_seed(0)
    return Process(DIM, HEADS, HIDDEN, num_layers, **settings).double()


def vectors(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, count, DIM, dtype=torch.float64, generator=generator)
    return x.requires_grad_()


class Concatenated:
    """Reference store: every read concatenates what was written; autograd differentiates it."""

    def __init__(self, block):
        self.block, self.written, self.blocked = block, [], {}

    def write(self, x, kind="latent", hidden=None):
        mask = torch.zeros(B, 1, 1, x.shape[1], dtype=x.dtype)
        if hidden is not None:
            mask = mask.masked_fill(hidden[:, None, None], -torch.inf)
        self.written.append([kind, self.block.project(x), mask])

    def read(self, kinds, steps=None):
        latents = [w for w in self.written if w[0] == "latent" and "latent" in kinds]
        chosen = [w for w in self.written if w[0] in kinds and w[0] != "latent"]
        chosen += latents if steps is None else latents[-steps:]
        parts = [torch.cat(same, 2) for same in zip(*(w[1] for w in chosen), strict=True)]
        return Memory(parts[::2], parts[1::2], torch.cat([w[2] for w in chosen], -1))

    def stop_gradient(self):
        for w in self.written:
            if w[0] == "latent":
                w[1] = [x.detach() for x in w[1]]


def think(store, block, leaves, read_steps, memory_steps, stop_at, steps=6):
    """Run steps with a window of memory; return a scalar that depends on every step."""
    inputs, latent, known = leaves
    hidden = torch.zeros(B, INPUTS, dtype=torch.bool)
    hidden[1, 3:] = True
    store.write(inputs, "input", hidden)
    total = torch.zeros((), dtype=torch.float64)
    weight = torch.linspace(-1, 1, DIM, dtype=torch.float64)
    for s in range(steps):
        if s == stop_at:
            latent = latent.detach()
            store.stop_gradient()
        kinds = ("input", "knowledge", "latent") if s <= read_steps else ("knowledge", "latent")
        latent = block(latent, store.read(kinds, memory_steps))
        if s == 0:
            store.write(known, "knowledge")
        store.write(latent)
        total = total + (s + 1) * (latent * weight).sum()
    return total


@pytest.mark.parametrize("stop_at", [None, 2, 4])
@pytest.mark.parametrize("read_steps, memory_steps", [(99, None), (2, 2), (0, 1), (3, None)])
def test_a_store_equals_concatenation_in_value_and_gradient(read_steps, memory_steps, stop_at):
    block = process()
    results = []
    for store in (LatentStore(block, INPUTS + KNOWN + 6 * LATENTS), Concatenated(block)):
        leaves = vectors(INPUTS, 1), vectors(LATENTS, 2), vectors(KNOWN, 3)
        total = think(store, block, leaves, read_steps, memory_steps, stop_at)
        wanted = [*leaves, *block.parameters()]
        results.append((total, *torch.autograd.grad(total, wanted)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_partial_and_repeated_backward_passes_leave_nothing_behind():
    block = process()
    leaves = vectors(INPUTS, 1), vectors(LATENTS, 2), vectors(KNOWN, 3)
    store = LatentStore(block, INPUTS + KNOWN + 6 * LATENTS)
    total = think(store, block, leaves, 99, None, None)
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    torch.autograd.grad(total, [leaves[1]], retain_graph=True)
    second = torch.autograd.grad(total, leaves)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_write_without_gradient_does_not_cut_the_gradients_of_other_writes():
    block = process()
    results = []
    for store in (LatentStore(block, 20), Concatenated(block)):
        inputs, latent, later = vectors(INPUTS, 1), vectors(LATENTS, 2), vectors(LATENTS, 3)
        store.write(inputs, "input")
        with torch.no_grad():
            store.write(latent)
        store.write(later)
        out = block(vectors(LATENTS, 4), store.read(("input", "latent"))).sum()
        results.append(torch.autograd.grad(out, [inputs, later]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        assert ours.abs().max() > 0


def test_a_store_refuses_empty_reads_overflow_and_second_derivatives():
    store = LatentStore(process(), 7)
    with pytest.raises(ValueError, match="holds nothing of"):
        store.read()
    store.write(vectors(5, 1))
    with pytest.raises(ValueError, match="capacity 7 that holds 5 vectors has no room for 3 more"):
        store.write(vectors(3, 1))
    out = process()(vectors(LATENTS, 2), store.read())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), list(store.process.parameters()), create_graph=True)


def test_blocks_can_be_called_in_any_order():
    block = process(1)
    text = TextInput(13, 9, DIM).double()
    read, output = Read(block, text), Output(block, text.embedding, steps=2)
    probe = Probe(DIM, 3).double()
    latent, tokens = vectors(LATENTS, 2), torch.randint(13, (B, 7))
    store = LatentStore(block, 50)

    seen = read(latent, tokens)
    store.write(seen)
    read.into(store, tokens[:, :4])
    thought = block(seen, store.read())
    thought = Read(block)(thought, seen)
    store.write(thought)
    states = output(vectors(5, 3), store.read(), torch.arange(5))
    loss = output.logits(states).logsumexp(-1).sum() + probe(thought).sum()
    loss.backward()

    assert output.logits(states).shape == (B, 5, 13) and probe(thought).shape == (B, LATENTS, 3)
    assert latent.grad.abs().max() > 0
    named = [n for m in (block, text, probe) for n, p in m.named_parameters() if p.grad is None]
    assert named == []


def test_read_attends_to_the_input_alone():
    block, latent = process(), vectors(LATENTS, 2)
    tokens = torch.randint(13, (B, 7))
    text = TextInput(13, 9, DIM).double()
    parts = block.project(text(tokens))
    expected = block(latent, Memory(parts[::2], parts[1::2]))
    assert torch.equal(Read(block, text)(latent, tokens), expected)


def test_text_input_is_scaled_embeddings_plus_positions():
    text = TextInput(13, 9, DIM)
    tokens = torch.tensor([[3, 1, 12]])
    expected = DIM**0.5 * (text.embedding.weight[tokens[0]] + text.position.weight[:3])
    torch.testing.assert_close(text(tokens)[0], expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_causal_read_out_does_not_attend_to_later_queries(steps):
    block = process()
    store = LatentStore(block, 9)
    store.write(vectors(INPUTS, 1))
    output = Output(block, nn.Embedding(3, DIM).double(), steps)
    queries = vectors(6, 5)
    changed = queries.detach().clone()
    changed[:, 4:] += 1
    before, after = (output(q, store.read()) for q in (queries, changed))
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before, after)


def test_random_numbers_are_a_function_of_key_and_stream():
    keys = torch.arange(1, 6) * 7919
    x = uniform(keys, 3, (4, 5), torch.float64)
    assert torch.equal(x[2], uniform(keys[2:3], 3, (4, 5), torch.float64)[0])
    assert not torch.equal(x, uniform(keys, 4, (4, 5), torch.float64))
    assert len(x.unique()) == x.numel()


def test_random_numbers_have_the_uniform_and_the_normal_distribution():
    keys = torch.arange(400)
    u, z = uniform(keys, 0, (100,), torch.float64), normal(keys, 1, (100,), torch.float64)
    assert 0 <= u.min() and u.max() < 1
    counts = torch.histc(u, 10, 0, 1) / u.numel()
    assert (counts - 0.1).abs().max() < 0.006
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.15
    across = torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]
    assert abs(across) < 0.02


def test_noise_drop_and_replace_have_their_rates_and_standard_deviations():
    keys, learned = torch.arange(500), torch.randn(LATENTS, DIM) * 2 + 1
    latent = torch.ones(500, LATENTS, DIM)
    dropped = Disturb(drop=0.25)(latent, keys, 1, learned)
    share = (dropped == 0).all(-1).float().mean()
    assert abs(share - 0.25) < 0.04 and set(dropped.unique().tolist()) == {0.0, 1.0}
    replaced = Disturb(replace=0.5)(latent, keys, 1, learned)
    anew = ~(replaced == 1).all(-1)
    assert abs(anew.float().mean() - 0.5) < 0.05
    assert abs(replaced[anew].mean() - learned.mean()) < 0.1
    assert abs(replaced[anew].std() - learned.std()) < 0.1
    noisy = Disturb(noise=0.3)(latent, keys, 1, learned)
    assert abs((noisy - latent).std() - 0.3) < 0.01
    other = Disturb(noise=0.3)(latent, keys, 2, learned)
    assert not torch.equal(noisy, other)
    assert not Disturb() and Disturb(noise=0.1)


def test_random_latents_have_mean_and_standard_deviation_of_the_learned_ones():
    learned = torch.randn(LATENTS, DIM) * 3 - 2
    drawn = random_latents(learned, torch.arange(300), 5, 7)
    assert drawn.shape == (300, 7, DIM)
    assert abs(drawn.mean() - learned.mean()) < 0.1 and abs(drawn.std() - learned.std()) < 0.1
