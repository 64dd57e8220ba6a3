"""Attention operations: `dense` defines them, the names below are the fast ways."""

from thinkers.ops import dense as dense
from thinkers.ops import masks as masks
from thinkers.ops.chain import Chain as Chain
from thinkers.ops.dispatch import explain as explain
from thinkers.ops.stop_grad import stop_grad_attention as stop_grad_attention
from thinkers.ops.thought import thought_attention as thought_attention
