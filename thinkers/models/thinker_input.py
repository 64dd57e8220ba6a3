"""Input of a Thinker: how text becomes the vectors that memory holds."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.nn.causal_mixing import CausalMixing, TextCache
from thinkers.nn.processor import FixedTextInput, TextInput


def text_input(config: Any) -> TextInput:
    """Build the input of these settings; without mixing and layers, it has no weights for them."""
    longest = config.max_length
    if config.memory == "blocks":
        longest = max(longest, config.memory_section)
    sizes = config.vocab_size, config.max_inputs or longest, config.dim
    if config.variant == "published":
        return FixedTextInput(*sizes)
    width, layers = config.mixing, config.num_input_layers
    if not width and not layers:
        return TextInput(*sizes)
    mix = CausalMixing(config.dim, config.num_heads, width, layers, config.hidden)
    return TextInput(*sizes, mix)


def read_text(
    model: Any,
    tokens: Int[Tensor, "b n"],
    section: int | None = None,
    first: int = 0,
    past: TextCache | None = None,
) -> list[Float[Tensor, "b h n d"]]:
    """Return the keys and values of text in every layer of the block.

    Args:
        section: Tokens of a section, of which the text holds whole ones; None means that the text
            is one section, as a prompt is.
        first: Position of the first token.
        past: The text before it, to which it is added.
    """
    positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
    # Padding may lie beyond the last position.
    positions = positions.clamp(max=model.config.max_length - 1)
    return model.read.project(tokens, positions, section, past)
