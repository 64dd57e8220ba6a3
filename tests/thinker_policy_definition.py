"""The definition of a Thinker that chooses its blocks: one row, by loops over steps and blocks."""

import torch
from thinker_definition import defined_input, memory_of
from thinker_halting_definition import written

READ, PROCESS, REFLECT, RECALL, OUTPUT = range(5)


class Chosen:
    """Thought about some tokens (1, p), with the block of the highest score at each step."""

    def __init__(self, model, tokens, steps, section=None):
        config, past = model.config, []
        inputs = defined_input(model, tokens[0], section)[None]
        known = [model.knowledge.weight[None]] if config.num_knowledge else []
        kept = steps if config.memory_steps is None else config.memory_steps
        self.actions, self.margins = [PROCESS], []
        latent = model.process(model.latents.weight[None], memory_of(model, [inputs]))
        past.append(latent)

        def recent():
            return past[max(0, len(past) - kept) :]

        def state(again):
            return ([inputs] if again else []) + known + recent()

        def rereads():
            return config.read_steps is None or len(past) <= config.read_steps

        while len(past) < steps:
            z = latent[0].mean(0) + latent[0, -1]
            linear = model.policy.blocks.linear
            scores = (linear.weight @ z + linear.bias).tolist()
            allowed = [READ, PROCESS, OUTPUT] + [REFLECT] * bool(kept)
            ranked = sorted(allowed, key=lambda a: (-scores[a], a))
            self.margins.append(scores[ranked[0]] - scores[ranked[1]])
            self.actions.append(ranked[0])
            if ranked[0] == OUTPUT:
                break
            read = {READ: [inputs], REFLECT: recent()}
            pieces = read.get(ranked[0]) or state(rereads())
            latent = model.process(latent, memory_of(model, pieces))
            past.append(latent)
        self.taken = len(past)
        self.memory = memory_of(model, state(rereads()))


class Definition:
    """One row: sections written from the end of the one before, an answer from its prompt."""

    def __init__(self, model, row, steps, prompt=None):
        size, self.actions, found = model.config.section, [], []
        end = len(row) if prompt is None else prompt - 1
        first = row[None, : min(size - 1, end)]
        if first.shape[1]:
            latents = memory_of(model, [model.latents.weight[None]])
            found.append(written(model, latents, first, 0, offset=1))
        self.margins = []
        for e in range(size, end + 1, size):
            of = Chosen(model, row[None, :e], steps, size)
            self.actions.append(of.actions)
            self.margins += of.margins
            text = row[None, e - 1 : min(e - 1 + size, end)]
            found.append(written(model, of.memory, text, e - 1))
        if prompt is not None:
            of = Chosen(model, row[None, :prompt], steps)
            self.actions = [of.actions]
            self.margins += of.margins
            found.append(written(model, of.memory, row[None, prompt - 1 :], prompt - 1))
        self.logits = torch.cat(found)
