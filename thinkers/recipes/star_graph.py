"""Recipes on star graphs: paths whose first node depends on the last."""

from typing import Any

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.recipes.numbers import training_settings
from thinkers.tasks.star_graph import StarGraph


def _training(lr: float, **own: Any) -> Training:
    """Return the settings of both recipes: many updates of few graphs.

    With 64 graphs per update, pilot runs had not learned to look up an edge when they were stopped;
    with 16, one did within a minute.
    """
    return training_settings(10_000, lr=lr, batch_size=16, warmup_updates=200, **own)


def decoder() -> Config:
    """Find paths of 5 nodes by next-token prediction alone: learns to follow edges, not to choose.

    Nearly twice the size of `star_graph/deepsight`: at its width of 64, without plans, one seed had
    learned nothing but the labels of a graph after 14,000 updates.
    """
    settings = dict(dim=128, num_layers=3, num_heads=8)
    return Config.fit(Decoder, StarGraph.Config(), _training(1e-3), **settings)


def deepsight() -> Config:
    """Find paths of 5 nodes with plans of the next 4, so that the first node fits the last."""
    return Config.fit(
        DeepSight,
        StarGraph.Config(),
        _training(4e-3, betas=(0.9, 0.95)),
        dim=64,
        num_layers=5,
        num_decoder_layers=1,
        plan_loss="tokens",
        plan_weight=4.0,
        horizon_weights="average",
    )
