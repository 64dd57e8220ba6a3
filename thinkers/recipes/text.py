"""Recipes on a text that the user names by --task.path; their figures are of Shakespeare's."""

from typing import Any

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.models.looped import Looped
from thinkers.models.reasoning_tokens import ReasoningTokens
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.tasks.text import Text

SMALL: dict[str, Any] = dict(dim=128, num_heads=4)
"""With 0.80 million weights each, which `hidden` makes equal."""


def small_text() -> Text.Config:
    return Text.Config(vocabulary="character", context=64)


def learning(**own: Any) -> Training:
    """How nanoGPT (https://github.com/karpathy/nanoGPT) trains on a CPU."""
    shared: dict[str, Any] = dict(
        num_updates=2000,
        batch_size=12,
        lr=1e-3,
        warmup_updates=100,
        min_lr_ratio=0.1,
        betas=(0.9, 0.99),
        weight_decay=0.1,
        clip=1.0,
        evaluate_examples=2000,
    )
    return Training(**(shared | own))


def decoder() -> Config:
    """Continues a text: a small plain transformer, at nanoGPT's setting for a CPU."""
    return Config.fit(Decoder, small_text(), learning(), num_layers=4, hidden=344, **SMALL)


def decoder_gpu() -> Config:
    """Continues a text: a plain transformer, at nanoGPT's setting for a GPU."""
    task = Text.Config(vocabulary="character", context=256)
    training = learning(
        num_updates=5000, batch_size=64, evaluate_every=250, device="cuda", precision="bf16"
    )
    return Config.fit(Decoder, task, training, dim=384, num_layers=6, num_heads=6, dropout=0.2)


def looped() -> Config:
    """Continues a text by two layers run three times, between a first and a last one."""
    settings = dict(num_layers=2, num_steps=3, hidden=323)
    return Config.fit(Looped, small_text(), learning(), **settings, **SMALL)


def thoughtsformer() -> Config:
    """Continues a text by trains of two thoughts: every character thinks before the next."""
    settings = dict(num_layers=4, num_steps=2, hidden=344)
    return Config.fit(ThoughtsFormer, small_text(), learning(), **settings, **SMALL)


def reasoning_tokens() -> Config:
    """Continues a text with a reasoning token after every character, trained by the far future."""
    settings = dict(num_layers=4, num_steps=1, hidden=344)
    return Config.fit(ReasoningTokens, small_text(), learning(), **settings, **SMALL)


def deepsight() -> Config:
    """Continues a text by an encoder that plans the next characters, and a decoder."""
    return Config.fit(DeepSight, small_text(), learning(), num_layers=2, hidden=248, **SMALL)


def thinker() -> Config:
    """Continues a text in sections of 16 characters; latents think 4 times between them."""
    settings = dict(num_layers=2, num_steps=4, hidden=666)
    return Config.fit(Thinker, small_text(), learning(), **settings, **SMALL)
