"""Generation: what is drawn, when rows stop, and what is never read."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import NAMES, ids, tiny
from torch import nn
from torch.nn import functional as F

from thinkers.models import base
from thinkers.models.base import Model, Thought
from thinkers.models.generation import choose, draw_times, race


class Counting(Model):
    """After token i comes i + 1: what generation does around a model, seen without one."""

    name = "counting"

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        pass

    def __init__(self, **settings):
        super().__init__(self.Config(vocab_size=10, max_length=12, num_heads=1, dim=1, **settings))
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.read = []

    def forward(self, tokens, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False):
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        self.read.append(("forward", tokens.tolist(), prompt_lengths))
        return Thought(self.scale * F.one_hot((tokens + 1) % 10, 10))

    def prefill(self, tokens, lengths, num_steps, prompted, capacity):
        self.read.append(("prefill", tokens.tolist(), prompted, num_steps, capacity))
        last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
        return self.scale * F.one_hot((last + 1) % 10, 10), self

    def extend(self, tokens, cache):
        self.read.append(("extend", tokens.tolist()))
        return self.scale * F.one_hot((tokens + 1) % 10, 10)

    def select(self, rows):
        self.read.append(("select", rows.tolist()))

    def read_out(self, states):
        raise NotImplementedError

    def flops(self, *_, **__):
        return 0


PROMPT = torch.tensor([[-4, 7, 6, 1], [99, 99, 99, 5], [2, 2, 0, 8]])
LENGTHS = torch.tensor([2, 1, 4])


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_are_continued_from_their_last_column(use_cache):
    out = Counting().generate(PROMPT, 3, prompt_lengths=LENGTHS, use_cache=use_cache)
    assert out.dtype == torch.int64
    assert out.tolist() == [
        [-4, 7, 6, 1, 2, 3, 4],
        [99, 99, 99, 5, 6, 7, 8],
        [2, 2, 0, 8, 9, 0, 1],
    ]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_that_produced_the_stop_token_is_filled(use_cache):
    model = Counting()
    settings = {"prompt_lengths": LENGTHS, "stop_token": 8, "pad_token": -1}
    out, logits = model.generate(PROMPT, 7, use_cache=use_cache, return_logits=True, **settings)
    assert out[:, 4:].tolist() == [
        [2, 3, 4, 5, 6, 7, 8],
        [6, 7, 8, -1, -1, -1, -1],
        [9, 0, 1, 2, 3, 4, 5],
    ]
    wanted = 3.0 * F.one_hot(out[:, 4:].clamp(min=0), 10).double()
    wanted[1, 3:] = 0
    assert logits.dtype == torch.float64 and torch.equal(logits, wanted)


def test_a_finished_row_is_not_computed_further():
    model = Counting()
    model.generate(PROMPT, 6, prompt_lengths=LENGTHS, stop_token=8)
    assert [call for call in model.read if call[0] == "select"] == [("select", [0, 2])]
    assert [len(call[1]) for call in model.read if call[0] == "extend"] == [3, 3, 2, 2, 2]


def test_nothing_runs_once_all_rows_are_finished():
    model, prompt = Counting(), torch.tensor([[1], [5], [8]])
    out, logits = model.generate(prompt, 9, stop_token=2, pad_token=7, return_logits=True)
    wanted = [[1, 2] + 8 * [7], [5, 6, 7, 8, 9, 0, 1, 2, 7, 7], [8, 9, 0, 1, 2] + 5 * [7]]
    assert out.tolist() == wanted
    assert sum(call[0] == "extend" for call in model.read) == 6
    assert logits.shape == (3, 9, 10) and not logits[0, 1:].any() and not logits[:, 7:].any()


def test_prompts_reach_the_model_without_their_padding():
    model = Counting()
    model.generate(PROMPT, 2, 3, LENGTHS)
    rows = [[6, 1, 0, 0], [5, 0, 0, 0], [2, 2, 0, 8]]
    assert model.read[0] == ("prefill", rows, True, 3, 6)
    model.read.clear()
    model.generate(PROMPT[:2], 2, prompt_lengths=LENGTHS[:2], use_cache=False)
    name, found, prompts = model.read[0]
    assert (name, found, prompts.tolist()) == ("forward", [[6, 1], [5, 0]], [2, 1])
    name, found, prompts = model.read[1]
    assert (name, found, prompts.tolist()) == ("forward", [[6, 1, 2], [5, 6, 0]], [2, 1])
    model.read.clear()
    model.generate(PROMPT[2:], 1)
    assert model.read[0][2] is False


@pytest.mark.parametrize("use_cache", [True, False])
def test_no_new_tokens_are_none(use_cache):
    model = Counting()
    out, logits = model.generate(
        PROMPT, 0, prompt_lengths=LENGTHS, use_cache=use_cache, return_logits=True
    )
    assert torch.equal(out, PROMPT) and not model.read
    assert logits.shape == (3, 0, 10) and logits.dtype == torch.float64


def test_max_length_bounds_the_real_tokens_alone():
    model = Counting()
    wide = torch.cat([torch.full((3, 20), -1), PROMPT], 1)
    assert model.generate(wide, 8, prompt_lengths=LENGTHS).shape == (3, 32)
    with pytest.raises(ValueError, match=r"at most 12 together \(max_length\), got 4 \+ 9"):
        model.generate(wide, 9, prompt_lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"got 24 \+ 0"):
        model.generate(wide.clamp(0), 0)
    assert all(len(call[1]) == 3 for call in model.read)


@pytest.mark.misuse
@pytest.mark.parametrize(
    "settings, words",
    [
        ({"max_new_tokens": -1}, "max_new_tokens.*at least 0.*-1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens.*2.0"),
        ({"max_new_tokens": True}, "max_new_tokens.*True"),
        ({"temperature": -0.1}, "temperature.*-0.1"),
        ({"temperature": math.inf}, "temperature.*inf"),
        ({"temperature": math.nan}, "temperature.*nan"),
        ({"top_k": 0}, "top_k.*at least 1.*0"),
        ({"top_k": 2.5}, "top_k.*2.5"),
        ({"top_p": 0.0}, "top_p.*0.0"),
        ({"top_p": 1.1}, "top_p.*1.1"),
        ({"prompt_lengths": torch.tensor([1, 5, 2])}, r"prompt_lengths.*1 .. 4.*got 5 in row 1"),
        ({"prompt_lengths": torch.tensor([1, 2])}, r"prompt_lengths.*\(3,\).*\[2\]"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_runs(settings, words):
    model = Counting()
    with pytest.raises(ValueError, match=words):
        model.generate(PROMPT, **{"max_new_tokens": 2, "prompt_lengths": LENGTHS, **settings})
    assert not model.read


def test_a_wrong_id_is_named_where_the_caller_put_it():
    wrong = PROMPT.clone()
    wrong[0, 3] = 10
    with pytest.raises(ValueError, match=r"tokens must be in 0 .. 9.*got 10 at \[0, 3\]"):
        Counting().generate(wrong, 1, prompt_lengths=LENGTHS)


def test_the_mode_is_restored_even_after_a_failure():
    model = Counting().train()
    model.extend = None
    with pytest.raises(TypeError):
        model.generate(PROMPT, 3, prompt_lengths=LENGTHS)
    assert model.training


@pytest.mark.parametrize("name", NAMES)
def test_drawing_is_a_function_of_the_generator_alone(name):
    model, prompt = tiny(name), ids(3, 5)

    def drawn(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(prompt, 9, temperature=1.5, generator=generator, **settings)

    state = torch.get_rng_state()
    assert torch.equal(drawn(0), drawn(0))
    assert torch.equal(drawn(0), drawn(0, use_cache=False))
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(torch.get_rng_state(), state)
    greedy = model.generate(prompt, 9)
    assert torch.equal(drawn(0, top_k=1), greedy) and torch.equal(drawn(0, top_p=1e-9), greedy)
    logits = model.generate(prompt, 2, temperature=0.7, top_k=2, return_logits=True)[1]
    assert torch.equal(logits[:, 0], model.generate(prompt, 2, return_logits=True)[1][:, 0])


def allowed(logits, temperature, top_k, top_p):
    """The distribution that is drawn from, by sorting a list."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k is not None:
        ranked = ranked[:top_k]
    if top_p is not None:
        whole, reached, kept = math.fsum(weights[i] for i in ranked), 0.0, []
        for i in ranked:
            kept.append(i)
            reached += weights[i] / whole
            if reached >= top_p:
                break
        ranked = kept
    whole = math.fsum(weights[i] for i in ranked)
    return [weights[i] / whole if i in ranked else 0.0 for i in range(len(logits))]


LOGITS = [0.3, -1.2, 2.0, 0.9, 1.9, -math.inf, 0.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    "top_k, top_p", [(None, None), (3, None), (None, 0.8), (4, 0.6), (50, 1.0)]
)
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, top_k, top_p):
    draws, logits = 20_000, torch.tensor(LOGITS).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits, temperature, top_k, top_p, generator)
    counts = Counter(drawn.tolist())
    for token, p in enumerate(allowed(LOGITS, temperature, top_k, top_p)):
        assert abs(counts[token] - draws * p) <= 5 * math.sqrt(draws * p * (1 - p)), token


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=9),
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.01, 1),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_filtered_tokens_are_never_drawn(logits, temperature, top_k, top_p):
    rows = torch.tensor(logits, dtype=torch.float64).expand(64, -1)
    drawn = choose(rows, temperature, top_k, top_p, torch.Generator().manual_seed(1))
    # What lies on the edge of top_p may fall on either side by rounding.
    edge = None if top_p is None else min(1, top_p + 1e-9)
    probabilities = allowed(logits, temperature, top_k, edge)
    # Logits are compared after the largest is subtracted, which may make them equal.
    shifted = [x - max(logits) for x in logits]
    pairs = list(zip(shifted, logits, strict=True))
    tied = [
        i
        for i, (x, raw) in enumerate(pairs)
        if shifted.index(x) != i or any(x == y and raw != other for y, other in pairs)
    ]
    assert all(probabilities[i] > 0 or i in tied for i in drawn.tolist())


def test_filters_keep_the_likeliest_token_and_the_first_of_equal_ones():
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    assert choose(logits).tolist() == [1, 0]
    for _ in range(20):
        assert choose(logits, 1.0, top_k=1).tolist() == [1, 0]
        assert choose(logits, 1.0, top_p=1e-12).tolist() == [1, 0]
        assert choose(logits, 1e-300)[0] in (1, 2, 3)
    huge = torch.tensor([[3e38, 2.9e38, -3e38]])
    assert choose(huge, 0.01).tolist() == [0]


@pytest.mark.parametrize("top_p", [None, 1.0])
def test_a_draw_does_not_depend_on_the_ranks_of_nearly_equal_tokens(top_p):
    """Rounding in another batch changes these ranks."""
    noise = torch.randn(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [
        choose(1e-9 * row.expand(2000, -1), 1.0, None, top_p, torch.Generator().manual_seed(1))
        for row in noise
    ]
    assert torch.equal(*found) and len(found[0].unique()) > 190


def test_draws_are_those_of_torch():
    probs = torch.rand(50, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    found = race(probs, draw_times(probs, one))
    assert torch.equal(found, torch.multinomial(probs, 1, generator=other)[:, 0])


@pytest.mark.misuse
def test_settings_may_be_numpy_numbers():
    model = Counting()
    out = model.generate(PROMPT, np.int64(2), np.int32(3), LENGTHS, top_k=np.int64(2))
    assert out.shape == (3, 6)


@pytest.mark.misuse
@pytest.mark.parametrize(
    "own", [{"stop_token": 1.5}, {"stop_token": -1}, {"stop_token": 13}, {"pad_token": 0.5}]
)
def test_stop_and_pad_tokens_that_cannot_be_are_refused(own):
    with pytest.raises(ValueError, match=f"{next(iter(own))} must be an integer .*, got"):
        tiny("decoder").generate(ids(2, 5), 3, **own)
