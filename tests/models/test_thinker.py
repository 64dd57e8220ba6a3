"""Thinker against its definition, computed row by row without any cache."""

import pytest
import torch
from thinker_definition import (
    DIM,
    VOCAB,
    defined_answer,
    defined_memories,
    memory_of,
    rows,
    thinker,
)
from torch.nn import functional as F

from thinkers.models import build_model
from thinkers.models.batch import Batch
from thinkers.nn.latent_store import Memory

VARIANTS = [
    {},
    {"read_steps": 1, "memory_steps": 2, "num_knowledge": 2},
    {"read_steps": 0, "memory_steps": 1},
    {"read_steps": 0, "memory_steps": 0, "num_knowledge": 2},
    {"output": "parallel", "output_steps": 2, "num_knowledge": 1},
    {"self_attention": "none", "rank": 4, "num_layers": 1},
]


@pytest.mark.parametrize("own", VARIANTS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_answers_are_written_from_the_memory_of_the_prompt(own, steps):
    model, tokens = thinker(**own), rows(3, 19)
    prompts = torch.tensor([7, 1, 12])
    thought = model(tokens, num_steps=steps, prompt_lengths=prompts, keep_states=True)
    by_step = model.read_out(thought.states)
    for i, p in enumerate(prompts.tolist()):
        memories = defined_memories(model, tokens[i : i + 1, :p], steps)
        for k, memory in enumerate(memories):
            expected = defined_answer(model, memory, tokens[i : i + 1, p - 1 :], p - 1)
            torch.testing.assert_close(
                by_step[i : i + 1, k, p - 1 :], expected, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("own", VARIANTS)
def test_a_section_is_the_answer_to_all_sections_before_it(own):
    model, tokens = thinker(**own), rows(2, 17)
    sectioned = model(tokens).logits
    for boundary in (5, 10, 15):
        prompts = torch.full((2,), boundary)
        answered = model(tokens, prompt_lengths=prompts).logits
        inside = slice(boundary - 1, boundary + 4)
        torch.testing.assert_close(
            sectioned[:, inside], answered[:, inside], rtol=1e-10, atol=1e-10
        )


def test_the_first_section_is_written_from_the_initial_latents_at_any_number_of_steps():
    model, tokens = thinker(), rows(2, 17)
    once, often = model(tokens, num_steps=1).logits, model(tokens, num_steps=7).logits
    assert torch.equal(once[:, :4], often[:, :4])
    assert not torch.equal(once[:, 4], often[:, 4])
    memory = memory_of(model, [model.latents.weight[None].expand(2, -1, -1)])
    x = model.queries.weight[1:5][None] + model.text(tokens[:, :4])
    expected = model.process(x, memory, causal=True) @ model.text.embedding.weight.T
    torch.testing.assert_close(once[:, :4], expected, rtol=1e-10, atol=1e-10)


def test_logits_inside_of_a_prompt_are_those_without_prompt_lengths():
    model, tokens = thinker(), rows(2, 17)
    prompts = torch.tensor([12, 9])
    plain, prompted = model(tokens).logits, model(tokens, prompt_lengths=prompts).logits
    for i, p in enumerate(prompts.tolist()):
        assert torch.equal(plain[i, : p - 1], prompted[i, : p - 1])


def number_batch(keys=True):
    """Return prompts of unequal lengths whose answers alone are graded."""
    tokens, prompts, lengths = rows(4, 11), torch.tensor([3, 7, 5, 6]), torch.tensor([8, 9, 11, 7])
    targets = torch.full_like(tokens, -100)
    for i, (p, n) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        targets[i, p - 1 : n - 1] = tokens[i, p:n]
        targets[i, n - 1] = 12
    return Batch(tokens, targets, prompts, lengths, torch.arange(4) * 977 if keys else None)


@pytest.mark.parametrize("own", VARIANTS)
def test_the_loss_of_answers_alone_is_that_of_the_logits(own):
    model, batch = thinker(**own), number_batch()
    loss = model.loss(batch)
    logits = model(batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=1e-10)
    right = (logits.argmax(-1) == batch.targets) | (batch.targets == -100)
    assert torch.equal(loss.correct, right.all(1))
    assert loss.counts == {"next_token": int((batch.targets != -100).sum())}


def test_every_step_can_be_graded_with_a_weight_of_its_own():
    batch = number_batch()
    model = thinker(step_loss="every", step_weights=(0.0, 1.0, 3.0), num_steps=4)
    thought = model(
        batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths, keep_states=True
    )
    logits = model.read_out(thought.states)
    losses = [
        F.cross_entropy(logits[:, k].flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        for k in range(4)
    ]
    expected = (losses[1] + 3 * losses[2] + 3 * losses[3]) / 7
    torch.testing.assert_close(model.loss(batch).total, expected, rtol=1e-10, atol=1e-10)


def first_latents_gradient(**own):
    model = thinker(num_steps=4, **own)
    model.loss(number_batch()).total.backward()
    return model.latents.weight.grad


def test_gradients_stop_after_backprop_steps():
    assert first_latents_gradient().abs().max() > 0
    assert first_latents_gradient(backprop_steps=4).abs().max() > 0
    assert first_latents_gradient(backprop_steps=3) is None
    every = first_latents_gradient(backprop_steps=2, step_loss="every")
    assert every.abs().max() > 0
    assert not torch.equal(every, first_latents_gradient(step_loss="every"))


def test_a_stopped_gradient_is_that_of_the_last_steps_from_a_given_latent():
    """Differentiate the last two of four steps, with the first two as constants."""
    batch = number_batch()
    model = thinker(num_steps=4, backprop_steps=2)
    model.loss(batch).total.backward()
    tokens, p = batch.tokens[:1], 3
    single = Batch(tokens, batch.targets[:1], torch.tensor([p]), torch.tensor([8]))
    model.zero_grad()
    loss = model.loss(single)
    loss.total.backward()

    inputs = model.text(tokens[:, :p])
    with torch.no_grad():
        latent, past = model.latents.weight[None], []
        for _ in range(2):
            latent = model.process(latent, memory_of(model, [inputs, *past]))
            past.append(latent)
        fixed = model.process.project(torch.cat(past, 1))

    def remembered(late):
        new = model.process.project(inputs)
        parts = [torch.cat([i, f], 2) for i, f in zip(new, fixed, strict=True)]
        if late:
            late = model.process.project(torch.cat(late, 1))
            parts = [torch.cat([x, y], 2) for x, y in zip(parts, late, strict=True)]
        return Memory(parts[::2], parts[1::2])

    late = []
    for _ in range(2):
        latent = model.process(latent, remembered(late))
        late.append(latent)
    logits = defined_answer(model, remembered(late), tokens[:, p - 1 :], p - 1)
    expected = F.cross_entropy(logits[0, :6], single.targets[0, p - 1 : 8])
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=1e-10)
    wanted = [w for name, w in model.named_parameters() if not name.startswith("latents")]
    ours = [w.grad for w in wanted]
    for x, y in zip(ours, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


NOISY = [
    {"noise": 0.3},
    {"drop": 0.5},
    {"replace": 0.5},
    {"random_latents": True},
    {"add_latents": 2},
]


@pytest.mark.parametrize("own", NOISY)
def test_noise_on_latents_is_a_function_of_the_key_of_a_row_and_absent_in_evaluation(own):
    model, batch, plain = thinker(**own), number_batch(), thinker()
    calm = model.eval().loss(batch).total
    torch.testing.assert_close(calm, plain.loss(batch).total, rtol=1e-12, atol=1e-12)
    model.train()
    whole = model.loss(batch).total
    assert torch.equal(whole, model.loss(batch).total) and abs(whole - calm) > 1e-6
    counts = model.counts(batch)
    order = [torch.tensor([2, 0]), torch.tensor([1, 3])]
    shares = sum(model.loss(batch.rows(i), counts=counts).total for i in order)
    torch.testing.assert_close(shares, whole, rtol=1e-10, atol=1e-10)
    other = Batch(batch.tokens, batch.targets, batch.prompt_lengths, batch.lengths, batch.keys + 1)
    assert abs(model.loss(other).total - whole) > 1e-6
    untouched = model(
        batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths
    ).logits
    calm_logits = model.eval()(
        batch.tokens, lengths=batch.lengths, prompt_lengths=batch.prompt_lengths
    ).logits
    assert torch.equal(untouched, calm_logits)


@torch.no_grad()
def test_answers_have_at_most_max_outputs_positions_whatever_the_width_of_their_rows():
    small, large = (thinker(max_outputs=n, section=3, num_latents=2).eval() for n in (3, 9))
    large.load_state_dict(
        small.state_dict() | {"queries.weight": F.pad(small.queries.weight, (0, 0, 0, 6))}
    )
    tokens, prompts = rows(2, 8), torch.tensor([6, 2])
    given = {"prompt_lengths": prompts, "lengths": torch.tensor([8, 4])}
    found, wanted = (model(tokens, **given).logits for model in (small, large))
    for row, length in enumerate(given["lengths"].tolist()):
        torch.testing.assert_close(found[row, :length], wanted[row, :length], rtol=0, atol=1e-12)
    targets = torch.full((2, 8), -100)
    targets[0, 5:8] = targets[1, 1:4] = 1
    batch = Batch(tokens, targets, prompts, given["lengths"])
    torch.testing.assert_close(small.loss(batch).total, large.loss(batch).total)
    assert small.answer(tokens[:, :6], torch.tensor([6, 2]), 3).shape == (2, 3)
    for call in (
        lambda: small(tokens, prompt_lengths=prompts, lengths=torch.tensor([8, 5])),
        lambda: small.answer(tokens[:, :6], torch.tensor([6, 2]), 4),
        lambda: small.generate(tokens, 4, prompt_lengths=torch.tensor([6, 2])),
        lambda: small.generate(tokens, 4, prompt_lengths=torch.tensor([6, 2]), use_cache=False),
    ):
        with pytest.raises(ValueError, match=r"at most 3 positions \(max_outputs\), got 4"):
            call()


def test_probes_and_latents_are_in_extra():
    model = thinker(num_probes=2)
    thought = model(rows(2, 9), num_steps=2, prompt_lengths=torch.tensor([4, 6]), keep_states=True)
    assert thought.extra["probes"].shape == (2, 2, 9, 2)
    assert thought.extra["latents"].shape == (2, 2, 3, DIM)
    expected = thought.states @ model.probe.linear.weight.T + model.probe.linear.bias
    torch.testing.assert_close(thought.extra["probes"], expected)


def test_only_the_selected_knowledge_is_in_memory():
    model, tokens = thinker(num_knowledge=4), rows(2, 6)
    parts = model.process.project(model.text(tokens))
    (all_of_it,), _ = model.think(parts, None, 2)
    (same,), _ = model.think(parts, None, 2, knowledge=torch.arange(4).expand(2, -1))
    (less,), _ = model.think(parts, None, 2, knowledge=torch.tensor([[0, 3], [1, 1]]))
    assert torch.equal(all_of_it.keys[0], same.keys[0])
    assert less.keys[0].shape[2] == all_of_it.keys[0].shape[2] - 2


@pytest.mark.misuse
@pytest.mark.parametrize(
    "own, message",
    [
        ({"section": 0}, "section must be an integer at least 1, got 0"),
        ({"noise": -1.0}, "noise must be at least 0 and finite, got -1.0"),
        ({"drop": 1.5}, "drop must be in 0 .. 1, got 1.5"),
        ({"output": "both"}, "output must be one of .*, got 'both'"),
        ({"step_weights": (1.0, 0.0)}, "step_weights must be at least 0 and finite"),
        ({"backprop_steps": 0}, "backprop_steps must be an integer at least 1, got 0"),
        ({"read_steps": -1}, "read_steps must be an integer at least 0, got -1"),
        ({"memory_steps": 0, "read_steps": 3}, "memory_steps is 0, and a step after read_steps"),
        ({"dim": 27, "num_heads": 1}, "must be even for rotary positions, got 27"),
    ],
)
def test_invalid_settings_are_named(own, message):
    settings = {"vocab_size": VOCAB, "dim": DIM, "num_heads": 1} | own
    with pytest.raises(ValueError, match=message):
        build_model("thinker", **settings)
