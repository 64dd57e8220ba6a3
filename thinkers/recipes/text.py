"""Recipes on a text, named by --task.path; their measured scores are on Shakespeare's plays."""

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
"""Common sizes; `hidden` brings each model to 0.80 million parameters."""


def small_text() -> Text.Config:
    return Text.Config(vocabulary="character", context=64)


def training_settings(**own: Any) -> Training:
    """Return nanoGPT's settings for a CPU (https://github.com/karpathy/nanoGPT)."""
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
    """Continue a text by a small plain transformer, with nanoGPT's settings for a CPU."""
    return Config.fit(Decoder, small_text(), training_settings(), num_layers=4, hidden=344, **SMALL)


def decoder_gpu() -> Config:
    """Continue a text by a plain transformer, with nanoGPT's settings for a GPU."""
    task = Text.Config(vocabulary="character", context=256)
    training = training_settings(
        num_updates=5000, batch_size=64, evaluate_every=250, device="cuda", precision="bf16"
    )
    return Config.fit(Decoder, task, training, dim=384, num_layers=6, num_heads=6, dropout=0.2)


def looped() -> Config:
    """Continue a text by two layers run three times, between a first and a last layer."""
    settings = dict(num_layers=2, num_steps=3, hidden=323)
    return Config.fit(Looped, small_text(), training_settings(), **settings, **SMALL)


def thoughtsformer() -> Config:
    """Continue a text by chains of two thoughts at every character."""
    settings = dict(num_layers=4, num_steps=2, hidden=344)
    return Config.fit(ThoughtsFormer, small_text(), training_settings(), **settings, **SMALL)


def reasoning_tokens() -> Config:
    """Continue a text with a reasoning token after each character, trained by later losses."""
    settings = dict(num_layers=4, num_steps=1, hidden=344)
    return Config.fit(ReasoningTokens, small_text(), training_settings(), **settings, **SMALL)


def deepsight() -> Config:
    """Continue a text by an encoder that plans the next characters, and a decoder."""
    return Config.fit(
        DeepSight, small_text(), training_settings(), num_layers=2, hidden=248, **SMALL
    )


def thinker() -> Config:
    """Continue a text in sections of 16 characters; latents think 4 steps between them."""
    settings = dict(num_layers=2, num_steps=4, hidden=666)
    return Config.fit(Thinker, small_text(), training_settings(), **settings, **SMALL)
