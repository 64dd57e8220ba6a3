"""Recipes on stories: models that read what happened and say who is where."""

from dataclasses import replace

from thinkers.config.experiment import Config
from thinkers.models.looped import Looped
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.recipes.numbers import learning
from thinkers.tasks.babi import Babi

STORIES = Babi.Config(kinds=(1, 2), num_stories=30_000, curriculum=True, threshold=0.8, window=1000)
"""Stories of kind 1, then of kind 2 as well, both from the shortest on."""
WHOLE = replace(STORIES, threshold=0.9, whole_kinds=True)
"""Stories of kind 1 from the shortest on, then all of kind 2."""


def looped() -> Config:
    """Says where people and things are, by two layers run once or twice over the story."""
    training = learning(9000, lr=5e-4, batch_size=32, random_steps=(1, 2))
    return Config.fit(
        Looped,
        STORIES,
        training,
        dim=128,
        num_heads=8,
        num_layers=2,
        num_prelude_layers=0,
        num_coda_layers=0,
        injection="add",
        hidden=512,
        num_steps=2,
    )


def thoughtsformer() -> Config:
    """Says where people and things are by one word, from trains of thought that read both ways."""
    training = learning(5000, lr=1e-3, batch_size=32, optimizer="muon")
    return Config.fit(
        ThoughtsFormer,
        replace(WHOLE, answers="chosen"),
        training,
        dim=128,
        num_heads=8,
        num_layers=2,
        hidden=128,
        num_steps=2,
        causal=False,
    )


def thinker() -> Config:
    """Says where people and things are, from latents that have read the whole story.

    With more latents than most stories have statements, each can hold one.
    """
    training = learning(3000, lr=1e-3, batch_size=32, optimizer="muon")
    return Config.fit(
        Thinker,
        WHOLE,
        training,
        dim=128,
        num_heads=8,
        num_layers=2,
        hidden=256,
        num_latents=12,
        num_steps=2,
    )
