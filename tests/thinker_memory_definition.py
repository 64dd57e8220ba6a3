"""The definition of a Thinker's long-term memory: one section, one row and one step at a time."""

import math

import torch
from thinker_definition import VOCAB, defined_answer, defined_input, memory_of, rows

from thinkers.models import Batch
from thinkers.models.batch import IGNORED
from thinkers.prng import mix_tensor, normal

SIZES = ((4, 6, 1, 5, 6, 2, 6, 3, 4), (6, 2), ())
DOCUMENT = torch.tensor([0, 1, 0, 2, 1])
LENGTHS, PROMPTS = torch.tensor([9, 8, 5, 7, 6]), torch.tensor([6, 4, 3, 6, 1])
"""Tokens of the sections of three documents, and the rows that ask about them."""


def batch_of(keys=None):
    """Five rows that ask about three documents, one of them without sections."""
    lengths = torch.zeros(3, 9, dtype=torch.int64)
    for i, sizes in enumerate(SIZES):
        lengths[i, : len(sizes)] = torch.tensor(sizes, dtype=torch.int64)
    sections = torch.randint(VOCAB, (3, 9, 6), generator=torch.Generator().manual_seed(3))
    tokens = rows(5, 9)
    columns = torch.arange(9)
    graded = (columns >= PROMPTS[:, None] - 1) & (columns < LENGTHS[:, None] - 1)
    return Batch(
        tokens,
        tokens.roll(-1, 1).where(graded, IGNORED),
        PROMPTS,
        LENGTHS,
        sections=sections,
        section_lengths=lengths,
        document=DOCUMENT,
        document_keys=keys,
    )


def documents(model, batch):
    """The blocks of each document, by the definition."""
    found = []
    for i, sizes in enumerate(SIZES):
        sections = [batch.sections[i, j, :n] for j, n in enumerate(sizes)]
        key = None if batch.document_keys is None else batch.document_keys[i]
        level = None if batch.document_levels is None else int(batch.document_levels[i])
        found.append(defined_document(model, sections, key, level))
    return found


def hashed(tokens, key=None):
    """Hash the tokens of a section, one after another."""
    found = mix_tensor(torch.tensor(len(tokens)))
    for token in tokens.tolist():
        found = mix_tensor(found + mix_tensor(torch.tensor(token + 1)))
    return found if key is None else mix_tensor(found + key)


def defined_block(model, tokens, key=None, before=None):
    """Compress one section of tokens (s,) into (m, c), read with the block (m, c) before it."""
    learned = model.latents.weight
    number = (model.config.block_latents - 1, learned.shape[1])
    drawn = normal(hashed(tokens, key)[None], -3, number, torch.float64)[0]
    random = learned.mean() + learned.std() * drawn
    z = torch.cat([model.compressor.signals.weight[:1], random])[None]
    pieces = [defined_input(model, tokens)[None]]
    if before is not None:
        pieces.append(before.detach()[None])
    for _ in range(model.config.compress_steps):
        z = model.process(z, memory_of(model, pieces))
    return z[0]


def defined_level(model, blocks, level):
    """Compress the whole groups of blocks of one level; return them, and those left over."""
    group, found = model.config.memory_group, []
    whole = len(blocks) // group * group
    for first in range(0, whole, group):
        children = blocks[first : first + group]
        flat = torch.cat(children)
        z = torch.stack([(flat[i] + flat[i + 1]) / math.sqrt(2) for i in range(0, len(flat), 2)])
        z = (z + 0.1 * model.compressor.signals.weight[level - 1])[None]
        codes = model.compressor.members.weight
        coded = torch.cat([child + codes[i] for i, child in enumerate(children)])[None]
        for _ in range(model.config.compress_steps):
            z = model.process(z, memory_of(model, [coded]))
        found.append(z[0])
    return found, blocks[whole:]


def defined_document(model, sections, key=None, level=None):
    """Compress the sections of a document, up to the level that is read."""
    blocks, rest = [], []
    for tokens in sections:
        before = blocks[-1] if blocks and model.config.memory_conditioned else None
        blocks.append(defined_block(model, tokens, key, before))
    most = model.config.read_level if level is None else level
    for level in range(2, most + 1):
        blocks, left = defined_level(model, blocks, level)
        rest = left + rest
    return blocks + rest


def unit(x):
    return x / x.norm()


def matches(model, latent, blocks):
    """Return the best match of each block, from the first thinking latent (c,)."""
    index = model.index
    query = unit(index.query.weight @ latent)
    found = []
    for block in blocks:
        normed = [z / (z.square().mean() + torch.finfo(z.dtype).eps).sqrt() for z in block]
        found.append(max(float(query @ unit(index.key.weight @ z)) for z in normed))
    return torch.tensor(found, dtype=torch.float64)


class Thought:
    """Thinking about a prompt (1, p) with blocks in memory; `top` None reads all of them."""

    def __init__(self, model, tokens, steps, blocks, top=None):
        config, past = model.config, []
        inputs = defined_input(model, tokens[0])[None]
        known = [model.knowledge.weight[None]] if config.num_knowledge else []
        latent = model.latents.weight[None]
        self.read, self.mass, self.margins, self.losses = [], [], [], []
        pieces = [inputs]
        for s in range(steps):
            chosen = []
            if s and blocks:
                scores = matches(model, latent[0, 0], blocks)
                order = sorted(range(len(blocks)), key=lambda i: (-float(scores[i]), i))
                chosen = order if top is None else order[:top]
                if top is not None and len(order) > top:
                    self.margins.append(float(scores[order[top - 1]] - scores[order[top]]))
            extra = [blocks[i][None] for i in chosen]
            memory = memory_of(model, pieces + extra)
            mass = self._mass(model, latent, memory, [len(blocks[i]) for i in chosen])
            self.read.append(chosen)
            self.mass.append(mass)
            if chosen and top is None:
                self.losses.append(self._loss(model, scores[chosen], mass))
            latent = model.process(latent, memory)
            past.append(latent)
            kept = len(past) if config.memory_steps is None else config.memory_steps
            rereads = config.read_steps is None or s < config.read_steps
            pieces = ([inputs] if rereads else []) + known + past[max(0, len(past) - kept) :]
        self.memory = memory_of(model, pieces)

    @staticmethod
    def _mass(model, latent, memory, sizes):
        """Attention mass of the last vectors in memory, by the sizes of blocks."""
        found, handles = [], []
        for number, layer in enumerate(model.process.layers):

            def keep(attention, given, q, keys=memory.keys[number]):
                queries = attention.split(q)
                weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
                found.append(weights.mean((0, 1, 2)))

            query, split = layer.memory_attention.query, layer.memory_attention
            hook = query.register_forward_hook(
                lambda part, given, q, split=split, keep=keep: keep(split, given, q)
            )
            handles.append(hook)
        model.process(latent, memory)
        for handle in handles:
            handle.remove()
        weights = torch.stack(found).mean(0)
        last = weights[len(weights) - sum(sizes) :] if sizes else weights[:0]
        return torch.stack([x.sum() for x in last.split(sizes)]) if sizes else last

    @staticmethod
    def _loss(model, scores, mass):
        target = mass / mass.sum()
        log_share = (model.index.log_scale.exp() * scores).log_softmax(0)
        return float(mass.sum() * (target * (target.log() - log_share)).sum())


def defined_logits(model, row, prompt, thought):
    """Compute the logits of an answer (1, n, v): the memory is read out without blocks."""
    return defined_answer(model, thought.memory, row[None, prompt - 1 :], prompt - 1)
