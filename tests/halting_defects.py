"""Models whose tokens halt with a defect, which fails the properties named beside it."""

from dataclasses import dataclass, replace

import torch

from thinkers.models.looped import Looped

DEFECTS = {}


def breaks(*properties):
    """Register a class whose defect fails these properties."""

    def register(defect):
        DEFECTS[defect.__name__] = defect, properties
        return defect

    return register


class Halting(Looped):
    @dataclass(frozen=True, kw_only=True)
    class Config(Looped.Config):
        halting: bool = True


@breaks("halting")
class HaltsWhenTheWholeBatchIsDone(Halting):
    def is_done(self, states, halt):
        done = super().is_done(states, halt)
        return done.all().expand_as(done)


@breaks("halting")
class GatesSeeOtherTokens(Halting):
    def is_done(self, states, halt):
        return super().is_done(states + 0.3 * states.mean(1, keepdim=True), halt)


@breaks("halting")
class HaltsAtOne(Halting):
    def is_done(self, states, halt):
        return super().is_done(states, min(halt, 0.9))


@breaks("halting")
class CountsStepsFromZero(Halting):
    def forward(self, tokens, **settings):
        thought = super().forward(tokens, **settings)
        return replace(thought, steps=(thought.steps - 1).clamp(min=0))


@breaks("halting")
class TellsStepsOfPadding(Halting):
    def forward(self, tokens, **settings):
        thought = super().forward(tokens, **settings)
        return replace(thought, steps=thought.steps.clamp(min=1))


@breaks("halting")
class TakesAnyHalt(Halting):
    def answer(self, *rest, halt=None, **settings):
        return super().answer(*rest, **settings)


@breaks("halted_caching")
class ForgetsToHaltAfterThePrompt(Halting):
    def prefill(self, *rest, **settings):
        logits, cache = super().prefill(*rest, **settings)
        return logits, replace(cache, halt=1.0)


@breaks("halted_caching")
class LeavesLaterStepsEmpty(Halting):
    """Keys of steps that no token of the prompt took are not those of its last step."""

    def prefill(self, tokens, lengths, num_steps, *rest, **settings):
        logits, cache = super().prefill(tokens, lengths, num_steps, *rest, **settings)
        first = len(self.prelude) + (num_steps - 1) * len(self.core)
        cache.kept.data[first : first + len(self.core)] = 0
        return logits, cache


@breaks("halted_caching")
class KeepsStepsOfRowsThatLeft(Halting):
    def extend(self, tokens, cache, **settings):
        logits = super().extend(tokens, cache, **settings)
        cache.taken = torch.full_like(cache.taken, int(cache.taken.max()))
        return logits


@breaks("halted_caching")
class TellsOneStepLess(Halting):
    def generate(self, *rest, **settings):
        found = super().generate(*rest, **settings)
        if settings.get("return_steps"):
            return (*found[:-1], (found[-1] - 1).clamp(min=0))
        return found
