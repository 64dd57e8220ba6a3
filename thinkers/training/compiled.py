"""CompiledLayers: the layers of a model as generated code, for the time of an update."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from thinkers.errors import UsageError, usage_error
from thinkers.models.base import Model
from thinkers.models.batch import Batch

BACKEND = "inductor"
OWN_WARNINGS = ("The .grad attribute of a Tensor", ".* should not be instantiated")
"""Beginnings of warnings that the compiler causes itself, while it looks at tensors."""


class CompiledLayers:
    """The layers of a model, compiled: the members of every `nn.ModuleList`, which steps share.

    Layers of one class have one code, for any number of rows of any length. They are replaced
    inside `used` alone: scores, checkpoints and the finished model are of the plain layers, whose
    weights they are.

    Args:
        model: A model in training mode; its parameters stay the same objects.
    """

    def __init__(self, model: Model):
        self.model = model
        self._layers = [
            layer
            for layers in model.modules()
            if isinstance(layers, nn.ModuleList)
            for layer in layers
        ]
        if not self._layers:
            raise usage_error(
                f"--training.compile true for {model.name}",
                "a model with layers in an nn.ModuleList, which can be compiled",
                "leave --training.compile out",
            )
        self._methods = {
            (kind, name): compiled(getattr(kind, name))
            for kind in set(map(type, self._layers))
            for name in model.compiled_methods
        }

    @contextmanager
    def used(self) -> Iterator[None]:
        """Run the layers compiled inside the block.

        Raises:
            UsageError: A layer would be compiled more often than torch's limit.
        """
        # Imported here: it takes seconds.
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        environment = dict(os.environ)
        for layer, name in self._places():
            layer.__dict__[name] = partial(self._methods[type(layer), name], layer)
        try:
            # Beyond its limit torch would go on without compiling. Processes that compile would
            # outlive the training.
            with (
                dynamo.patch(fail_on_recompile_limit_hit=True),
                inductor.patch(compile_threads=1),
                warnings.catch_warnings(),
            ):
                for message in OWN_WARNINGS:
                    warnings.filterwarnings("ignore", message)
                yield
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise usage_error(
                f"layers compiled {dynamo.recompile_limit} times: {_reason(error)}",
                "layers whose code serves all updates",
                "leave --training.compile out",
            ) from None
        finally:
            for layer, name in self._places():
                del layer.__dict__[name]
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]  # torch sets the folder of what it compiled

    def _places(self) -> Iterator[tuple[nn.Module, str]]:
        return ((layer, name) for layer in self._layers for name in self.model.compiled_methods)

    def warm_up(self, batch: Batch, num_steps: int | None) -> None:
        """Compile before the first update, by a pass forward and back that changes nothing.

        The code depends on the sizes that it was made from. A run and its resumption make it from
        the same batch, so that their updates are equal bit for bit.

        Raises:
            UsageError: Nothing can be compiled here.
        """
        try:
            with self.used():
                self.model.loss(batch, num_steps=num_steps).total.backward()
        except UsageError:
            raise
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            raise usage_error(
                f"--training.compile true, where torch cannot compile: {_reason(error)}",
                "a C++ compiler such as g++ on the PATH, or its name in CXX",
                "install one, or leave --training.compile out",
            ) from None
        self.model.zero_grad(set_to_none=True)


def compiled(function: Any) -> Any:
    """Return a compiled copy of a function, for any sizes.

    torch counts and keeps what it compiles by code object: a copy has its own, so that other runs
    of the process count for themselves, and the code is freed with the copy.
    """
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(copy, dynamic=True, backend=BACKEND)


def _reason(error: BaseException) -> str:
    """Return the first line of an error of the compiler."""
    return str(error).strip().partition("\n")[0]
