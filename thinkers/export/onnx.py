"""export(run, out): the forward pass of a model at a fixed number of steps as an ONNX file."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinkers.errors import describe, usage_error
from thinkers.export.checks import refuse_coupled
from thinkers.files import write_file
from thinkers.models.base import Model
from thinkers.models.thinker import Thinker
from thinkers.optional import require
from thinkers.process_state import quiet_loggers
from thinkers.runs.result import RunLike, open_run
from thinkers.user_paths import output_file
from thinkers.version import __version__

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""The largest difference of a logit from torch's, as a share of the largest logit."""
LARGEST = 2**31 - 1
"""Bytes of an ONNX file with its weights inside."""


@dataclass(frozen=True)
class Exported:
    """An ONNX file.

    Args:
        difference: The largest difference of a logit from torch's, as a share of the largest logit.
        shapes: The shapes (b, t) of the rows on which it was measured.
    """

    file: Path
    model: Model
    num_steps: int
    difference: float
    shapes: list[tuple[int, int]]


class Logits(nn.Module):
    """The forward pass of a model at a fixed number of steps, from tokens to logits alone."""

    def __init__(self, model: Model, num_steps: int):
        super().__init__()
        self.model, self.num_steps = model, num_steps

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        return self.model(tokens, num_steps=self.num_steps).logits


def export(run: RunLike, out: str | Path, num_steps: int | None = None) -> Exported:
    """Write an ONNX file with the input `tokens` (b, t) int64 and the output `logits` (b, t, v).

    It takes any number of rows of any length up to `max_length`. Before it is written, its logits
    are compared with torch's on rows of several shapes.

    Args:
        num_steps: The thinking steps that it takes; None means the model's own number.

    Raises:
        UsageError: A package is missing; torch cannot export the model, or not exactly; the logits
            depend on coupled positions of the task.
        ResourceError: The disk is full; what was there stays.
    """
    file = output_file(out, "--out")
    for package in PACKAGES:
        require(package, "onnx", "thinkers export onnx")
    model, task = open_run(run)
    refuse_coupled(task)
    if isinstance(model, Thinker):
        raise usage_error(
            f"a {model.name}, the number of whose sections follows from the length of a row",
            "a model whose operations are the same for rows of any length",
            "export it by thinkers export hf, or use torch.export as in docs/compile.md",
        )
    steps = model.check_steps(num_steps)
    module = Logits(copy.deepcopy(model).to("cpu"), steps).eval()
    content = convert(module)
    shapes = checked_shapes(model.config.max_length)
    difference = largest_difference(content, module, shapes)
    if not difference <= TOLERANCE:
        raise usage_error(
            f"logits of {model.name} that differ by {difference:.1e} of the largest between ONNX "
            "and torch",
            f"at most {TOLERANCE:.0e}",
            "use the model by torch, or export it by thinkers export hf",
        )
    write_file(file, content)
    return Exported(file, model, steps, difference, shapes)


def convert(module: Logits) -> bytes:
    """Return the ONNX file of a module.

    Raises:
        UsageError: torch cannot export the model, or the file would be larger than ONNX allows.
    """
    model, longest = module.model, module.model.config.max_length
    example = torch.zeros(2, min(9, longest), dtype=torch.int64)
    dynamic = ({0: torch.export.Dim("b"), 1: torch.export.Dim("t", max=longest)},)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=["tokens"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # of torch's exporter, which raises classes of many modules
        reason = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)
        raise usage_error(
            f"{model.name}, which torch.onnx cannot export: {reason.strip()[:200]}",
            "a model of which the operations are known to ONNX for rows of any length",
            "export it by thinkers export hf",
        ) from error
    proto = program.model_proto
    size = proto.ByteSize()
    if size > LARGEST:
        raise usage_error(
            f"a model of {size} bytes", f"at most {LARGEST} in an ONNX file", "export a smaller one"
        )
    facts = {"thinkers": __version__, "model": model.name, "num_steps": str(module.num_steps)}
    for name, value in facts.items():
        proto.metadata_props.add(key=name, value=value)
    return proto.SerializeToString()


def checked_shapes(longest: int) -> list[tuple[int, int]]:
    """Return shapes (b, t) of rows, none of which is that of the example."""
    return sorted({(1, 1), (3, min(5, longest)), (2, max(1, longest // 2)), (1, longest)})


def largest_difference(content: bytes, module: Logits, shapes: list[tuple[int, int]]) -> float:
    """Return the largest difference of ONNX and torch, as a share of the largest logit.

    Raises:
        UsageError: onnxruntime cannot run the file on rows of one of these shapes.
    """
    import onnxruntime

    high, draw = module.model.config.vocab_size, torch.Generator().manual_seed(0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about what it cannot fuse say nothing to a user
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    worst = 0.0
    for shape in shapes:
        tokens = torch.randint(high, shape, generator=draw)
        with torch.no_grad():
            right = module(tokens).double()
        try:
            found = session.run(None, {"tokens": tokens.numpy()})[0]
        except Exception as error:  # of onnxruntime, whose classes have no common base
            raise usage_error(
                f"rows of shape {list(shape)}, on which the exported {module.model.name} fails: "
                f"{describe(error)}",
                "a file for any number of rows of any length",
                "export it by thinkers export hf",
            ) from error
        gap = (torch.from_numpy(found).double() - right).abs().max()
        worst = max(worst, float(gap / right.abs().max().clamp(min=1e-6)))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter prints and logs about its own steps."""
    loggers = quiet_loggers("torch.onnx", level=logging.ERROR)
    with loggers, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
