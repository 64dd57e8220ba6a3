"""Recipes on star graphs: a path whose first step must be planned, with and without a plan."""

from typing import Any

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.recipes.numbers import learning
from thinkers.tasks.star_graph import StarGraph


def planned(lr: float, **own: Any) -> Training:
    """How both learn: in many small updates. With 64 graphs each, pilots had no look-ups yet when
    they were cut off; with 16, one had them within a minute."""
    return learning(10_000, lr=lr, batch_size=16, warmup_updates=200, **own)


def decoder() -> Config:
    """Finds paths of 5 nodes by next-token prediction alone, which learns to follow, not to choose.

    Nearly twice as large as `star_graph/deepsight`: 64 wide, without plans, one seed knew the
    labels of a graph and nothing else after 14,000 updates.
    """
    settings = dict(dim=128, num_layers=3, num_heads=8)
    return Config.fit(Decoder, StarGraph.Config(), planned(1e-3), **settings)


def deepsight() -> Config:
    """Finds paths of 5 nodes with plans of the next 4: the first step is chosen for the last."""
    return Config.fit(
        DeepSight,
        StarGraph.Config(),
        planned(4e-3, betas=(0.9, 0.95)),
        dim=64,
        num_layers=5,
        num_decoder_layers=1,
        plan_loss="tokens",
        plan_weight=4.0,
        horizon_weights="average",
    )
