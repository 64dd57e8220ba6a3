"""Facts as text: sections of codes such as `n3 e3 r5 e17`, and the questions about them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Int64

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.prng import Draws
from thinkers.tasks.fact_documents import PER_SECTION, DocumentFacts

BLANK = -1
"""A place in the form of a question."""
_PART = re.compile(r"[^\s.?,]+|[.?,]")

Rows = tuple[Int64[np.ndarray, "*n t"], Int64[np.ndarray, "*n"]]
"""Rows of tokens, 0 beyond their lengths, and these lengths."""


class FactTexts(ABC):
    """A way to write facts and questions.

    The first tokens are the entities and then the relations; all others say nothing of a fact.

    Args:
        others: The texts of all other tokens.
    """

    section_length: int
    """The most tokens of a section."""
    rule: str
    """The words that it has, for messages."""

    def __init__(self, entities: Sequence[str], relations: Sequence[str], others: Sequence[str]):
        self.num_entities, self.num_relations = len(entities), len(relations)
        self.words = (*entities, *relations, *others)
        self.token_of = {word.lower(): token for token, word in enumerate(self.words)}

    @abstractmethod
    def sections(self, facts: DocumentFacts, draws: Draws) -> Rows:
        """Return the tokens of sections (d, n, s), each of two facts, and their lengths (d, n)."""

    @abstractmethod
    def form(self, hops: int) -> list[int]:
        """Return the tokens of a question, BLANK for the entity and for each relation after it."""

    @abstractmethod
    def join(self, words: Iterable[str]) -> str:
        """Return the text of words."""

    def questions(
        self, entity: Int64[np.ndarray, " b"], relations: Int64[np.ndarray, "b h"]
    ) -> Rows:
        """Return questions of one hop for each relation; one of -1 is none."""
        keys = np.concatenate([entity[:, None], self.num_entities + relations], 1)
        hops = (relations >= 0).sum(1)
        forms = [np.array(self.form(count)) for count in range(1, hops.max() + 1)]
        tokens = np.zeros((len(hops), len(forms[-1])), np.int64)
        for count, form in enumerate(forms, 1):
            row = np.tile(form, (len(hops), 1))
            row[:, form == BLANK] = keys[:, : count + 1]
            tokens[hops == count, : len(form)] = row[hops == count]
        return tokens, np.array([len(form) for form in forms])[hops - 1]

    def keys_of(self, tokens: Iterable[int]) -> list[int]:
        """Return the entities and relations among tokens, in their order.

        They are `entity, relation, value` again and again in sections, and `entity, relation ..` in
        a question.
        """
        return [token for token in tokens if token < self.num_entities + self.num_relations]

    def hops_of(self, tokens: Sequence[int]) -> int | None:
        """Return the number of hops of a question; None if this is no question."""
        keys = self.keys_of(tokens)
        is_key = [token >= self.num_entities for token in keys] == [False] + [True] * (
            len(keys) - 1
        )
        if len(keys) < 2 or not is_key:
            return None
        left = iter(keys)
        asked = [next(left) if token == BLANK else token for token in self.form(len(keys) - 1)]
        return len(keys) - 1 if asked == list(tokens) else None

    def example(self, hops: int) -> str:
        """Return a question."""
        relations = np.arange(hops)[None] % self.num_relations
        return self.decode(self.questions(np.zeros(1, np.int64), relations)[0][0])

    def encode(self, text: str) -> list[int]:
        """Return the token of each word and mark.

        Raises:
            UsageError: naming the first word that has none.
        """
        found = []
        for place, word in enumerate(_PART.findall(text)):
            if word.lower() not in self.token_of:
                raise usage_error(
                    f"word {place} of {text[:60]!r} is {word[:20]!r}",
                    self.rule,
                    "write facts and questions of these words alone",
                )
            found.append(self.token_of[word.lower()])
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens."""
        count = len(self.words)
        found = [check_int(f"token {i}", int(x), 0, count - 1) for i, x in enumerate(tokens)]
        return self.join(self.words[token] for token in found)


class Codes(FactTexts):
    """Facts are three adjacent words at random places of eight, all others are noise.

    A section is `n3 e3 r5 e17 e2 r0 e3 n9`, a question `e3 r5 ?`, and one of two hops `e3 r5 r2 ?`.
    """

    section_length = 8
    num_noise = 16

    def __init__(self, num_entities: int, num_relations: int):
        codes = [
            [f"{letter}{number}" for number in range(count)]
            for letter, count in zip(
                "ern", (num_entities, num_relations, self.num_noise), strict=True
            )
        ]
        super().__init__(codes[0], codes[1], [*codes[2], "?"])
        self.rule = ", ".join(f"{some[0]} .. {some[-1]}" for some in codes) + " or ?"

    def sections(self, facts: DocumentFacts, draws: Draws) -> Rows:
        d, n = facts.entity.shape[0], facts.entity.shape[1] // PER_SECTION
        # Facts and single words of noise in any order; a fact moves what is after it by two words.
        noise = self.section_length - 3 * PER_SECTION
        orders = list(combinations(range(PER_SECTION + noise), PER_SECTION))
        starts = np.array([[2 * i + place for i, place in enumerate(order)] for order in orders])
        first = starts[draws.below(len(starts), n)]
        places = (first[..., None] + np.arange(3)).reshape(d, n, -1)
        relation = self.num_entities + facts.relation
        triples = np.stack([facts.entity, relation, facts.value], -1).reshape(d, n, -1)
        tokens = self.num_entities + self.num_relations + draws.below(self.num_noise, 8 * n)
        tokens = tokens.reshape(d, n, self.section_length)
        np.put_along_axis(tokens, places, triples, 2)
        return tokens, np.full((d, n), self.section_length)

    def form(self, hops: int) -> list[int]:
        return [BLANK] * (1 + hops) + [self.token_of["?"]]

    def join(self, words: Iterable[str]) -> str:
        return " ".join(words)
