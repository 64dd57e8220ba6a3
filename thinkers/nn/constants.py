"""Buffers computed from settings: the same for every dtype of the model, and never missing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ComputedBuffers(nn.Module):
    """A module that computes buffers from its settings: float32 on every device, and never saved.

    They are computed on the CPU, and again whenever the module is cast or moved: the model's dtype
    does not round them, all devices have the same bits, and they survive `to_empty`, which leaves
    other buffers undefined. A subclass defines `constants` and calls `compute_buffers` at the end
    of its `__init__`.
    """

    def constants(self) -> dict[str, Tensor]:
        """Compute the buffers, by name."""
        raise NotImplementedError

    def compute_buffers(self) -> None:
        """Register the buffers on the default device."""
        device = torch.get_default_device()
        for name, x in self._constants().items():
            # Values cannot be filled in later: after meta, the buffers may never be moved again.
            x = x if device.type == "meta" else x.to(device)
            self.register_buffer(name, x, persistent=False)

    def _constants(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            return self.constants()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Every cast and move of a module calls this: to, double, cuda, to_empty, ..
        super()._apply(fn, recurse)
        self.recompute()
        return self

    def recompute(self) -> None:
        """Compute the buffers again, where they are."""
        for name, x in self._constants().items():
            self._buffers[name] = x.to(self.get_buffer(name).device)
