"""check_model finds defects: each planted defect fails the property that it violates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from halting_defects import DEFECTS as HALTING_DEFECTS
from memory_defects import DEFECTS as MEMORY_DEFECTS
from model_cases import NAMES, SIZE, tiny
from torch import nn
from torch.nn import functional as F

from thinkers import testing
from thinkers.checks import check_int
from thinkers.models.base import Thought
from thinkers.models.batch import Loss
from thinkers.models.decoder import Decoder
from thinkers.models.looped import Looped
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.testing import PROPERTIES, check_model

DEFECTS = HALTING_DEFECTS | MEMORY_DEFECTS


def breaks(*properties):
    """Register a class whose defect fails these properties."""

    def register(defect):
        DEFECTS[defect.__name__] = defect, properties
        return defect

    return register


@breaks("causality")
class SeesOneTokenAhead(Decoder):
    def _run(self, tokens, *rest, **settings):
        return super()._run(tokens, *rest, **settings) + 1e-6 * self.embedding(tokens.roll(-1, 1))


@breaks("causality")
class SeesTheMeanOfTheRow(Looped):
    def _think(self, s, e, *rest):
        return super()._think(s + e.mean(1, keepdim=True), e, *rest)


@breaks("causality")
class SeesTheAnswerFromThePrompt(Decoder):
    def forward(self, tokens, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False):
        thought = super().forward(
            tokens,
            num_steps=num_steps,
            lengths=lengths,
            prompt_lengths=prompt_lengths,
            keep_states=keep_states,
        )
        if prompt_lengths is None:
            return thought
        last = F.one_hot(tokens[:, -1], 13)[:, None] * 1e-6
        return Thought(thought.logits + last, thought.states)


@breaks("outputs")
class IgnoresSteps(Looped):
    def _run(self, tokens, steps, *rest, **settings):
        return super()._run(tokens, 1, *rest, **settings)


@breaks("outputs")
class ChangesItsInput(Decoder):
    def check_tokens(self, tokens, *rest):
        return super().check_tokens(tokens, *rest).fill_(1)


@breaks("outputs")
class AnswersInLowPrecision(Decoder):
    def _answer(self, x):
        return super()._answer(x).bfloat16()


@breaks("states")
class ReadsOutWithoutTheNorm(Decoder):
    def read_out(self, states):
        return F.linear(states, self.embedding.weight)


@breaks("states")
class KeepsStatesBeforeTheCoda(Looped):
    def forward(self, tokens, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False):
        thought = super().forward(
            tokens,
            num_steps=num_steps,
            lengths=lengths,
            prompt_lengths=prompt_lengths,
            keep_states=keep_states,
        )
        return Thought(thought.logits, thought.states.flip(1) if keep_states else None)


class Moved(KeyValueCache):
    def grow(self):
        return super().grow() + 1


@breaks("caching", "generation")
class CountsPositionsFromOne(Decoder):
    def prefill(self, *rest):
        logits, cache = super().prefill(*rest)
        cache.__class__ = Moved
        return logits, cache


class Unselected(KeyValueCache):
    def select(self, rows):
        self.data, self.lengths = self.data[:, :, : len(rows)], self.lengths[rows]


@breaks("caching", "generation")
class SelectsOtherRows(Decoder):
    def prefill(self, *rest):
        logits, cache = super().prefill(*rest)
        cache.__class__ = Unselected
        return logits, cache


class Unmasked(KeyValueCache):
    def grow(self):
        positions = super().grow()
        self.visible = torch.ones_like(self.visible)
        return positions


@breaks("caching", "generation", "batch_independence")
class ReadsSlotsNeverWritten(Decoder):
    def prefill(self, *rest):
        logits, cache = super().prefill(*rest)
        cache.__class__ = Unmasked
        return logits, cache


@breaks("caching", "generation", "batch_independence")
class ReadsTheLastColumn(Decoder):
    def prefill(self, tokens, lengths, *rest):
        _, cache = super().prefill(tokens, lengths, *rest)
        return self._answer(self._run(tokens)[:, -1]), cache


@breaks("caching", "generation")
class KeepsOneStepForAll(Looped):
    def extend(self, tokens, cache):
        x = self._run(tokens[:, None], 1, cache=cache, positions=cache.grow())
        return self._answer(x[:, -1, 0])


@breaks("batch_independence", "caching", "causality")
class NormsOverTheBatch(Decoder):
    def _answer(self, x):
        return super()._answer(x - 1e-3 * x.mean(0, keepdim=True))


@breaks("batch_independence")
class ReadsPadding(Decoder):
    causal = False

    def check_tokens(self, tokens, *rest):
        super().check_tokens(tokens, *rest)
        return tokens % self.config.vocab_size

    def _run(self, tokens, *rest, **settings):
        return super()._run(tokens, *rest, **settings) + self.embedding(tokens).mean(
            1, keepdim=True
        )


@breaks("generation", "batch_independence")
class GeneratesFromPadding(Decoder):
    def generate(self, tokens, max_new_tokens, num_steps=None, prompt_lengths=None, **settings):
        if prompt_lengths is None:
            return super().generate(tokens, max_new_tokens, num_steps, **settings)
        shown = tokens % self.config.vocab_size
        out = super().generate(shown, max_new_tokens, num_steps, **settings)
        if not isinstance(out, tuple):
            return torch.cat([tokens, out[:, tokens.shape[1] :]], 1)
        return torch.cat([tokens, out[0][:, tokens.shape[1] :]], 1), out[1]


@breaks("generation")
class StopsTooEarly(Decoder):
    def generate(self, tokens, max_new_tokens, *rest, stop_token=None, pad_token=0, **settings):
        out = super().generate(tokens, max_new_tokens, *rest, **settings)
        if stop_token is not None:
            new = out[:, tokens.shape[1] :]
            new[(new == stop_token).cumsum(1) > 0] = pad_token
        return out


@breaks("evaluation_mode")
class StaysInEvaluationMode(Decoder):
    def generate(self, *rest, **settings):
        out = super().generate(*rest, **settings)
        self.eval()
        return out


@breaks("evaluation_mode")
class GeneratesInTrainingMode(Decoder):
    def eval(self):
        return self

    def _answer(self, x):
        return super()._answer(x + 0.1 * self.training)


@breaks("scores")
class ScoresTheTokenItself(Decoder):
    def score(self, tokens, lengths=None, num_steps=None):
        return super().score(tokens.roll(1, 1), lengths=lengths, num_steps=num_steps)


@breaks("scores")
class ScoresPadding(Decoder):
    def score(self, tokens, lengths=None, num_steps=None):
        return super().score(tokens % self.config.vocab_size, num_steps=num_steps)


@breaks("answers")
class AnswersItsPrompt(Decoder):
    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        return tokens[:, -max_new_tokens:]


@breaks("loss_shares")
class DividesByItsOwnCount(Decoder):
    def loss(self, batch, num_steps=None, counts=None):
        return super().loss(batch, num_steps=num_steps)


@breaks("loss_shares")
class CountsTokensNotGraded(Decoder):
    def counts(self, batch):
        return {"next_token": getattr(batch, "tokens", batch).numel()}


@breaks("correctness")
class GradesTheLastTokenAlone(Decoder):
    def loss(self, batch, num_steps=None, counts=None):
        loss = super().loss(batch, num_steps=num_steps, counts=counts)
        return Loss(loss.total, loss.parts, loss.counts, torch.ones_like(loss.correct))


@breaks("correctness")
class CountsEveryPosition(Decoder):
    def loss(self, batch, num_steps=None, counts=None):
        loss = super().loss(batch, num_steps=num_steps, counts=counts)
        columns = torch.full_like(loss.correct_tokens, getattr(batch, "tokens", batch).shape[1])
        return replace(loss, correct_tokens=columns)


@breaks("gradients")
class HasAnUnusedParameter(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Parameter(torch.ones(3))


@breaks("gradients")
class StopsAGradient(Looped):
    def _think(self, s, e, *rest):
        return super()._think(s.detach(), e.detach(), *rest)


@breaks("reproducibility")
class DrawsFromTheClock(Decoder):
    def __init__(self, config):
        super().__init__(config)
        generator = torch.Generator()
        generator.seed()
        self.norm.weight.data += torch.rand(config.dim, generator=generator)


@breaks("saving")
class ForgetsABuffer(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("shift", torch.rand(config.dim), persistent=False)

    def _answer(self, x):
        return super()._answer(x + self.shift)


@breaks("saving")
class SavesMore(Decoder):
    def save(self, folder):
        super().save(folder)
        super().save(Path(folder) / "backup")


@breaks("input_checks")
class LooksIdsUpUnchecked(Decoder):
    def check_tokens(self, tokens, lengths=None, prompt_lengths=None):
        return tokens


@breaks("input_checks")
class TakesTrueForOne(Looped):
    def check_steps(self, num_steps):
        return super().check_steps(None if num_steps is None else int(num_steps))


@breaks("input_checks")
class ChecksAfterItRan(Decoder):
    def check_tokens(self, tokens, *rest):
        self.embedding(tokens if torch.is_tensor(tokens) else torch.tensor(tokens))
        return super().check_tokens(tokens, *rest)


@breaks("input_checks")
class NamesNoValue(Decoder):
    def check_steps(self, num_steps):
        try:
            return super().check_steps(num_steps)
        except ValueError:
            raise ValueError("num_steps is wrong") from None


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_named(name, monkeypatch):
    defect, properties = DEFECTS[name]
    torch.manual_seed(0)
    model = defect(defect.Config(**SIZE)).double()
    for broken in properties:
        monkeypatch.setattr(testing, "PROPERTIES", {broken: PROPERTIES[broken]})
        with pytest.raises(
            AssertionError, match=f"{model.name} fails the property '{broken}': (?s:.*)\nexpected: "
        ):
            check_model(model)


def test_every_property_has_a_defect_that_breaks_it():
    assert set(PROPERTIES) == {p for _, properties in DEFECTS.values() for p in properties}


class Mine(Looped):
    """A model outside of MODELS, with a rule of its own for its steps."""

    name = "mine"

    @property
    def step_counts(self):
        return (1, 3)

    def check_steps(self, num_steps):
        return check_int("num_steps", 3 if num_steps is None else num_steps, 1, 4, "mine")


def test_a_model_outside_of_the_registry_is_checked_and_stays_unchanged():
    model = Mine(Mine.Config(**{**SIZE, "num_layers": 1})).train()
    model.norm.eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.get_rng_state()
    check_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.norm.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name, max_length", [*((name, 9) for name in NAMES), ("decoder", 2)])
def test_a_model_with_a_small_max_length_is_checked_with_short_rows(name, max_length):
    check_model(tiny(name, max_length=max_length, num_layers=1, max_steps=2))


def test_weights_other_than_float32_and_float64_are_refused():
    with pytest.raises(ValueError, match="float32 or float64 weights, got torch.bfloat16"):
        check_model(tiny("decoder").bfloat16())


def test_a_failure_gives_the_numbers_and_the_rule(monkeypatch):
    model = SeesOneTokenAhead(SeesOneTokenAhead.Config(**SIZE)).double()
    monkeypatch.setattr(testing, "PROPERTIES", {"causality": PROPERTIES["causality"]})
    with pytest.raises(AssertionError) as error:
        check_model(model)
    found, expected = str(error.value).splitlines()
    assert "changing token 1 changes the logits at position 0 by " in found
    assert "(num_steps=1, no prompt)" in found
    assert expected.startswith("expected: changing token j changes no logits before position j")


def test_an_error_of_the_model_is_reported_with_its_property(monkeypatch):
    class Unfinished(Decoder):
        def score(self, tokens, *, lengths=None, num_steps=None):
            raise NotImplementedError("score")

    monkeypatch.setattr(testing, "PROPERTIES", {"scores": PROPERTIES["scores"]})
    with pytest.raises(AssertionError, match="'scores': the check raised NotImplementedError"):
        check_model(Unfinished(Unfinished.Config(**SIZE)))
