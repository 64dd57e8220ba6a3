"""The formats of `thinkers export`."""

import argparse

from thinkers.cli.commands import parse_optional
from thinkers.optional import require
from thinkers.terminal import show


def hf(options: argparse.Namespace, settings: list[str]) -> int:
    require("transformers", "hf", "thinkers export hf")
    from thinkers.export.hf import export

    found = export(options.folder, options.out)
    size = sum(p.numel() for p in found.model.parameters())
    show(f"{found.model.name} with {size:,} parameters, folder of Hugging Face {options.out}")
    for note in found.notes:
        show(note)
    return 0


def onnx(options: argparse.Namespace, settings: list[str]) -> int:
    num_steps = parse_optional("--num_steps", options.num_steps, 0)
    from thinkers.export.onnx import export

    found = export(options.folder, options.out, num_steps)
    rows = ", ".join(f"{b} x {t}" for b, t in found.shapes)
    show(f"{found.model.name} at {found.num_steps} steps, ONNX file {options.out}")
    show(f"logits within {found.difference:.0e} of the largest, on rows of {rows} tokens")
    return 0
