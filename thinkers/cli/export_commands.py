"""The formats of `thinkers export`."""

import argparse

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
