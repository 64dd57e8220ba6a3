"""Recipes on bAbI stories: questions about the places of people and things."""

from dataclasses import replace

from thinkers.config.experiment import Config
from thinkers.models.looped import Looped
from thinkers.models.thinker import Thinker
from thinkers.models.thoughtsformer import ThoughtsFormer
from thinkers.recipes.numbers import training_settings
from thinkers.tasks.babi import Babi

STORIES = Babi.Config(
    kinds=(1, 2), num_stories=10_000, questions=4, curriculum=True, threshold=0.85, window=1000
)
"""Stories of kind 1, then of kind 2 as well, each from the shortest to the longest, with up to four
questions in a training row."""
STAGED = replace(STORIES, num_stories=30_000, questions=1, threshold=0.9, whole_kinds=True)
"""Stories of kind 1 from the shortest to the longest, then all of kind 2; one question in a row."""


def looped() -> Config:
    """Answer questions on stories, by two layers that are run three times.

    One run for each look-up, and one to spare: a thing leads to a person, who leads to a place. The
    rotary base is small since stories are short. Neither was compared with others by itself.
    """
    training = training_settings(
        5000, batch_size=32, optimizer="muon", weight_decay=0.1, schedule="linear"
    )
    return Config.fit(
        Looped,
        STORIES,
        training,
        dim=128,
        num_heads=4,
        tie_head=False,
        num_layers=2,
        num_prelude_layers=0,
        num_coda_layers=0,
        injection="add",
        hidden=128,
        rotary_base=100.0,
        num_steps=3,
    )


def thoughtsformer() -> Config:
    """Answer questions on stories by one word, from chains of thoughts that read both ways."""
    training = training_settings(5000, lr=1e-3, batch_size=32, optimizer="muon")
    return Config.fit(
        ThoughtsFormer,
        replace(STAGED, answers="chosen"),
        training,
        dim=128,
        num_heads=8,
        tie_head=False,
        num_layers=2,
        hidden=128,
        num_steps=2,
        causal=False,
    )


def thinker() -> Config:
    """Answer questions on stories, from latents that have read the story.

    There are more latents than most stories have statements, so that each can hold one. Words are
    mixed with the five before them, so that the latents need not bind a person to a place by the
    positions of single words.
    """
    training = training_settings(6000, lr=1e-3, batch_size=32, optimizer="muon")
    return Config.fit(
        Thinker,
        STAGED,
        training,
        dim=128,
        num_heads=8,
        tie_head=False,
        num_layers=2,
        hidden=256,
        num_latents=12,
        mixing=6,
        num_steps=2,
    )
