"""The definition of a Thinker that halts: one row at a time, boundary by boundary, step by step."""

import torch
from thinker_definition import DIM, defined_input, memory_of
from torch.nn import functional as F


class Boundary:
    """What is thought about some tokens (1, p), step by step, until the rule says so.

    Args:
        given: The steps to take; None means that the rule decides.
        change: Applied to the latents after every step.
    """

    def __init__(self, model, tokens, steps, halt=None, given=None, section=None, change=None):
        config, self.gates, self.memories, past = model.config, [], [], []
        if config.variant == "published":
            words = DIM**0.5 * model.text.embedding.weight[tokens[0]]
            inputs = (words + model.text.table[: tokens.shape[1]])[None]
        else:
            inputs = defined_input(model, tokens[0], section)[None]
        latent = model.latents.weight[None]
        memory = memory_of(model, [inputs])
        for s in range(steps):
            latent = model.process(latent, memory)
            latent = latent if change is None else change(latent)
            past.append(latent)
            pieces = []
            if config.read_steps is None or s < config.read_steps:
                pieces.append(inputs)
            kept = len(past) if config.memory_steps is None else config.memory_steps
            pieces += past[max(0, len(past) - kept) :]
            if config.num_knowledge:
                pieces.append(model.knowledge.weight[None])
            memory = memory_of(model, pieces)
            self.memories.append(memory)
            gate = (latent.mean(1)[0] * model.gate.weight[0]).sum() + model.gate.bias[0]
            self.gates.append(gate)
            if given is not None:
                if len(past) == given:
                    break
            elif halt is not None and float(torch.sigmoid(gate)) > halt:
                break
        self.taken = len(past)

    def memory(self, k):
        return self.memories[min(k, self.taken) - 1]


def written(model, memory, given, first, offset=0):
    """Logits after each token of a text whose first is at `first`."""
    offsets = torch.arange(given.shape[1])
    x = model.queries.weight[offsets + offset][None]
    if model.config.output == "autoregressive":
        places = model.text.position.weight[first + offsets]
        x = x + DIM**0.5 * (model.text.embedding(given) + places)
    for _ in range(model.config.output_steps):
        x = model.process(x, memory, causal=model.causal)
    return x[0] @ model.text.embedding.weight.T


class Definition:
    """One row: sections written from the boundary before them, an answer from that of the prompt.

    Args:
        given: {end of the boundary: its steps, "prompt": those of the prompt}.
    """

    def __init__(self, model, row, steps, halt=None, prompt=None, given=None, change=None):
        self.model, self.row, size = model, row[None], model.config.section
        given, self.answer = given or {}, None if prompt is None else prompt - 1
        end = len(row) if prompt is None else prompt - 1  # positions written by sections
        self.pieces = [(0, min(size - 1, end), None)]
        for e in range(size, end + 1, size):
            of = Boundary(model, row[None, :e], steps, halt, given.get(e), size, change)
            self.pieces.append((e - 1, min(e - 1 + size, end), of))
        if prompt is not None:
            taken = given.get("prompt")
            of = Boundary(model, row[None, :prompt], steps, halt, taken, None, change)
            self.pieces.append((prompt - 1, len(row), of))
        self.steps = []
        for first, last, of in self.pieces:
            self.steps += [0 if of is None else of.taken] * (last - first)

    def logits(self, k=None):
        found, k = [], k or 10**6
        for first, last, of in self.pieces:
            text = self.row[:, first:last]
            if not self.model.causal and of is not None and first != self.answer:
                # Published queries see each other, in a section up to its end.
                text = F.pad(text, (0, self.model.config.section - text.shape[1]))
            if of is None:
                memory = memory_of(self.model, [self.model.latents.weight[None]])
                found.append(written(self.model, memory, text, 0, offset=1))
            else:
                found.append(written(self.model, of.memory(k), text, first)[: last - first])
        return torch.cat(found)
