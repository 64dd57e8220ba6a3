"""The definition of a Thinker that chooses its blocks: one row, by loops over steps and blocks."""

import torch
from thinker_definition import defined_input, memory_of, rows, thinker
from thinker_halting_definition import written
from thinker_memory_definition import Thought, matches

READ, PROCESS, REFLECT, RECALL, OUTPUT = range(5)
STEPS = 6


def choosing(own, seed=6, batch=None):
    """A model in float64 whose boundaries choose different blocks, none of them by a hair.

    Args:
        batch: Questions about documents, if it has a memory of those.
    """
    model = thinker(seed, policy=True, num_steps=STEPS, max_steps=8, **own).eval()
    with torch.no_grad():
        model.text.embedding.weight.normal_(std=0.5)
        if batch is not None:  # a memory begins with positions as large as words
            model.text.position.weight.normal_(std=0.02)
        model.latents.weight.mul_(0.3)
        # Scores around 0, so that no block is the best of all states.
        linear = model.policy.blocks.linear
        tokens = rows(4, 17) if batch is None else batch.tokens
        given = {} if batch is None else {"memory": model.blocks_of(batch)}
        latents = model(tokens, keep_states=True, **given).extra["latents"].flatten(0, 2)
        states = latents.mean(1) + latents[:, -1]
        linear.weight.normal_().div_(states.std())
        linear.bias.copy_(-linear.weight @ states.mean(0))
    return model


class Chosen:
    """Thought about some tokens (1, p), with the block of the highest score at each step.

    Args:
        blocks: Blocks in the long-term memory, (m, c) each.
        top: The number that RECALL reads, by the index; None means all.
    """

    def __init__(self, model, tokens, steps, section=None, blocks=(), top=None):
        config, past = model.config, []
        inputs = defined_input(model, tokens[0], section)[None]
        known = [model.knowledge.weight[None]] if config.num_knowledge else []
        kept = steps if config.memory_steps is None else config.memory_steps
        self.actions, self.margins, self.recalled, self.losses = [PROCESS], [], [[]], []
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
            allowed = [READ, PROCESS, OUTPUT] + [REFLECT] * bool(kept) + [RECALL] * bool(blocks)
            ranked = sorted(allowed, key=lambda a: (-scores[a], a))
            self.margins.append(scores[ranked[0]] - scores[ranked[1]])
            self.actions.append(ranked[0])
            if ranked[0] == OUTPUT:
                break
            self.recalled.append(self._found(model, latent, blocks, top, ranked[0]))
            found = [blocks[i][None] for i in self.recalled[-1]]
            read = {READ: [inputs], REFLECT: recent(), RECALL: recent() + found}
            memory = memory_of(model, read.get(ranked[0]) or state(rereads()))
            if found and top is None:
                self.losses.append(self._loss(model, latent, memory, blocks))
            latent = model.process(latent, memory)
            past.append(latent)
        self.taken = len(past)
        self.memory = memory_of(model, state(rereads()))

    def _found(self, model, latent, blocks, top, action):
        if action != RECALL:
            return []
        scores = matches(model, latent[0, 0], blocks).tolist()
        order = sorted(range(len(blocks)), key=lambda i: (-scores[i], i))
        if top is not None and len(order) > top:
            self.margins.append(scores[order[top - 1]] - scores[order[top]])
            order = order[:top]
        return sorted(order)

    def _loss(self, model, latent, memory, blocks):
        mass = Thought._mass(model, latent, memory, [len(block) for block in blocks])
        return Thought._loss(model, matches(model, latent[0, 0], blocks), mass)


class Definition:
    """One row: sections written from the end of the one before, an answer from its prompt."""

    def __init__(self, model, row, steps, prompt=None, blocks=(), top=None):
        size, self.actions, found, self.recalled = model.config.section, [], [], []
        end = len(row) if prompt is None else prompt - 1
        first = row[None, : min(size - 1, end)]
        if first.shape[1]:
            latents = memory_of(model, [model.latents.weight[None]])
            found.append(written(model, latents, first, 0, offset=1))
        self.margins = []
        for e in range(size, end + 1, size):
            of = Chosen(model, row[None, :e], steps, size, blocks, top)
            self.actions.append(of.actions)
            self.recalled.append(of.recalled)
            self.margins += of.margins
            text = row[None, e - 1 : min(e - 1 + size, end)]
            found.append(written(model, of.memory, text, e - 1))
        if prompt is not None:
            of = Chosen(model, row[None, :prompt], steps, None, blocks, top)
            self.actions, self.recalled = [of.actions], [of.recalled]
            self.margins += of.margins
            found.append(written(model, of.memory, row[None, prompt - 1 :], prompt - 1))
        self.logits = torch.cat(found)
