"""The blocks that were read from a long-term memory, as lines for the terminal."""

from collections.abc import Sequence

from thinkers.inspection.results import Asked, ReadBlock
from thinkers.terminal import one_line

SHOWN_TEXT = 60
"""Characters of a block's text in a line."""


def asked_lines(asked: Asked) -> list[str]:
    """Format an answer and the blocks that were read for it."""
    if not asked.blocks:
        return [asked.answer, "no block was read"]
    return [asked.answer, *block_lines(asked.blocks)]


def block_lines(blocks: Sequence[ReadBlock]) -> list[str]:
    """Format blocks as a table, with their attention as weight."""
    rows = [
        [
            str(x.step) if x.section is None else f"{x.section}.{x.step}",
            str(x.id),
            one_line(x.topic, SHOWN_TEXT),
            one_line(x.place, SHOWN_TEXT),
            f"{x.mass:.3f}",
            "" if x.text is None else one_line(x.text, SHOWN_TEXT),
        ]
        for x in blocks
    ]
    columns = ["step", "block", "topic", "source", "weight"]
    columns += ["text"] if any(row[-1] for row in rows) else []
    if blocks[0].section is not None:
        columns[0] = "section.step"
    return aligned(columns, rows, right={0, 1, 4})


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    """Return the lines of a table, of which some columns are aligned to the right."""
    rows = [columns, *(row[: len(columns)] for row in rows)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    return [
        "  ".join(
            text.rjust(width) if n in right else text.ljust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
