"""The toy model of Thinker.

Source: https://github.com/domguia/thinker (no licence stated).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thinkers.errors import DataError
from thinkers.models.thinker import Thinker
from thinkers.nn.processor import Output, SelfAttention
from thinkers.published.common import Get, dtype_of, keep_all_unread, mismatch, pick

UNREAD = "embd_in_pos.weight"
"""Learned input positions, which the published forward never reads."""


def load(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Thinker:
    """Build the toy model of these weights and settings."""
    for name in ("embd_latent.weight", "embd_out_pos.weight", "pos_encoder.pe"):
        if name not in weights:
            raise DataError(f"weights lack {name}, which is required; found {sorted(weights)}")
    kind: SelfAttention = "feed_forward" if pick(settings, "ff_in_self_attn") else "plain"
    if pick(settings, "skip_self_attn"):
        kind = "none"
    steps, dim = pick(settings, "n_step", default=1), pick(settings, "d_model")
    rank = pick(settings, "rank", default=None)
    config = Thinker.Config(
        variant="published",
        output="parallel",
        vocab_size=pick(settings, "vocab_size"),
        dim=dim,
        num_layers=pick(settings, "nlayers"),
        num_heads=pick(settings, "nhead"),
        num_steps=steps,
        max_length=pick(settings, "max_input_len"),
        num_latents=pick(settings, "n_latent"),
        read_steps=as_integer(pick(settings, "read_step", default=10_000)),
        memory_steps=as_integer(pick(settings, "n_memory", default=10_000)),
        num_knowledge=pick(settings, "static_mem_len", default=0),
        output_steps=pick(settings, "output_step", default=1),
        num_probes=pick(settings, "n_probe", default=0),
        self_attention=kind,
        # The published code falls back to full projections where a low rank saves nothing.
        rank=None if rank is None or rank >= dim else rank,
        hidden=pick(settings, "d_hid"),
        section=min(16, len(weights["embd_out_pos.weight"])),
        max_latents=len(weights["embd_latent.weight"]),
        max_inputs=weights["pos_encoder.pe"].shape[1],
        max_outputs=len(weights["embd_out_pos.weight"]),
    )
    model = Thinker(config).to(dtype_of(weights))
    ours = parameters(model)
    rest = {name: x for name, x in weights.items() if name not in ours}
    for name in sorted(ours.keys() | weights.keys() - {UNREAD, "emb_static_mem.weight"}):
        place = ours[name](lambda parameter: parameter.data) if name in ours else None
        expected = None if place is None else place.shape
        found = weights[name].shape if name in weights else None
        if place is None or expected != found:
            raise DataError(mismatch(name, expected, found))
        place.copy_(weights[name])
    keep_all_unread(model, rest)
    return model


def outputs(
    model: Thinker, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return states, logits and probes of the last kept steps, and with targets the loss."""
    steps = pick(settings, "n_step", default=model.config.num_steps)
    keep = pick(settings, "n_keep_output", default=1)
    targets = inputs.get("targets")
    tokens = inputs["tokens"]
    number = pick(settings, "n_target", default=(tokens if targets is None else targets).shape[1])
    projected = model.process.project(model.text(tokens))
    known = inputs.get("knowledge", tokens[:, :0])
    memories, _ = model.think(projected, None, steps, keep_states=True, knowledge=known)
    output = Output(model.process, model.text.embedding, model.config.output_steps, causal=False)
    places = torch.arange(number, device=tokens.device)
    asked = model.queries(places).expand(len(tokens), -1, -1)
    states = torch.stack([output(asked, memory) for memory in memories[-keep:]], 1)
    found = {"outputs": states, "logits": output.logits(states)}
    if model.config.num_probes:
        found["probes"] = model.probe(states)
    if targets is not None:
        logits = found["logits"]
        graded = targets[:, None].expand(-1, logits.shape[1], -1)
        loss = F.cross_entropy(logits.flatten(0, 2), graded.flatten())
        if "probes" in found:
            loss = loss + found["probes"].square().mean()
        found["loss"] = loss
    return found


def as_integer(value: Any) -> Any:
    """Convert a limit such as 1e4, the author's default, to an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parameters(model: Any) -> dict[str, Callable[[Get], Tensor]]:
    """Return, by published name, functions that assemble a weight or its gradient."""
    found: dict[str, Callable[[Get], Tensor]] = {
        "embd_vocab.weight": as_is(model.text.embedding.weight),
        "embd_latent.weight": as_is(model.latents.weight),
        "embd_out_pos.weight": as_is(model.queries.weight),
        "pos_encoder.pe": lambda get: get(model.text.table)[None],
    }
    if model.config.num_knowledge:
        found["emb_static_mem.weight"] = as_is(model.knowledge.weight)
    if model.config.num_probes:
        found |= {
            "probe_proj.weight": as_is(model.probe.linear.weight),
            "probe_proj.bias": as_is(model.probe.linear.bias),
        }
    several = model.config.num_layers > 1
    if several:
        found["attn_compute.norm.weight"] = as_is(model.process.norm.weight)
    for i, layer in enumerate(model.process.layers):
        home = f"attn_compute.layers.{i}." if several else "attn_compute."
        found |= {home + name: value for name, value in layer_parameters(layer).items()}
    return found


def layer_parameters(layer: Any) -> dict[str, Callable[[Get], Tensor]]:
    """Return the functions of one layer of the block."""
    found = {
        "norm2.weight": as_is(layer.memory_norm.weight),
        "norm3.weight": as_is(layer.feed_forward_norm.weight),
        **attention_parameters("mha", layer.memory_attention),
        **feed_forward_parameters("ff", layer.feed_forward),
    }
    if layer.kind != "none":
        found["norm1.weight"] = as_is(layer.self_norm.weight)
        found |= attention_parameters("sa", layer.self_attention)
    if layer.kind == "feed_forward":
        found["norm4.weight"] = as_is(layer.self_feed_forward_norm.weight)
        found |= feed_forward_parameters("ff_sa", layer.self_feed_forward)
    return found


def attention_parameters(name: str, attention: Any) -> dict[str, Callable[[Get], Tensor]]:
    """Return the functions of one attention: q, k, v, o, two matrices each at low rank."""
    found = {}
    for letter, part in zip(
        "qkvo", (attention.query, attention.key, attention.value, attention.output), strict=True
    ):
        if attention.rank is None:
            found[f"{name}_{letter}_proj.fn.weight"] = as_is(part.weight)
        else:
            for i in (0, 1):
                found[f"{name}_{letter}_proj.fn.{i}.weight"] = as_is(part[i].weight)
    return found


def feed_forward_parameters(name: str, forward: Any) -> dict[str, Callable[[Get], Tensor]]:
    """Return the functions of gate, up and down; our model joins the first two in one matrix."""
    both, width = forward.gate_up.weight, forward.down.in_features
    return {
        f"{name}.w1.weight": lambda get: get(both)[:width],
        f"{name}.w2.weight": lambda get: get(both)[width:],
        f"{name}.w3.weight": as_is(forward.down.weight),
    }


def as_is(parameter: Tensor) -> Callable[[Get], Tensor]:
    """Return the function of a published weight that is one of our parameters."""
    return lambda get: get(parameter)
