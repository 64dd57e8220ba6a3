"""retrofit(model): loop layers of a pretrained Hugging Face model, which then thinks in steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from thinkers.errors import (
    DataError,
    UsageError,
    UsageTypeError,
    describe,
    is_about_memory,
    system_errno,
    three_lines,
    usage_error,
)
from thinkers.files import is_folder
from thinkers.models.generation import eval_mode
from thinkers.models.hf_config import FAMILIES, Family, entry, parse, to_text
from thinkers.models.hf_looped import HFLooped
from thinkers.terminal import one_line
from thinkers.user_paths import user_path

PROBED = 8
"""Tokens of the row on which the result is compared with the model that was given."""
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest difference of the two, relative to the largest logit; 0.1 in half precision. They are
equal bit for bit if the model given has the attention "sdpa", too."""


def retrofit(
    hf_model_or_folder: Any,
    layers: tuple[int, int] | None = None,
    num_steps: int = 4,
    *,
    max_steps: int | None = None,
    max_length: int | None = None,
    trainable: Literal["all", "core", "gate"] = "core",
) -> HFLooped:
    """Loop layers of a causal language model of Hugging Face: see `HFLooped`.

    The result has copies of the weights, their dtype and device, and a gate of 0: at every number
    of steps it is the model that was given, until core and gate are trained.

    Args:
        hf_model_or_folder: A loaded model, or the folder that `save_pretrained` wrote. Nothing is
            downloaded.
        layers: Number of the first layer of the core, from 0, and of the first layer after it; None
            means the middle half.
        num_steps: Passes over the core, unless a call says otherwise.
        max_steps: The most passes that a call may ask for; None means max(4, 4 * num_steps).
        max_length: The most tokens of a row; None means all positions of the model.
        trainable: Weights that are trained: all, those of the core and the gate, or the gate.

    Raises:
        UsageError: It is no such model or folder, its layers cannot be looped, or a setting is
            invalid.
        DataError: The folder holds no model that transformers can load, or not all its weights.
    """
    model = opened(hf_model_or_folder)
    text = to_text(model.config.to_dict())
    found = parse(text)
    family = FAMILIES[found["model_type"]]
    check_causal(model, family)
    config = HFLooped.Config(
        hf_config=text,
        layers=layers,
        num_steps=num_steps,
        max_steps=max_steps,
        max_length=entry(found, family.length) if max_length is None else max_length,
        trainable=trainable,
    )
    with torch.device("meta"):  # its weights would be drawn, and then replaced
        result = HFLooped(config)
    weights = own_weights(model.state_dict(), family, config)
    like = weights["embedding.weight"]
    weights["gate"] = torch.zeros((), dtype=like.dtype, device=like.device)
    check_names(weights, result.state_dict())
    copies = {name: x.detach().clone() for name, x in weights.items()}
    result.load_state_dict(copies, assign=True)
    result.to(like.device).eval()
    check_equal(model, result)
    return result


def opened(given: Any) -> Any:
    """Return a model of transformers, loaded from its folder if a folder is given."""
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if isinstance(given, PreTrainedModel):
        return given
    if not isinstance(given, str | Path):
        raise UsageTypeError(
            "hf_model_or_folder must be a model of transformers or its folder, got "
            f"{type(given).__name__}"
        )
    path = user_path(given, "hf_model_or_folder")
    if not is_folder(path):
        raise usage_error(
            f"{path}, which is no folder",
            "a folder that save_pretrained wrote, or a loaded model: nothing is downloaded here",
            "load it by AutoModelForCausalLM.from_pretrained, and pass the model",
        )
    check_files(path)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in the report, with their names
            output_loading_info=True,
        )
    except Exception as error:  # configurations and weights are read by libraries without one class
        if is_about_memory(error) or system_errno(error) is not None:
            raise
        raise DataError(
            f"{path} holds no causal language model that transformers can load: "
            f"{one_line(str(error), 300)}; a run of this library becomes one by thinkers export hf"
        ) from error
    check_report(path, report)
    return model


def check_files(path: Path) -> None:
    """Raise DataError that names the first file of weights that is damaged."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            if system_errno(error) is not None:
                raise
            raise DataError(
                three_lines(
                    f"{file}, which is damaged: {describe(error)}",
                    "the whole file, as save_pretrained wrote it",
                    "copy or download it again",
                )
            ) from error


def check_report(path: Path, report: Mapping[str, Any]) -> None:
    """Raise DataError unless the weights of a folder are those of its model.

    transformers draws weights at random that it does not find, and goes on.
    """
    mismatched = {x[0]: x[1:] for x in report["mismatched_keys"]}
    found = {
        "no weight": sorted(report["missing_keys"] - mismatched.keys()),
        "a weight of another shape,": sorted(mismatched),
        "a weight that the model does not have,": sorted(report["unexpected_keys"]),
    }
    for kind, names in found.items():
        if names:
            first = names[0]
            shapes = [list(x) for x in mismatched.get(first, ())]
            sizes = f" of shape {shapes[0]} instead of {shapes[1]}" if shapes else ""
            more = f", and {len(names) - 1} more such" if len(names) > 1 else ""
            raise DataError(
                three_lines(
                    f"{kind} {first}{sizes} in {path}{more}",
                    "the weights that its config.json describes, with those of the head",
                    "copy the whole folder again, or save the causal language model itself",
                )
            )


def check_causal(model: Any, family: Family) -> None:
    """Raise UsageError if a model has no head that predicts the next token."""
    weights, needed = model.state_dict(), [family.embedding]
    if not family.has_own_layers:  # with tied weights these have no matrix of the head
        needed.append(family.head)
    for part in needed:
        if f"{part}.weight" not in weights:
            raise usage_error(
                f"a {type(model).__name__}, which has no {part}",
                "a causal language model, with the head that predicts the next token",
                "load it by AutoModelForCausalLM.from_pretrained",
            )


def own_weights(
    weights: Mapping[str, Tensor], family: Family, config: HFLooped.Config
) -> dict[str, Tensor]:
    """Return the weights of a Hugging Face model by their names in HFLooped."""
    first, last = config.core
    parts = {family.embedding: "embedding", family.norm: "norm", family.head: "head"}
    if family.positions:
        parts[family.positions] = "positions.embedding"
    found = {}
    for name, x in weights.items():
        part, _, rest = name.removeprefix(f"{family.layers}.").partition(".")
        if name.startswith(f"{family.layers}."):
            number = int(part)
            place = "prelude" if number < first else "core" if number < last else "coda"
            start = {"prelude": 0, "core": first, "coda": last}[place]
            inner = "block." if family.has_own_layers else ""
            found[f"{place}.{number - start}.{inner}{rest}"] = x
            continue
        outer, _, rest = name.rpartition(".")
        if parts.get(outer) == "head" and config.tie_head:
            continue  # the same matrix as the embedding
        found[f"{parts.get(outer, outer)}.{rest}"] = x
    return found


def check_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless these are the weights of the model: by name, shape and place."""
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise usage_error(
                f"a weight {name} of shape {shapes[0]}",
                f"shape {shapes[1]}, as in models of this type in transformers",
                "merge adapters and remove quantization before the model is retrofitted",
            )
        if found[name].device.type == "meta":
            raise usage_error(
                f"a weight {name} without values",
                "a model whose weights are in memory",
                "load the model without a device_map",
            )


@torch.no_grad()
def check_equal(model: Any, result: HFLooped) -> None:
    """Raise UsageError if one step of the result is not the model that was given."""
    size, device = result.config.vocab_size, result.gate.device
    tokens = torch.arange(min(PROBED, result.config.max_length or 1), device=device)[None] % size
    with eval_mode(model):
        wanted = model(tokens, use_cache=False).logits
    found = result(tokens, num_steps=1).logits
    error = float((found - wanted).abs().max() / wanted.abs().max())
    limit = TOLERANCE.get(wanted.dtype, 0.1)
    if not error <= limit:
        raise UsageError(
            f"a {type(model).__name__} must compute what transformers computes for its "
            f"configuration, got logits that differ by {error:.1e} of the largest"
        )
