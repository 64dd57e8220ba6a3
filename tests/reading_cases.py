"""Models of facts that have learned nothing, and memories that they have written."""

import torch
from model_cases import tiny

import thinkers
from thinkers.memory import LongTermMemory

SIZES = dict(memory="blocks", memory_section=8, mixing=3, memory_top=2)


def facts(**own):
    """A model of facts, and its task."""
    task = thinkers.build_task("facts", num_entities=5, num_relations=5, num_sections=2)
    sizes = dict(vocab_size=task.vocab_size, max_length=task.max_length)
    return sensitive({**sizes, **own}), task


def sensitive(own):
    """A Thinker with a memory whose answers depend on what it reads, without being trained."""
    model = tiny("thinker", {**SIZES, **own})
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim == 2 else 1)
    return model


def letters(folder, **own):
    """A model of a text of letters, and its task."""
    (folder / "text.txt").write_text("abcdefgh " * 40)
    task = thinkers.build_task("text", path=str(folder / "text.txt"), context=12)
    sizes = dict(vocab_size=task.vocab_size, max_length=12, section=3)
    return sensitive({**sizes, **own}), task


def written(folder, run, *topics, **options):
    """A memory of two sections of each topic, the second one shorter."""
    memory = LongTermMemory.create(folder, run)
    for number, topic in enumerate(topics):
        text = f"e{number} r1 e2 n3 n4 e{number} r2 e4\nn0 e1 r1 e{number}"
        memory.write([text], topic, sources=[f"{topic}.txt"], **options)
    return memory
