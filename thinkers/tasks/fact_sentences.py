"""Facts as sentences: `Today Anna often helps Boris.`, asked by `Anna helps whom?`"""

import re
from collections.abc import Iterable

import numpy as np

from thinkers.checks import check_int
from thinkers.prng import Draws
from thinkers.tasks.fact_documents import PER_SECTION, DocumentFacts
from thinkers.tasks.fact_texts import BLANK, FactTexts, Rows

NAMES = (
    "Ada Aldo Alma Anna Boris Bruno Carla Cora Daniel Diana Edgar Elena Emma Erik Felix Fiona "
    "Flora Frank Gina Greta Hanna Hector Helen Hugo Ida Igor Irene Ivan Jacob Jana Jonas Julia "
    "Karl Kira Laura Leo Lena Lukas Marta Milo Mona Nadia Nils Nora Olga Oskar Otto Paula Peter "
    "Petra Quinn Rita Robert Rosa Sara Simon Sofia Tanja Theo Tina Ulla Vera Viktor Walter"
).split()
VERBS = (
    "admires advises amuses answers assists avoids believes blames calls calms cheers comforts "
    "consults copies defends doubts employs encourages envies escorts fears feeds follows "
    "forgives greets guards guides helps hires hosts hugs ignores imitates insults interviews "
    "invites judges knows leads likes loves mentions misses mocks obeys paints pays praises "
    "protects questions remembers rescues respects scolds serves supports teaches teases thanks "
    "tolerates trusts visits warns watches"
).split()
OPENERS = "again clearly indeed now perhaps sometimes then today".split()
ADVERBS = "always deeply often openly rarely really secretly still".split()
MARKS = "someone who whom . ?".split()


class Sentences(FactTexts):
    """Facts are sentences: entities are names and relations verbs.

    A section is two sentences, each of which may begin with an opener and have an adverb: `Today
    Anna often helps Boris. Carla trusts Anna.` Questions are `Anna helps whom?` and, of two hops,
    `Carla trusts someone who helps whom?`
    """

    section_length = 6 * PER_SECTION

    def __init__(self, num_entities: int, num_relations: int):
        check_int("num_entities", num_entities, 1, len(NAMES), "names of text sentences")
        check_int("num_relations", num_relations, 1, len(VERBS), "verbs of text sentences")
        others = (*OPENERS, *ADVERBS, *MARKS)
        names, verbs = NAMES[:num_entities], VERBS[:num_relations]
        super().__init__(names, verbs, others)
        listed = ", ".join(f"{some[0]} .. {some[-1]}" for some in (names, verbs))
        self.rule = f"{listed} or another word of the sentences of facts"

    def sections(self, facts: DocumentFacts, draws: Draws) -> Rows:
        d, f = facts.entity.shape
        opener, adverb = (
            self.token_of[words[0]] + draws.below(2 * len(words), f) for words in (OPENERS, ADVERBS)
        )
        columns = [
            np.where(opener <= self.token_of[OPENERS[-1]], opener, -1),  # in half of all sentences
            facts.entity,
            np.where(adverb <= self.token_of[ADVERBS[-1]], adverb, -1),
            self.num_entities + facts.relation,
            facts.value,
            np.full((d, f), self.token_of["."]),
        ]
        tokens = np.stack(columns, -1).reshape(d, f // PER_SECTION, self.section_length)
        is_word = tokens >= 0
        order = np.argsort(~is_word, 2, kind="stable")
        lengths = is_word.sum(2)
        return np.maximum(np.take_along_axis(tokens, order, 2), 0), lengths

    def form(self, hops: int) -> list[int]:
        someone, who, whom, mark = (self.token_of[x] for x in ("someone", "who", "whom", "?"))
        return [BLANK, BLANK] + [someone, who, BLANK] * (hops - 1) + [whom, mark]

    def join(self, words: Iterable[str]) -> str:
        text = re.sub(r" (?=[.?])", "", " ".join(words))
        return re.sub(r"(^|(?<=[.?] ))[a-z]", lambda found: found[0].upper(), text)
