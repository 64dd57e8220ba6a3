"""The parts of a Hugging Face model, with attention whose keys and values are kept by us.

transformers is imported when a model is built, since that takes seconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.errors import ThinkersError, nearest, usage_error
from thinkers.models.decoder import Decoder
from thinkers.models.hf_config import FAMILIES, SIZES, UNUSED, Family, check, parse
from thinkers.nn.block import Block, Table, causal_attention
from thinkers.nn.constants import ComputedBuffers
from thinkers.nn.kv_cache import KeepsKeys
from thinkers.nn.layers import Rotary, attention_flops, swiglu_width
from thinkers.nn.tracing import record_weights
from thinkers.optional import require

ATTENTION = "thinkers"
"""Name of `attend` among the implementations of attention in transformers."""
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""Entries of a configuration that does not name these tokens; the defaults are of one model."""


class PassKeys:
    """Keys and values of one pass over some layers, in slots of their own.

    The cache of transformers has one slot for each layer, and finds it by the number of the layer.

    Args:
        shift: Distance from the number of a layer to its slot.
    """

    def __init__(self, cache: KeepsKeys, shift: int):
        self.cache, self.shift = cache, shift

    def keep(
        self, layer: int, k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"]
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Float[Tensor, "*b t s"] | None]:
        """Store keys and values of a layer; return all so far, and the mask of their scores."""
        return self.cache.keep(layer + self.shift, k, v)


class Angles(ComputedBuffers):
    """Rotary positions by the frequencies that transformers computes for this configuration.

    cos and sin are computed in float32, as transformers does for any dtype.
    """

    frequencies: Tensor

    def __init__(self, compute: Callable[[], Any]):
        super().__init__()
        self._compute = compute
        self.scaling = float(compute().attention_scaling)
        self.compute_buffers()

    def constants(self) -> dict[str, Tensor]:
        return {"frequencies": self._compute().inv_freq.float()}

    def forward(
        self, x: Float[Tensor, "b t c"], positions: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t c"], Table]:
        """Return the embeddings as they are, and cosines and sines of the positions."""
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return x, (cos.to(x.dtype), sin.to(x.dtype))


class OwnPositions(nn.Module):
    """Positions of a decoder of this library; dropout of the embeddings in training."""

    def __init__(self, rotary: Rotary, dropout: float):
        super().__init__()
        self.rotary, self.drop = rotary, nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t c"], positions: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t c"], Table]:
        return self.drop(x), self.rotary.table(positions, x.dtype)


class OwnLayer(nn.Module):
    """A layer of a decoder of this library, called as those of transformers are.

    Args:
        number: Its place in the model, from 0, by which it keeps its keys.
    """

    def __init__(self, block: Block, number: int):
        super().__init__()
        self.block, self.number = block, number

    def forward(
        self, x: Float[Tensor, "b t c"], position_embeddings: Table, keeps: KeepsKeys | None
    ) -> Float[Tensor, "b t c"]:
        dropout = self.block.dropout if self.training else 0.0
        attend = partial(causal_attention, cache=keeps, slot=self.number, dropout=dropout)
        return self.block(x, position_embeddings, attend)


class LearnedPositions(nn.Module):
    """Learned positions, which are added to the embeddings; dropout follows in training."""

    def __init__(self, embedding: nn.Embedding, dropout: float):
        super().__init__()
        self.embedding, self.drop = embedding, nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t c"], positions: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t c"], Table]:
        # Rows may be wider than the table where they are padding.
        places = positions.clamp(max=self.embedding.num_embeddings - 1)
        return self.drop(x + self.embedding(places)), None


@dataclass(frozen=True)
class Parts:
    """A language model in parts, with random weights.

    Args:
        positions: From embeddings and positions to the input of the first layer, and what each
            layer needs of the positions.
        layers: From states to states, with `position_embeddings` and `keeps`.
        head: The matrix that writes logits.
        num_heads, num_kv_heads, head_dim: Heads of a layer's queries, of its keys, and their width.
    """

    embedding: nn.Embedding
    positions: nn.Module
    layers: Sequence[nn.Module]
    norm: nn.Module
    head: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int


def build_parts(config: Any) -> Parts:
    """Build the model that a `Config` of `HFLooped` describes, and take it apart.

    Raises:
        UsageError: transformers is missing, or refuses the configuration.
    """
    found = parse(config.hf_config)
    family = FAMILIES[found["model_type"]]
    if family.has_own_layers:
        return own_parts(config, found["settings"])
    require("transformers", "hf", "a Hugging Face model")
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, attend)
    settings: Any
    try:
        settings = AutoConfig.for_model(**entries(config, family, found))
        check(settings.to_dict())  # the defaults of transformers too, where nothing is given
        for name, key in family.keys.items():
            _check_same(key, getattr(settings, key), getattr(config, name))
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
    except ThinkersError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise usage_error(
            f"hf_config that transformers refuses: {error}",
            "a configuration that transformers can build a model from",
            "change hf_config",
        ) from error
    settings = model.config
    settings._attn_implementation = ATTENTION
    num_heads = settings.num_attention_heads
    return Parts(
        embedding=model.get_submodule(family.embedding),
        positions=_positions(model, family),
        layers=list(model.get_submodule(family.layers)),
        norm=model.get_submodule(family.norm),
        head=model.get_submodule(family.head).weight,
        num_heads=num_heads,
        num_kv_heads=getattr(settings, "num_key_value_heads", num_heads),
        head_dim=getattr(settings, "head_dim", settings.hidden_size // num_heads),
    )


def _positions(model: Any, family: Family) -> nn.Module:
    if family.positions:
        return LearnedPositions(model.get_submodule(family.positions), model.config.embd_pdrop)
    rotary: Any = type(model.model.rotary_emb)
    return Angles(partial(rotary, model.config))


def own_parts(config: Any, settings: Mapping[str, Any]) -> Parts:
    """Build the decoder of an export, and take it apart."""
    sizes = {name: getattr(config, name) for name in SIZES} | {"max_length": config.max_length}
    known = [field.name for field in fields(Decoder.Config)]
    for name in settings:
        if name not in known:
            raise usage_error(
                f"a setting {name!r} in hf_config", nearest(name, known), "change or remove it"
            )
    model = Decoder(Decoder.Config(**{**settings, **sizes}))
    blocks: list[Any] = list(model.blocks)
    heads = blocks[0].heads
    return Parts(
        embedding=model.embedding,
        positions=OwnPositions(model.rotary, model.config.dropout),
        layers=[OwnLayer(block, place) for place, block in enumerate(blocks)],
        norm=model.norm,
        head=model.embedding.weight if model.head.weight is None else model.head.weight,
        num_heads=model.config.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
    )


def entries(config: Any, family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a configuration by the sizes of the settings."""
    own = {key: getattr(config, name) for name, key in family.keys.items()}
    if config.hidden is None and family.uses_swiglu:
        own[family.keys["hidden"]] = swiglu_width(config.dim)
    own[family.length] = found.get(family.length, config.max_length)
    return NO_TOKENS | {k: v for k, v in found.items() if k not in UNUSED} | own


def _check_same(key: str, found: Any, wanted: Any) -> None:
    if wanted is not None and found != wanted:
        raise usage_error(
            f"hf_config, by which transformers sets {key} to {found}",
            f"{wanted}, the setting of the model",
            "remove other names of the same entry from hf_config",
        )


def run_layers(
    layers: Iterable[nn.Module],
    x: Float[Tensor, "b t c"],
    table: Table,
    keys: KeepsKeys | None,
) -> Float[Tensor, "b t c"]:
    """Pass `x` through layers, whose attention is `attend` or that of this library."""
    for layer in layers:
        x = layer(x, position_embeddings=table, keeps=keys)
    return x


def attend(
    module: Any,
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    keeps: KeepsKeys | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "b t h d"], None]:
    """Compute attention as the implementation "sdpa" of transformers does.

    Args:
        module: A layer of attention, which has the number `layer_idx`.
        keeps: Stores keys and values, and returns them after those of earlier tokens.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = attention_mask
    if keeps is not None:
        key, value, mask = keeps.keep(module.layer_idx, key, value)
    usual = query.shape[-1] ** -0.5
    scaled = query if scaling in (None, usual) else query * (scaling / usual)
    record_weights("words", scaled, key, mask, causal=mask is None)
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)


def layer_flops(model: Any, batch_size: int, length: int) -> tuple[int, int]:
    """Count the operations of the linear maps of a layer of HFLooped, and of its attention."""
    weights = sum(x.numel() for x in model.core[0].parameters() if x.ndim == 2)
    num_heads, _, head_dim = model.heads
    products = attention_flops(batch_size, length, length, num_heads * head_dim)
    return 2 * batch_size * length * weights, products
