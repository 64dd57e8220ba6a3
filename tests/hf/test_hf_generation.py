"""generate of Hugging Face gives the logits and tokens of the model's own, bit for bit."""

import pytest
import torch
from hf_cases import LENGTHS, MASK, PROMPTS, asked, pair, rules, written
from model_cases import CASES, NAMES, ids

pytest.importorskip("transformers")
pytestmark = pytest.mark.extras


@pytest.mark.parametrize(("name", "own"), CASES)
def test_logits_and_tokens_are_those_of_the_model_at_every_number_of_steps(name, own):
    model, copy = pair(name, own)
    if not model.causal:
        with pytest.raises(ValueError, match="reads the future"):
            written(copy, 2)
        return
    for steps in {*model.step_counts, model.config.least_steps}:
        for halt in rules(model):
            for cache in (True, False):
                tokens, logits = written(
                    copy, 3, num_thinking_steps=steps, use_cache=cache, **asked(halt)
                )
                options = {"return_logits": True, "use_cache": cache, **asked(halt)}
                out, right = model.generate(PROMPTS, 3, steps, LENGTHS, **options)
                assert torch.equal(logits, right), (steps, halt, cache)
                assert torch.equal(tokens, out[:, PROMPTS.shape[1] :])


def test_a_window_that_drops_keys_gives_the_same_logits():
    model, copy = pair("looped", {"window": 3})
    tokens, logits = written(copy, 45)
    out, right = model.generate(PROMPTS, 45, None, LENGTHS, return_logits=True)
    assert torch.equal(logits, right) and torch.equal(tokens, out[:, 7:])


@pytest.mark.parametrize("name", NAMES)
def test_beams_with_a_cache_are_those_without_and_have_the_scores_of_the_model(name):
    model, copy = pair(name)
    options = {"attention_mask": MASK, "max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    options |= {"num_return_sequences": 2, "length_penalty": 0.0}
    found = copy.generate(PROMPTS, return_dict_in_generate=True, output_scores=True, **options)
    whole = copy.generate(PROMPTS, use_cache=False, **options)
    assert torch.equal(found.sequences, whole)
    lengths = LENGTHS.repeat_interleave(2)
    for row, length, score in zip(found.sequences, lengths, found.sequences_scores, strict=True):
        row = row[None, 7 - length :]
        with torch.no_grad():
            logits = model(row, prompt_lengths=length[None]).logits[:, -5:-1]
        chosen = logits.log_softmax(-1).gather(-1, row[:, -4:, None])
        assert abs(float(score) - float(chosen.sum())) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_equal_with_and_without_a_cache(name):
    _, copy = pair(name)
    found = []
    for cache in (True, False):
        torch.manual_seed(0)
        found.append(
            copy.generate(
                PROMPTS,
                attention_mask=MASK,
                max_new_tokens=4,
                do_sample=True,
                temperature=0.9,
                top_p=0.95,
                use_cache=cache,
                num_return_sequences=2,
            )
        )
    assert torch.equal(*found) and len(found[0]) == 6


def test_a_row_that_has_ended_is_filled_and_the_others_go_on():
    model, copy = pair("looped")
    free = model.generate(PROMPTS, 8, None, LENGTHS)[:, 7:]
    stop = int(free[0, 2])
    for pad in (0, 99):  # the second is in no row of the embedding, and is never read
        out = copy.generate(
            PROMPTS,
            attention_mask=MASK,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=pad,
        )
        right = model.generate(PROMPTS, 8, None, LENGTHS, stop_token=stop, pad_token=pad)
        assert torch.equal(out, right[:, : out.shape[1]])
        assert (out[0, 7:] == pad).any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_the_caller_writes_token_by_token(name):
    model, copy = pair(name)
    rows = ids(2, 12)
    with torch.no_grad():
        right = model(rows).logits
        begun = copy(rows[:, :6], use_cache=True)
        assert torch.equal(begun.logits, model(rows[:, :6]).logits)
        cache = begun[1]
        one = copy(rows[:, 6:7], past_key_values=cache)
        more = copy(rows[:, 7:], past_key_values=one[1])
    found = torch.cat([one.logits, more.logits], 1)
    assert (found - right[:, 6:]).abs().max() <= 1e-10 * right.abs().max()
    assert cache.get_seq_length() == 12
    with pytest.raises(ValueError, match="one number for all tokens"):
        copy(rows[:, :1], past_key_values=cache, num_thinking_steps=99)


@pytest.mark.parametrize(("name", "own"), CASES)
def test_losses_and_states_are_those_of_the_model_on_either_side_of_padding(name, own):
    from thinkers.models import Batch

    model, copy = pair(name, own)
    rows, n = ids(3, 7, seed=2), torch.arange(7)
    left, right = MASK, (n < LENGTHS[:, None]).long()
    columns = (n + (7 - LENGTHS)[:, None]).clamp(max=6)
    aligned = rows.gather(1, columns)
    labels = rows.clone()
    labels[0, 3] = -100
    targets = torch.full_like(rows, -100)
    targets[:, :-1] = labels.gather(1, columns)[:, 1:]
    batch = Batch(aligned, targets.where(n + 1 < LENGTHS[:, None], -100), lengths=LENGTHS)
    with torch.no_grad():
        thought = model(aligned, lengths=LENGTHS, keep_states=True)
        loss = model.loss(batch).total
        for mask, given, graded in (
            (left, rows, labels),
            (right, aligned, labels.gather(1, columns)),
        ):
            found = copy(given, mask, labels=graded, output_hidden_states=True)
            assert found.loss == loss
            assert torch.equal(found.logits[mask.bool()], thought.logits[right.bool()])
            for state, own_state in zip(found.hidden_states, thought.states.unbind(1), strict=True):
                assert torch.equal(state[mask.bool()], own_state[right.bool()])
