"""Recipes on star graphs: a path whose first step must be planned, with and without a plan."""

from thinkers.config import Config
from thinkers.models.decoder import Decoder
from thinkers.models.deepsight import DeepSight
from thinkers.recipes.numbers import learning
from thinkers.tasks.star_graph import StarGraph
from thinkers.training import Training


def planned(num_updates: int) -> Training:
    """How both learn: many small updates, since look-ups come of their number, not of their size.

    With 64 graphs an update, no model had found the look-ups in the time in which 16 find them all.
    """
    return learning(num_updates, lr=4e-3, batch_size=16, betas=(0.9, 0.95), warmup_updates=200)


def decoder() -> Config:
    """Finds paths of 5 nodes by next-token prediction alone, which learns to follow, not to choose.

    The same width and number of layers as `star_graph/deepsight`, and more than twice its updates:
    without plans the look-ups take longer to come.
    """
    return Config.fit(Decoder, StarGraph.Config(), planned(24_000), dim=64, num_layers=6)


def deepsight() -> Config:
    """Finds paths of 5 nodes with plans of the next 4: the first step is chosen for the last."""
    return Config.fit(
        DeepSight,
        StarGraph.Config(),
        planned(10_000),
        dim=64,
        num_layers=5,
        num_decoder_layers=1,
        plan_loss="tokens",
        plan_weight=4.0,
        horizon_weights="average",
    )
