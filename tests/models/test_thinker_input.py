"""Text that a Thinker reads passes a convolution and causal layers, as they are defined."""

import dataclasses

import pytest
import torch
from thinker_definition import DIM, defined_answer, defined_input, defined_memories, rows, thinker

from thinkers import build_model
from thinkers.errors import UsageError
from thinkers.models.thinker_input import read_text
from thinkers.nn.causal_mixing import TextCache

INPUTS = [
    {"mixing": 3},
    {"mixing": 7},
    {"num_input_layers": 2},
    {"mixing": 2, "num_input_layers": 1, "hidden": 24},
]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=INPUTS, ids=str)
def model(request):
    # The input layers have more heads than one, and the width of a head is even.
    return thinker(**{"num_heads": 13, **request.param})


@torch.no_grad()
@pytest.mark.parametrize("section", [None, 5])
def test_text_is_mixed_as_defined(model, section):
    tokens = rows(3, 15)
    found = model.text(tokens, section=section)
    for row, vectors in zip(tokens, found, strict=True):
        torch.testing.assert_close(vectors, defined_input(model, row, section), **EXACT)


@torch.no_grad()
def test_answers_are_written_from_the_mixed_prompt_as_one_section(model):
    tokens, prompts = rows(3, 17), torch.tensor([7, 1, 12])
    logits = model(tokens, prompt_lengths=prompts).logits
    for i, p in enumerate(prompts.tolist()):
        memory = defined_memories(model, tokens[i : i + 1, :p], 3)[-1]
        expected = defined_answer(model, memory, tokens[i : i + 1, p - 1 :], p - 1)
        torch.testing.assert_close(logits[i : i + 1, p - 1 :], expected, **EXACT)


@torch.no_grad()
def test_each_section_is_written_from_all_mixed_sections_before_it(model):
    tokens = rows(2, 17)
    logits = model(tokens).logits
    for i in range(2):
        for end in (5, 10, 15):
            memory = defined_memories(model, tokens[i : i + 1, :end], 3, section=5)[-1]
            given = tokens[i : i + 1, end - 1 : end + 4]
            expected = defined_answer(model, memory, given, end - 1)
            places = slice(end - 1, end - 1 + given.shape[1])
            torch.testing.assert_close(logits[i : i + 1, places], expected, **EXACT)


@torch.no_grad()
def test_text_read_section_by_section_is_text_read_at_once(model):
    tokens, past = rows(3, 20), TextCache()
    whole = read_text(model, tokens, 5)
    pieces = [read_text(model, tokens[:, :10], 5, 0, past)]
    past.select(torch.tensor([2, 0]))
    for first in (10, 15):
        piece = tokens[[2, 0], first : first + 5]
        pieces.append(read_text(model, piece, 5, first, past))
    for parts in zip(whole, *pieces, strict=True):
        torch.testing.assert_close(parts[1], parts[0][:, :, :10], **EXACT)
        later = torch.cat(parts[2:], 2)
        torch.testing.assert_close(later, parts[0][[2, 0], :, 10:], **EXACT)


@torch.no_grad()
def test_cached_generation_of_text_and_answers_is_that_without_a_cache(model):
    tokens = rows(4, 12)
    for prompts in (None, torch.tensor([12, 3, 5, 1])):
        settings = {"prompt_lengths": prompts, "return_logits": True}
        cached, logits = model.generate(tokens, 9, **settings)
        again, expected = model.generate(tokens, 9, use_cache=False, **settings)
        assert torch.equal(cached, again)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10 * expected.abs().max())


@torch.no_grad()
def test_a_cache_goes_on_with_the_rows_that_are_left(model):
    tokens, left = rows(4, 21), torch.tensor([3, 1])
    _, cache = model.prefill(tokens[:, :12], torch.full((4,), 12), 3, False, 21)
    cache.select(left)
    logits = torch.stack([model.extend(tokens[left, i], cache) for i in range(12, 21)], 1)
    torch.testing.assert_close(logits, model(tokens[left]).logits[:, 12:], **EXACT)


def test_answers_teach_the_weights_that_read(model):
    tokens = rows(2, 16)
    model.loss(tokens).total.backward()
    weights = dict(model.text.mix.named_parameters())
    assert weights and all(w.grad is not None and w.grad.any() for w in weights.values())


def test_output_queries_carry_the_token_before_them_as_it_is():
    model, tokens = thinker(mixing=3, num_input_layers=1), rows(2, 4)
    plain = thinker()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".mix." not in k})
    # The first section is written from the initial latents, and nothing has been read.
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_at_zero_there_are_no_weights_and_all_is_as_it_was():
    plain, same = thinker(), thinker(mixing=0, num_input_layers=0)
    assert plain.text.mix is None
    ours, theirs = plain.state_dict(), same.state_dict()
    assert list(ours) == list(theirs) and not any("mix" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = rows(2, 7)
    expected = DIM**0.5 * (plain.text.embedding(tokens) + plain.text.position.weight[:7])
    assert torch.equal(plain.text(tokens), expected)
    added = {f.name for f in dataclasses.fields(plain.config) if "added" in f.metadata}
    assert {"mixing", "num_input_layers"} <= added  # models saved before lack them, and load


@pytest.mark.parametrize("own", INPUTS, ids=str)
def test_the_published_variant_refuses_to_mix_its_input(own):
    name = next(iter(own))
    published = {"variant": "published", "output": "parallel", "vocab_size": 13, **own}
    with pytest.raises(UsageError, match=f"{name} must be 0, .* variant is published"):
        build_model("thinker", **published)


@pytest.mark.misuse
@pytest.mark.parametrize("name", ["mixing", "num_input_layers"])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_sizes_that_are_not_counts_are_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} must be an integer"):
        build_model("thinker", vocab_size=13, **{name: value})
