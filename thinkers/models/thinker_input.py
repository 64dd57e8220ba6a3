"""Input of a Thinker: how text, and what else it reads, become the vectors that memory holds."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thinkers.errors import usage_error
from thinkers.models.extra_inputs import Extra, check_extra
from thinkers.nn.causal_mixing import CausalMixing, TextCache
from thinkers.nn.processor import FixedTextInput, Read, TextInput


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


def read_prompts(
    model: Any,
    tokens: Int[Tensor, "b n"],
    prompt_lengths: Int[Tensor, " b"],
    extra: Extra = None,
) -> tuple[list[Float[Tensor, "b h m d"]], Bool[Tensor, "b m"]]:
    """Return the keys and values of prompts and of their other inputs, and where there is padding.

    Args:
        tokens: Prompts, padded on the right.
    """
    parts = read_text(model, tokens)
    hidden = torch.arange(tokens.shape[1], device=tokens.device) >= prompt_lengths[:, None]
    for name, x in (extra or {}).items():
        own = Read(model.process, model.inputs[name]).project(x)
        parts = [torch.cat(pair, 2) for pair in zip(parts, own, strict=True)]
        hidden = torch.cat([hidden, hidden.new_zeros(len(x), own[0].shape[2])], 1)
    return parts, hidden


def check_inputs(
    model: Any, extra: Extra, num_rows: int, prompt_lengths: Int[Tensor, " b"] | None
) -> None:
    """Raise UsageError if other inputs do not fit the rows, or how the model reads them."""
    check_extra(model, extra, num_rows)
    if extra is None:
        return
    if prompt_lengths is None:
        raise usage_error(
            "extra for rows without prompt_lengths",
            "prompts, after which other inputs are read",
            "pass prompt_lengths, or leave extra out",
        )
    for name in ("halting", "policy"):
        if getattr(model.config, name):
            raise usage_error(
                f"extra for a model with {name}, whose operations would not be counted",
                f"{name} False",
                "leave one of them out",
            )


def count_inputs(model: Any, extra: Extra) -> tuple[int, int]:
    """Return the vectors of other inputs that each row reads, and the operations of embedding."""
    pairs = [(model.inputs[name], x) for name, x in (extra or {}).items()]
    return sum(own.count(x) for own, x in pairs), sum(own.flops(x) for own, x in pairs)
