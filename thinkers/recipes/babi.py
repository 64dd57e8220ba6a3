"""Recipes on stories: models that read what happened and say who is where."""

from thinkers.config import Config
from thinkers.models.looped import Looped
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.recipes.numbers import learning
from thinkers.tasks.babi import Babi

STORIES = Babi.Config(kinds=(1, 2), num_stories=10_000)


def looped() -> Config:
    """Says where people and things are, by one layer run again and again over the story."""
    training = learning(4000, lr=3e-3, batch_size=32, random_steps=(3, 5))
    return Config.fit(Looped, STORIES, training, dim=64, num_layers=1, num_steps=4)


def thoughtsformer() -> Config:
    """Says where people and things are by one word, from trains of thought that read both ways."""
    task = Babi.Config(kinds=(1, 2), num_stories=10_000, answers="chosen")
    training = learning(5500, lr=3e-3, batch_size=32, random_steps=(3, 5))
    return Config.fit(
        ThoughtsFormer, task, training, dim=64, num_layers=1, num_steps=4, causal=False
    )


def thinker() -> Config:
    """Says where people and things are, from latents that have read the story in sections.

    With more latents than a story has statements, each can hold one.
    """
    training = learning(6000, lr=2e-3, batch_size=32, random_steps=(3, 5))
    return Config.fit(Thinker, STORIES, training, dim=64, num_layers=2, num_steps=4, num_latents=24)
