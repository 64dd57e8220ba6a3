"""Every model of the library as a causal language model of Hugging Face."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.errors import UsageError, usage_error
from thinkers.files import write_file
from thinkers.hf.configuration import ThinkersConfig
from thinkers.hf.modeling_file import AUTO_MAP, FILE, modeling_file
from thinkers.hf.rows import Rows
from thinkers.hf.wrapper import Wrapper
from thinkers.models import Batch, Model, build_model, set_dtypes
from thinkers.models.halt import Halt, check_halt
from thinkers.models.unused_weights import PREFIX as UNREAD
from thinkers.nn.constants import ComputedBuffers
from thinkers.process_state import keep_process_state


class ThinkersForCausalLM(Wrapper):
    """Any model of MODELS, with `generate` and `save_pretrained` of Hugging Face.

    Logits, tokens and losses are those of the model itself, `model.model`, bit for bit. A `thinker`
    generates from the end of the prompt (`generate` with prompt_lengths), and reads whole rows,
    with labels too, section by section.
    """

    def build(self, config: ThinkersConfig) -> Model:
        settings = {k: tuple(x) if isinstance(x, list) else x for k, x in config.settings.items()}
        # from_pretrained builds on meta, where models that read a value while they are built fail.
        with torch.device("cpu"):
            if not self._is_loaded:
                return build_model(config.model, **settings)
            with keep_process_state():  # the weights are drawn, and then replaced
                return build_model(config.model, **settings)

    error = staticmethod(usage_error)

    def fill_buffers(self, module: nn.Module) -> None:
        if isinstance(module, ComputedBuffers):
            module.recompute()

    def check_halt(self, halt: Halt) -> Halt:
        return check_halt(self.model, super().check_halt(halt))

    def loss(self, rows: Rows, targets: Int[Tensor, "b t"], steps: int) -> Float[Tensor, ""]:
        batch = Batch(rows.tokens, targets, lengths=rows.lengths)
        return self.model.loss(batch, num_steps=steps).total

    def save_pretrained(self, save_directory: Any, *given: Any, **named: Any) -> None:
        """Save as Hugging Face does, with the file that its Auto classes load the class from."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *given, **named)
        write_file(Path(save_directory) / FILE, modeling_file(self.config.model).encode())


def from_model(model: Model) -> ThinkersForCausalLM:
    """Return a copy of a model, in evaluation mode, as a model of Hugging Face.

    Raises:
        UsageError: Something else was given.
    """
    if not isinstance(model, Model):
        raise UsageError(f"model must be a model of MODELS, got {type(model).__name__}")
    config = model.config_dict()
    weights = {k: x for k, x in model.state_dict().items() if not k.startswith(UNREAD)}
    dtypes = {name: x.dtype for name, x in weights.items()}
    first = next(x for x in dtypes.values() if x.is_floating_point)
    settings = dict(config["config"])
    with keep_process_state():
        found = ThinkersForCausalLM(
            ThinkersConfig(model=config["model"], settings=settings, dtype=first)
        )
    set_dtypes(found.model, dtypes)
    found.model.load_state_dict(weights)
    return found.to(next(model.parameters()).device).eval()
