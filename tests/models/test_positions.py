"""Coupled positions and windows: whole rows, caches, batches, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import NAMES, ids, tiny

from thinkers import Batch, collate
from thinkers.models import MODELS

COUPLED = [name for name in NAMES if MODELS[name].takes_positions]
ORDERED = [name for name in NAMES if not MODELS[name].takes_positions]
NEW = 40
LENGTHS = torch.tensor([21, 9, 13])


def places(tokens):
    """A sum in tokens: 11 is + and 12 is =, digits have their place, and all counts on after =."""
    columns = torch.arange(tokens.shape[1]).expand(tokens.shape)
    is_answer = (tokens == 12).cumsum(1) - (tokens == 12).long() > 0
    is_mark = ((tokens >= 11) | (columns == 0)) & ~is_answer
    return columns - torch.where(is_mark, columns, 0).cummax(1).values


def rising(tokens):
    """Positions that stay for three tokens."""
    return torch.arange(tokens.shape[1]).expand(tokens.shape) // 3


def sums():
    """Prompts a + b = of 10, 4 and 6 digits, left-aligned; padding holds arbitrary ids."""
    rows = ids(3, 21, high=10)
    for row, n in zip(rows, LENGTHS.tolist(), strict=True):
        digits = (n - 1) // 2
        row[digits], row[2 * digits] = 11, 12
    return rows


def left_padded(rows):
    out = torch.zeros_like(rows)
    for row, found, n in zip(rows, out, LENGTHS.tolist(), strict=True):
        found[len(row) - n :] = row[:n]
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("window, positions", [(2, places), (None, rising)])
def test_a_cache_gives_what_whole_rows_give(name, window, positions):
    model, rows = tiny(name, window=window).double(), sums()
    given = {"prompt_lengths": LENGTHS, "positions": positions, "return_logits": True}
    prompts = left_padded(rows)
    out, cached = model.generate(prompts, NEW, **given)
    again, whole = model.generate(prompts, NEW, use_cache=False, **given)
    assert torch.equal(out, again)
    limit = float(whole.abs().max())
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-10 * limit)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = out[row : row + 1, 21 - n : -1]
        logits = model(alone, positions=positions(alone)).logits[0, n - 1 :]
        torch.testing.assert_close(cached[row], logits, rtol=0, atol=1e-10 * limit)
    plain = model.generate(prompts, NEW, return_logits=True, prompt_lengths=LENGTHS)[1]
    assert not torch.allclose(plain, cached)


@pytest.mark.unchecked  # repeats one call
@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=70),
    st.integers(1, 4),
    st.sampled_from(COUPLED),
    st.data(),
)
def test_a_cache_of_any_positions_gives_what_whole_rows_give(prompts, steps, window, name, data):
    """Prompts of any positions; then each row goes on in steps, and some rows leave."""
    model = tiny(name, window=window, max_length=128).double()
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    t = int(lengths.max())
    start = torch.tensor([prompt + [7] * (t - len(prompt)) for prompt in prompts])
    tokens = ids(len(prompts), t + len(steps))
    rows = torch.arange(len(prompts))
    logits, cache = model.prefill(
        tokens[:, :t].where(torch.arange(t) < lengths[:, None], 0),
        lengths,
        model.config.num_steps,
        True,
        t + len(steps),
        positions=start,
    )
    whole = [prompt + [prompt[-1]] * len(steps) for prompt in prompts]
    for i in range(len(prompts)):
        for j in range(len(steps)):
            whole[i][lengths[i] + j] = whole[i][lengths[i] + j - 1] + steps[(i + j) % len(steps)]
    leaves = data.draw(st.integers(0, len(steps)))
    expected = [
        model(
            torch.cat([tokens[i, : lengths[i]], tokens[i, t:]])[None],
            positions=torch.tensor([whole[i]]),
        ).logits[0, lengths[i] - 1 :]
        for i in range(len(prompts))
    ]
    for j in range(len(steps)):
        for row, i in enumerate(rows.tolist()):
            torch.testing.assert_close(logits[row], expected[i][j], rtol=0, atol=1e-10)
        if j == leaves and len(rows) > 1:
            cache.select(torch.arange(1, len(rows)))
            rows = rows[1:]
        now = torch.tensor([whole[i][lengths[i] + j] for i in rows.tolist()])
        logits = model.extend(tokens[rows, t + j], cache, positions=now)


@pytest.mark.unchecked  # repeats one call
@torch.no_grad()
@pytest.mark.parametrize("name", COUPLED)
def test_memory_does_not_grow_with_the_tokens_written(name):
    model = tiny(name, window=3, max_length=2000, num_layers=1, num_steps=1)
    rows, lengths = sums(), LENGTHS
    _, cache = model.prefill(rows, lengths, 1, True, 2000, positions=places(rows))
    sizes = []
    for token in range(300):
        model.extend(ids(3), cache, positions=torch.full((3,), token + 1))
        sizes.append(cache.data.shape[-2])
    assert max(sizes) <= 21 + 32
    assert set(sizes[-150:]) == {1 + 3 + 32}, "the newest of each position, and room for more"
    in_order = tiny(name, window=3, max_length=2000, num_layers=1, num_steps=1)
    _, cache = in_order.prefill(rows, lengths, 1, True, 2000)
    for _ in range(70):
        in_order.extend(ids(3), cache)
    assert cache.data.shape[-2] == 1 + 3 + 32


@torch.no_grad()
@pytest.mark.parametrize("name", COUPLED)
def test_positions_that_fall_are_refused_where_keys_are_dropped(name):
    falling = {"positions": lambda x: 9 - torch.arange(x.shape[1]).expand(x.shape)}
    model = tiny(name, window=3)
    with pytest.raises(ValueError, match="position 4 after 5 in row 0, with window 3"):
        model.generate(ids(2, 5), 3, **falling)
    found = model.generate(ids(2, 5), 3, use_cache=False, return_logits=True, **falling)[1]
    assert found.isfinite().all()
    model = tiny(name)
    cached, whole = (
        model.generate(ids(2, 5), 3, use_cache=use, return_logits=True, **falling)[1]
        for use in (True, False)
    )
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COUPLED)
def test_the_loss_takes_the_positions_of_a_batch(name):
    model, rows = tiny(name, window=2).double(), sums()
    targets = ids(3, 21, seed=1)
    batch = Batch(rows, targets, lengths=LENGTHS, positions=places(rows))
    whole = model.loss(batch).total
    counts = model.counts(batch)
    parts = [model.loss(batch.rows(slice(i, i + 1)), counts=counts).total for i in range(3)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    ignored = places(rows).masked_fill(torch.arange(21) >= LENGTHS[:, None], -5)
    assert torch.equal(model.loss(replace(batch, positions=ignored)).total, whole)
    assert not torch.allclose(model.loss(replace(batch, positions=None)).total, whole)
    moved = replace(batch, positions=places(rows) + 7)  # rotary positions are relative
    torch.testing.assert_close(model.loss(moved).total, whole, rtol=1e-10, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", COUPLED)
def test_scores_and_logits_take_a_tensor_or_a_function(name):
    model, rows = tiny(name, window=2).double(), sums()
    given = {"lengths": LENGTHS}
    logits = model(rows, positions=places, **given).logits
    assert torch.equal(logits, model(rows, positions=places(rows), **given).logits)
    score = model.score(rows, positions=places, **given)
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    real = torch.arange(1, 21) < LENGTHS[:, None]
    assert torch.equal(score, chosen.where(real, torch.zeros_like(chosen)))
    one = model.answer(left_padded(rows), LENGTHS, 1, positions=places)
    of_tensor = model.answer(left_padded(rows), LENGTHS, 1, positions=left_padded(places(rows)))
    assert torch.equal(one, of_tensor)


def test_rows_and_joined_batches_keep_positions():
    one = Batch(ids(2, 5), ids(2, 5), positions=ids(2, 5, seed=2))
    two = Batch(ids(1, 3), ids(1, 3), positions=ids(1, 3, seed=3))
    found = collate([one, two])
    assert torch.equal(found.positions[:2], one.positions)
    assert (
        torch.equal(found.positions[2, :3], two.positions[0]) and not found.positions[2, 3:].any()
    )
    assert torch.equal(found.rows(torch.tensor([2, 0])).positions, found.positions[[2, 0]])
    assert torch.equal(found.to("cpu").positions, found.positions)
    with pytest.raises(ValueError, match="positions must be set in all batches or in none"):
        collate([one, replace(two, positions=None)])


@pytest.mark.parametrize("name", ORDERED)
def test_a_model_without_coupled_positions_refuses_them(name):
    model, tokens = tiny(name), ids(2, 5)
    at, lengths = torch.zeros_like(tokens), torch.tensor([5, 5])
    refusal = f"positions for {name}.*\n.*decoder or looped"
    with pytest.raises(ValueError, match=refusal):
        model.loss(Batch(tokens, tokens, positions=at))
    with pytest.raises(ValueError, match=refusal):
        model.generate(tokens, 1, positions=at)
    with pytest.raises(ValueError, match=refusal):
        model.answer(tokens, lengths, 2, positions=places)
    with pytest.raises(ValueError, match=refusal):
        model.score(tokens, positions=at)
    with pytest.raises((ValueError, TypeError), match="positions"):
        model(tokens, positions=at)


WRONG = [
    (torch.zeros(2, 4, dtype=torch.int64), ValueError, r"shape of tokens \[2, 5\], got \[2, 4\]"),
    (torch.zeros(2, 5), TypeError, "positions must be an int64 tensor, got float32"),
    (torch.tensor([[0] * 5, [0, 0, -1, 0, 0]]), ValueError, "0 .. .* got -1 at row 1, column 2"),
    (lambda x: x[:, 1:], ValueError, "shape of tokens"),
]


@pytest.mark.misuse
@pytest.mark.parametrize("given, kind, message", WRONG)
@pytest.mark.parametrize("name", COUPLED)
def test_wrong_positions_are_refused(name, given, kind, message):
    model, tokens = tiny(name), ids(2, 5)
    with pytest.raises(kind, match=message):
        model(tokens, positions=given)
    if not callable(given):
        with pytest.raises(kind, match=message):
            model.loss(Batch(tokens, tokens, positions=given))
    with pytest.raises(kind, match=message.replace("an int64 tensor", ".*int64 tensor")):
        model.generate(tokens, 1, positions=given)


@pytest.mark.parametrize("name", COUPLED)
def test_a_tensor_does_not_say_where_new_tokens_are(name):
    with pytest.raises(ValueError, match="3 new tokens\n.*\n.*task.positions"):
        tiny(name).generate(ids(2, 5), 3, positions=torch.zeros(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("name", COUPLED)
def test_the_picture_of_the_mask_is_that_of_the_window(name):
    rows = torch.arange(9)
    distance = rows[:, None] - rows
    assert torch.equal(tiny(name, window=2).mask(9), (distance >= 0) & (distance <= 2))
    assert torch.equal(tiny(name).mask(9), distance >= 0)
