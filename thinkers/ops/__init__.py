"""Attention operations: `dense` defines them, the names below are the fast ways."""

from thinkers.ops import dense as dense
from thinkers.ops import masks as masks
