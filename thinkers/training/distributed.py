"""One process or many: who this one is, and what is said between them."""

import gc
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from thinkers.devices import find_device
from thinkers.errors import Interrupted, NonFiniteError

TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` that train the same model on shares of the same batches."""

    rank: int
    world: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def share(self, module: nn.Module, all_used: bool) -> nn.Module:
        """The module with its gradients averaged over ranks after each backward.

        Args:
            all_used: Whether every update gives every parameter a gradient; it is looked for which
                does not otherwise.
        """
        if self.world == 1:
            return module
        with warnings.catch_warnings():
            # No way to leave buffers alone that is not deprecated exists in all of torch >= 2.11.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=not all_used
            )

    def alone(self, module: nn.Module, when: bool) -> AbstractContextManager[Any]:
        """Keep the gradients of this micro-batch to ourselves: a later one sends the sum."""
        if when and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over ranks, the same bits on each."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x

    def first(self, number: int) -> int:
        """What rank 0 passed."""
        said = torch.tensor([number if self.rank == 0 else 0], device=self.device)
        return int(self.sum(said))


def is_first() -> bool:
    """Whether this process is rank 0, before it has joined the others."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """This process among those that torchrun started, or on its own."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank, world, find_device(device))
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if world == 1:
        yield ranks
        return
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    together = False
    try:
        yield ranks
        together = True
    except (NonFiniteError, Interrupted) as error:
        together = True
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # gloo can abort the process at exit while a wrapped module is alive or a peer is gone.
        gc.collect()
        if together:
            distributed.barrier()
        distributed.destroy_process_group()
