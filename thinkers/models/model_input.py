"""ModelInput: checks of what a model is called with, before it runs."""

from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from thinkers.checks import check_int, check_rows
from thinkers.models.batch import real_positions
from thinkers.models.extra_inputs import Extra, check_extra
from thinkers.models.halt import Halt, check_halt, with_policy
from thinkers.models.memory_option import check_takes_memory
from thinkers.models.positions import Positions, refuse_positions

OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("halt", "positions", "memory", "extra")),
    "policy": False,
}
"""Keywords of `forward` that not every model takes, each with the value that asks for nothing."""


def check_options(
    model: Any,
    *,
    halt: Halt = None,
    policy: bool = False,
    positions: Positions | None = None,
    memory: Any = None,
    extra: Extra = None,
) -> None:
    """Raise UsageError if one of OPTIONS asks for what this model cannot do."""
    check_halt(model, with_policy(halt, policy))
    refuse_positions(model, positions)
    check_takes_memory(model, memory)
    check_extra(model, extra)


def asked_options(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call without those of OPTIONS that ask for nothing.

    Raises:
        UsageError: One asks for what this model cannot do.
    """
    check_options(model, **{name: x for name, x in given.items() if name in OPTIONS})
    return {k: x for k, x in given.items() if k not in OPTIONS or x is not OPTIONS[k]}


class ModelInput(nn.Module):
    """The checks of a model's input; `config` has the limits."""

    config: Any

    def __call__(self, *given: Any, **named: Any) -> Any:
        # A keyword that `forward` does not declare would be a bare TypeError.
        return super().__call__(*given, **asked_options(self, named))

    def check_steps(self, num_steps: Any) -> int:
        """Return `num_steps` as an int, the configured number for None.

        Raises:
            ValueError: It is not an integer, or not in least_steps .. max_steps.
        """
        if num_steps is None:
            return self.config.num_steps
        limit = "max_steps" if self.config.takes_steps else f"{self.name} takes one step"
        least, most = self.config.least_steps, self.config.max_steps
        return check_int("num_steps", num_steps, least, most, limit)

    def check_tokens(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Int[Tensor, "b t"]:
        """Check the input of a forward pass, and replace padding by 0.

        Raises:
            TypeError: A tensor is not int64.
            ValueError: A shape, an id or a length is invalid; the message names it and its
                position.
        """
        config = self.config
        check_rows(tokens, lengths, prompt_lengths, config.vocab_size, config.max_length)
        return tokens if lengths is None else tokens.where(real_positions(tokens, lengths), 0)
