"""Outputs have the annotated shapes; `make test-shapes` checks every annotation on their way.

The property suite cannot run there as a whole, since it passes wrong types on purpose.
"""

import pytest
import torch
from model_cases import CASES, SIZE, ids, lesson, tiny

from thinkers.nn.tracing import record_attention
from thinkers.testing.helpers import training_batch

B, T, V, C = 3, 21, SIZE["vocab_size"], SIZE["dim"]
LENGTHS, PROMPTS = torch.tensor([T, 9, 18]), torch.tensor([17, 9, 3])


@pytest.mark.parametrize("name, own", CASES)
def test_forward_and_tracing(name, own):
    model, steps = tiny(name, own, num_layers=1), tiny(name, own).step_counts[-1]
    settings = {"num_steps": steps, "lengths": LENGTHS, "keep_states": True}
    for prompts in (None, PROMPTS):
        thought = model(ids(B, T), prompt_lengths=prompts, **settings)
        assert thought.logits.shape == (B, T, V)
        k = thought.states.shape[1]
        assert thought.states.shape == (B, k, T, C)
        assert model.read_out(thought.states).shape == (B, k, T, V)
    with record_attention() as record:
        model(ids(1, T), num_steps=steps, keep_states=True)
    for weights in model.attention(record, T, steps).values():
        assert weights.shape[:2] == (max(1, steps), T)
    size = len(model.mask(T, steps))
    assert model.mask(T, steps).shape[0] == size and size % T == 0


@pytest.mark.parametrize("name, own", CASES)
def test_loss_and_counts(name, own):
    model = tiny(name, own, num_layers=1).train()
    batch = training_batch(model)
    loss = model.loss(batch, counts=model.counts(batch))
    loss.total.backward()
    assert loss.total.shape == () and loss.correct.shape == (len(batch),)
    assert model.batch_flops(batch, training=True) > 0
    assert model.batch_flops(lesson(model, B, T)) > 0 and model.flops(B, T) > 0


@pytest.mark.parametrize("name, own", CASES)
def test_generation_and_scores(name, own):
    model = tiny(name, own, num_layers=1)
    if not model.causal:
        assert model.answer(ids(B, T), PROMPTS, 1).shape == (B, 1)
        return
    assert model.answer(ids(B, T), PROMPTS, 5).shape == (B, 5)
    for lengths, use_cache in ((None, True), (PROMPTS, False)):
        out, logits = model.generate(
            ids(B, T),
            12,
            prompt_lengths=lengths,
            temperature=1.0,
            top_k=5,
            top_p=0.9,
            generator=torch.Generator().manual_seed(0),
            stop_token=3,
            use_cache=use_cache,
            return_logits=True,
        )
        assert out.shape == (B, T + 12) and logits.shape == (B, 12, V)
    assert model.score(ids(B, T), lengths=LENGTHS).shape == (B, T - 1)
