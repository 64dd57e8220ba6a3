"""Data parallelism over the ranks that torchrun started; a process alone is one rank."""

import gc
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from thinkers.devices import find_device
from thinkers.errors import Interrupted, NonFiniteError

TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` that train one model on shares of the same batches."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_writer(self) -> bool:
        """Return True on the one rank that writes files and prints."""
        return self.rank == 0

    def data_parallel(self, module: nn.Module, uses_all: Callable[[], bool]) -> nn.Module:
        """Wrap a module so that each backward averages its gradients over the ranks.

        Args:
            uses_all: Return True if every update gives every parameter a gradient; called only if
                there are several ranks. Otherwise each backward searches for unused parameters.
        """
        if self.world == 1 or _shards(module):
            return module
        with warnings.catch_warnings():
            # torch >= 2.11 deprecates every option that leaves buffers alone.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=not uses_all()
            )

    def no_sync(self, module: nn.Module, when: bool) -> AbstractContextManager[Any]:
        """Keep the gradients of a micro-batch on this rank: a later one sends their sum."""
        if (sharded := _shards(module)) is not None:
            sharded.set_requires_gradient_sync(not when)
        elif when and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def sum(self, x: Tensor) -> Tensor:
        """Sum `x` over the ranks, in place; the result has the same bits on each."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x

    def from_first(self, number: int) -> int:
        """Return the number that the first rank passed."""
        # A sum in which all others are 0 is a broadcast, by the collective that is used already.
        shared = torch.tensor([number if self.rank == 0 else 0], device=self.device)
        return int(self.sum(shared))


def _shards(module: nn.Module) -> FSDPModule | None:
    """Return the sharded model in a module; None if there is none."""
    return next((part for part in module.children() if isinstance(part, FSDPModule)), None)


def is_first() -> bool:
    """Return True on rank 0; works before the ranks have joined."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, by its environment variables; leave at the end."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank, world, find_device(device))
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if world == 1:
        yield ranks
        return
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    all_are_here = False
    try:
        yield ranks
        all_are_here = True
    except (NonFiniteError, Interrupted) as error:
        # These are raised on every rank after the same update, so that a barrier is safe. After
        # any other error the peers may still compute, and a barrier would wait for its timeout.
        all_are_here = True
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # gloo can abort the process at exit while a wrapped module is alive or a peer is gone:
        # the frames that hold the module were cleared above, and cycles are collected here.
        gc.collect()
        if all_are_here:
            distributed.barrier()
        distributed.destroy_process_group()
