"""Models of MODELS beside their copies for Hugging Face, and ragged prompts padded on the left."""

from typing import Any

import torch
from model_cases import ids, tiny

from thinkers.data.tokenizers import Tokenizer
from thinkers.models import Model
from thinkers.tasks.text import Text

LENGTHS = torch.tensor([7, 3, 5])
PROMPTS = ids(3, 7)
MASK = (torch.arange(7) >= 7 - LENGTHS[:, None]).long()


def pair(name: str, own: dict[str, Any] | None = None, **more: Any) -> tuple[Model, Any]:
    """A small model in float64 whose logits are not flat, and its copy."""
    from thinkers.hf import from_model

    model = tiny(name, own, **more).double()
    for x in model.parameters():
        x.data *= 1.5
    return model, from_model(model)


class PlainText(Text):
    """Text with a tokenizer of its own, which reads no file."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)


def rules(model: Model) -> list[Any]:
    """The values of `halt` that a model takes."""
    named = {"gate": 0.5, "answered": "answered"}
    return [None, *(named[way] for way in model.halts_by if way in named)]


def asked(halt: Any) -> dict[str, Any]:
    return {} if halt is None else {"halt": halt}


def written(wrapped: Any, count: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens (b, n) of the copy, and their logits as it computed them, in float64."""
    kept = []
    handle = wrapped.register_forward_hook(lambda *given: kept.append(given[2].logits[:, -1]))
    try:
        out = wrapped.generate(
            PROMPTS, attention_mask=MASK, max_new_tokens=count, do_sample=False, **options
        )
    finally:
        handle.remove()
    return out[:, PROMPTS.shape[1] :], torch.stack(kept, 1)
