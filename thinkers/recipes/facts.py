"""Recipes with a long-term memory: documents are read into it, and questions answered from it."""

from dataclasses import replace
from typing import Any

from thinkers.config.experiment import Config
from thinkers.models.thinker import Thinker
from thinkers.recipes.numbers import training_settings
from thinkers.tasks.babi import Babi
from thinkers.tasks.facts import Facts

FACTS = Facts.Config(curriculum=True, window=1000)
"""Documents of 2 sections at first, twice as long once these are mastered, up to 16."""


def thinker() -> Config:
    """Answer questions on facts, from blocks of two latents for each section of eight words.

    Words are mixed with the three before them: a latent cannot hold which entity has which relation
    if it reads words by themselves.
    """
    return _recipe(FACTS, 1400, num_steps=2)


def two_hops() -> Config:
    """Answer questions on the value of a value, in two look-ups, after questions on values.

    After the second step the answer is the value of the first hop, after the third the value of the
    second. Graded at the end alone, pilots of one seed had not learned two hops by the last update.
    """
    return _recipe(replace(FACTS, hops=2), 2600, num_steps=3, step_loss="early")


def levels() -> Config:
    """Answer questions on facts from blocks of the second level, of two sections each.

    The second level is learned with documents of two sections, as soon as the first is. With four
    sections in a block, pilots of one seed had not learned the second level by the last update.
    """
    own = dict(block_latents=4, memory_levels=2, memory_group=2, read_level=2)
    return _recipe(replace(FACTS, levels=2), 2800, num_steps=2, **own)


def stories() -> Config:
    """Answer questions on stories of 64 statements, each of which is a section and becomes a block.

    Rows hold the questions alone, four at one place of a story.
    """
    long = Babi.Config(statements=64, sections=1, num_stories=2000, questions=4, answers="chosen")
    task = replace(long, curriculum=True, window=500)
    return _recipe(task, 1500, batch_size=128, num_steps=2, mixing=6, memory_section=9)


def _recipe(task: Any, num_updates: int, batch_size: int = 256, **own: Any) -> Config:
    training = training_settings(
        num_updates,
        lr=1e-3,
        muon_lr=1.2e-2,
        optimizer="muon",
        batch_size=batch_size,
        betas=(0.9, 0.98),
        min_lr_ratio=0.1,
    )
    shared: dict[str, Any] = dict(dim=64, num_heads=4, num_layers=1, num_latents=2, mixing=4)
    memory: dict[str, Any] = dict(memory="blocks", memory_section=8, memory_top=4)
    return Config.fit(Thinker, task, training, **(shared | memory | own))
