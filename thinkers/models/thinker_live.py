"""Thinking of a Thinker's rows that stop by a rule, at the ends of sections and after prompts."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from thinkers.models.batch import real_positions
from thinkers.models.halt import Halt
from thinkers.models.thinker_halting import LiveThinking
from thinkers.models.thinker_policy import PolicyThinking


def live_thinking(model: Any, halt: Halt, thinks: Bool[Tensor, " b"] | None = None) -> LiveThinking:
    """Return the thinking of rows that stop by this rule."""
    return PolicyThinking(model, thinks) if halt == "policy" else LiveThinking(model, halt, thinks)


class LiveRows:
    """The thinking of a forward pass with halting: at the ends of sections, and after prompts."""

    def __init__(
        self,
        model: Any,
        halt: Halt,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"] | None,
        prompt_lengths: Int[Tensor, " b"] | None,
    ):
        self.size, self.prompt_lengths = model.config.section, prompt_lengths
        self.real = real_positions(tokens, lengths)
        # A boundary thinks if the first token written from it is real and no prompt's answer.
        sectioned = self.real if prompt_lengths is None else self.real & ~self._answers()
        thinks = sectioned[:, self.size - 1 :: self.size]
        self.sections = live_thinking(model, halt, thinks.flatten())
        self.prompts = live_thinking(model, halt)

    def _answers(self) -> Bool[Tensor, "b t"]:
        """Return True at positions that are written from the memory of a prompt."""
        columns = torch.arange(self.real.shape[1], device=self.real.device)
        assert self.prompt_lengths is not None
        return columns >= self.prompt_lengths[:, None] - 1

    def steps(self) -> Int[Tensor, "b t"]:
        """Return the steps of the boundary that each token is written from, 0 without one."""
        b, t = self.real.shape
        of_sections = self.sections.taken.to(self.real.device).view(b, t // self.size)
        section = torch.arange(1, t + 1, device=self.real.device) // self.size
        steps = F.pad(of_sections, (1, 0))[:, section]
        if self.prompt_lengths is not None:
            steps = self.prompts.taken[:, None].where(self._answers(), steps)
        return steps.where(self.real, 0)

    def actions(self) -> Int[Tensor, "b *s k"] | None:
        """Return the blocks that prompts chose, or those of the sections of rows without prompts;
        None if blocks are not chosen or nothing thinks."""
        found = self.sections if self.prompt_lengths is None else self.prompts
        if not isinstance(found, PolicyThinking) or not found.actions.numel():
            return None
        rows = found.actions
        return rows if self.prompt_lengths is not None else rows.unflatten(0, (len(self.real), -1))
