"""Models with a long-term memory and a defect, which fails the properties named beside it."""

from dataclasses import dataclass

import torch

from thinkers.models.thinker import Thinker


class CompressesPaddingToo(Thinker):
    @dataclass(frozen=True, kw_only=True)
    class Config(Thinker.Config):
        memory: str = "blocks"

    def compress_sections(self, tokens, lengths, *rest):
        return super().compress_sections(tokens, torch.full_like(lengths, tokens.shape[1]), *rest)


DEFECTS = {"CompressesPaddingToo": (CompressesPaddingToo, ("long_term_memory",))}
