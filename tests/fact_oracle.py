"""Facts read and answered by plain loops over texts, and a model that does so."""

import re
from types import SimpleNamespace

import torch
from torch import nn


def words_of(text):
    return re.findall(r"[^\s.?]+|[.?]", text)


def facts_of(section):
    """The facts of a section's text: {(entity, relation): value}."""
    words = words_of(section)
    if "." not in words:  # codes
        words = [word for word in words if not word.startswith("n")]
        return {(words[i], words[i + 1]): words[i + 2] for i in range(0, len(words), 3)}
    found = {}
    for sentence in " ".join(words).split(" . "):
        names = sentence.removesuffix(" .").split()
        if names[1][0].isupper():  # after an opener, which begins the sentence
            names = names[1:]
        if len(names) == 4:  # with an adverb
            names.pop(1)
        name, verb, other = names
        found[name, verb] = other
    return found


def asked_by(question):
    """The entity and relations of a question's text."""
    words = words_of(question)
    if "whom" not in words:
        return words[0], words[1:-1]
    return words[0], [words[1], *([words[4]] if "who" in words else [])]


def document_of(task, batch, row):
    """The texts of the sections that a row asks about."""
    number = int(batch.document[row])
    found = zip(batch.sections[number], batch.section_lengths[number], strict=True)
    return [task.decode(tokens[:length]) for tokens, length in found if length]


def question_of(task, batch, row):
    return task.decode(batch.tokens[row, : batch.lengths[row]])


def solved(sections, question):
    """The answer to a question, and the sections that hold its facts."""
    entity, relations = asked_by(question)
    places = []
    for relation in relations:
        (place,) = [i for i, x in enumerate(sections) if (entity, relation) in facts_of(x)]
        entity = facts_of(sections[place])[entity, relation]
        places.append(place)
    return entity, places


class Reader(nn.Module):
    """A model that finds the facts in what `blocks_of` gave it; `known` limits its sections."""

    name = "reader"
    causal, takes_positions, halts_by = True, False, ()

    def __init__(self, task, known=None, memory_section=12):
        super().__init__()
        self.task, self.known, self.most = task, known, 0
        self.config = SimpleNamespace(
            memory="blocks", memory_section=memory_section, takes_steps=True, num_steps=2
        )
        self.weight = nn.Parameter(torch.zeros(1))

    def blocks_of(self, batch):
        self.most = max(self.most, batch.sections[..., 0].numel())
        rows = range(len(batch))
        return [document_of(self.task, batch, row)[: self.known] for row in rows]

    def answer(self, tokens, prompt_lengths, room, num_steps=None, memory=None):
        assert room == 1
        found = torch.zeros(len(tokens), 1, dtype=torch.int64)
        for i, (row, length) in enumerate(zip(tokens, prompt_lengths, strict=True)):
            question = self.task.decode(row[-length:])
            try:
                found[i] = self.task.encode(solved(memory[i], question)[0])[0]
            except ValueError:  # the fact is in no section that it knows
                found[i] = -1
        return found
