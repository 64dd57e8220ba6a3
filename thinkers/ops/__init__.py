"""Attention operations: `dense` defines them, the functions here are their fast versions.

- `dense`: the definition of both operations, in einsum and autograd. Read it first.
- `stop_grad`, `thought`, `chain`: the fast versions; `tiled`, `cpu_sdpa` and the two Triton files
  hold their kernels.
- `dispatch`: the rules that choose a backend for a call, and `explain`, which states the choice.
"""

from thinkers.ops import dense as dense
from thinkers.ops import masks as masks
from thinkers.ops.chain import Chain as Chain
from thinkers.ops.dispatch import explain as explain
from thinkers.ops.stop_grad import stop_grad_attention as stop_grad_attention
from thinkers.ops.thought import thought_attention as thought_attention
