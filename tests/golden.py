"""Golden files: weights, inputs, outputs and gradients of the authors' code."""

from typing import Any

import pytest
from paths import SHARED
from safetensors import safe_open
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]


def read_golden(name: str) -> tuple[dict[str, Any], Groups]:
    """Return (settings, tensors by group: weights, in, out, grad) of a file; skip without it."""
    path = SHARED / "golden" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no golden file {path.name}")
    groups: Groups = {"weights": {}, "in": {}, "out": {}, "grad": {}}
    with safe_open(path, "pt") as file:
        settings = file.metadata()
        for key in file.keys():  # noqa: SIM118 (the file is no mapping)
            group, _, rest = key.partition(".")
            groups[group][rest] = file.get_tensor(key)
    groups["weights"] = {key: x.double() for key, x in groups["weights"].items()}
    return settings, groups
