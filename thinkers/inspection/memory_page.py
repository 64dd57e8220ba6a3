"""The blocks that were read from a long-term memory: a section of a page, and terminal lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from thinkers.inspection.results import Asked, MemoryReading, ReadBlock, ReadStep, Without
from thinkers.report import html
from thinkers.report.html import Section
from thinkers.terminal import one_line

SHOWN_TEXT = 60
"""Characters of a block's text in a line."""
SHOWN_ANSWER = 30
"""Characters of an answer in a line."""
SHORT = 12
"""Characters of an answer in the name of a column."""
SENTENCES = 4
"""Blocks whose part in the answer is written out."""


def asked_lines(asked: Asked) -> list[str]:
    """Format an answer and the blocks that were read for it."""
    if not asked.blocks:
        return [asked.answer, "no block was read"]
    columns = ["block", "topic", "source", "weight"]
    return [asked.answer, *_table(asked.blocks, columns, lambda x: [f"{x.mass:.3f}"])]


def memory_lines(reading: MemoryReading) -> list[str]:
    """Format what was read from a memory, and the answers without each block."""
    if not reading.blocks:
        return [f"no block was read, of {reading.size:,}"]
    left_out = {x.id: x for x in reading.without}

    def numbers(block: ReadBlock) -> list[str]:
        without = left_out.get(block.id)
        answer = "not left out" if without is None else shortened(without.answer) or "nothing"
        found = [f"{block.score:.2f}", f"{block.mass:.3f}", answer]
        return found if reading.chance is None else [*found, probability(without)]

    columns = ["block", "topic", "source", "score", "weight", "without it"]
    columns += [] if reading.chance is None else [chance_name(reading)]
    lines = _table(reading.blocks, columns, numbers)
    lines += [f"{place(x)}: {attention(x, reading)}" for x in reading.steps]
    return [*lines, rests(reading)]


def chance_name(reading: MemoryReading) -> str:
    """Return the name of the column with the probability of the answer."""
    return f"p({reading.answer if len(reading.answer) <= SHORT else 'answer'})"


def probability(without: Without | None) -> str:
    """Return the probability of the answer, without a part of the memory; "" if not measured."""
    return "" if without is None or without.chance is None else f"{without.chance:.3f}"


def _table(blocks: Sequence[ReadBlock], columns: list[str], numbers: Any) -> list[str]:
    """Return the lines of a table of blocks; `numbers` returns the last columns of a block."""
    rows = [
        [
            str(x.step) if x.section is None else f"{x.section}.{x.step}",
            str(x.id),
            one_line(x.topic, SHOWN_TEXT),
            one_line(x.place, SHOWN_TEXT),
            *numbers(x),
            "" if x.text is None else one_line(x.text, SHOWN_TEXT),
        ]
        for x in blocks
    ]
    first = "step" if blocks[0].section is None else "section.step"
    columns = [first, *columns, "text"]
    if not any(row[-1] for row in rows):
        columns.pop()
    rows = [columns, *(row[: len(columns)] for row in rows)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    right = {
        n
        for n, name in enumerate(columns)
        if name in (first, "block", "score", "weight") or name[:2] == "p("
    }
    return [
        "  ".join(
            text.rjust(width) if n in right else text.ljust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def place(step: ReadStep | ReadBlock) -> str:
    """Return the name of a step, and that of the section of a text."""
    section = "" if step.section is None else f"section {step.section}, "
    return f"{section}step {step.step}"


def attention(step: ReadStep, reading: MemoryReading) -> str:
    """Write the attention on blocks of a step in words."""
    number = sum((x.section, x.step) == (step.section, step.step) for x in reading.blocks)
    read = "the block that was read" if number == 1 else f"the {number} blocks that were read"
    found = f"{step.mass:.3f} of the attention went to {read}"
    if number == reading.size or step.covered is None:
        return found + (", all there are" if number == reading.size else f", of {reading.size:,}")
    return found + (
        f"; if all {reading.size:,} were read, these would get {step.covered:.3f} of what goes to "
        "blocks"
    )


def rests(reading: MemoryReading) -> str:
    """Write which blocks the answer rests on, in a sentence."""
    answer = shortened(reading.answer) or "nothing"
    own = "" if reading.chance is None else f" (probability {reading.chance:.3f})"
    changed = [x for x in reading.without if x.answer != reading.answer]
    parts = [f"without block {x.id}: {brief(x, answer)}" for x in changed[:SENTENCES]]
    if len(changed) > SENTENCES:
        parts.append(f"another without each of {len(changed) - SENTENCES} more")
    if not changed:
        parts.append("the same without any one block")
    parts.append(f"without the memory: {brief(reading.alone, answer)}")
    return f"answer {answer}{own}; {'; '.join(parts)}"


def brief(without: Without, answer: str) -> str:
    """Return an answer, and the probability of `answer` instead."""
    found = shortened(without.answer) or "nothing"
    other = without.chance is not None and found != answer
    return f"{found} ({answer}: {probability(without)})" if other else found


def shortened(text: str) -> str:
    return one_line(text, SHOWN_ANSWER)


def memory_flags(reading: MemoryReading) -> list[str]:
    """Return the flags of a command that reads the same."""
    flags = [f"--memory={reading.folder}"]
    flags += [f"--topic={name}" for name in reading.topics or ()]
    return flags + ([] if reading.top is None else [f"--top={reading.top}"])


def memory_section(reading: MemoryReading) -> Section:
    """Return the section of a page."""
    return Section(
        heading="Long-term memory",
        text=f"A{rests(reading)[1:]}.",
        markup=html.render("memory.html", **_contents(reading)) if reading.blocks else "",
    )


def _contents(reading: MemoryReading) -> dict[str, Any]:
    """Return the values of memory.html."""
    left_out = {x.id: x for x in reading.without}
    return {
        "steps": [
            {
                "step": step.step,
                "name": f"{place(step)}: {attention(step, reading)}",
                "rows": [
                    _row(x, reading, left_out.get(x.id)) for x in _of_step(reading.blocks, step)
                ],
            }
            for step in reading.steps
        ],
        "has_text": any(x.text is not None for x in reading.blocks),
        "chance": None if reading.chance is None else chance_name(reading),
    }


def _of_step(blocks: Iterable[ReadBlock], step: ReadStep) -> list[ReadBlock]:
    return [x for x in blocks if (x.section, x.step) == (step.section, step.step)]


def _row(block: ReadBlock, reading: MemoryReading, without: Without | None) -> dict[str, Any]:
    return {
        "id": block.id,
        "topic": block.topic,
        "place": block.place,
        "score": f"{block.score:.2f}",
        "mass": f"{block.mass:.3f}",
        "answer": "not left out" if without is None else without.answer or "nothing",
        "changed": without is not None and without.answer != reading.answer,
        "chance": probability(without),
        "text": "" if block.text is None else block.text,
    }
