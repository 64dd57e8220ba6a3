"""Recipes on star graphs: a path whose first step must be planned, with and without a plan."""

from thinkers.config import Config
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.recipes.numbers import learning
from thinkers.tasks.star_graph import StarGraph


def decoder() -> Config:
    """Finds paths of 5 nodes by next-token prediction alone, which learns to follow, not to choose.

    The same width, number of layers and training as `star_graph/deepsight`.
    """
    training = learning(7000, lr=3e-3, batch_size=64)
    return Config.fit(Decoder, StarGraph.Config(), training, dim=64, num_layers=5)


def deepsight() -> Config:
    """Finds paths of 5 nodes with plans of the next 4: the first step is chosen for the last."""
    training = learning(7000, lr=3e-3, batch_size=64)
    return Config.fit(
        DeepSight,
        StarGraph.Config(),
        training,
        dim=64,
        num_layers=4,
        num_decoder_layers=1,
        positions="learned",
        plan_mix="future",
        plan_loss="cosine",
        plan_weight=10.0,
        horizon_weights="average",
    )
