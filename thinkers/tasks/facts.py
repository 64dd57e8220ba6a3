"""Questions about facts of documents that a model reads into its memory, section by section."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt64
from torch import Tensor, nn

from thinkers.checks import check_choices, check_int
from thinkers.errors import UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.models.halt import Halt
from thinkers.models.tools import Tool
from thinkers.prng import Draws, mix, row_keys
from thinkers.tasks.answers import SCORING_ROWS, SCORING_SECTIONS
from thinkers.tasks.base import IGNORED, SPLITS, Prompt, check_batch
from thinkers.tasks.curriculum import CurriculumTask, check_curriculum
from thinkers.tasks.due import Steps
from thinkers.tasks.fact_documents import PER_SECTION, DocumentFacts, draw_facts, of_split
from thinkers.tasks.fact_sentences import Sentences
from thinkers.tasks.fact_texts import Codes, FactTexts
from thinkers.tasks.tools import refuse_tools

TEXTS: dict[str, Callable[[int, int], FactTexts]] = {"codes": Codes, "sentences": Sentences}
SHORTER = 30
"""Percent of training batches whose documents are shorter than those that the stage is about."""
LEAST_QUESTIONS = 4
"""Questions about a short document in training; with one, a pilot learned to match more slowly."""
ATTEMPTS = 1000
"""Draws after which a split counts as empty; of 10 % of all documents, one is missed by 1e-46."""
LARGEST = 10_000
"""The most sections that a task can be configured for."""
_DOCUMENTS, _SIZES = len(SPLITS), 2 * len(SPLITS)
"""Streams of random keys: those of documents, for each split, and of the sizes of updates."""


class Facts(CurriculumTask):
    """Answer questions about facts in a document: `e3 r5 ?` is e17 where a section has `e3 r5 e17`.

    A document is `num_sections` sections of two facts each, of which a model sees none with the
    question: it reads them into its memory (`Batch.sections`). A fact is an entity, a relation and
    a value, which is an entity too. A question of two hops, `e3 r5 r2 ?`, asks for the value of the
    value. The facts of a document are about few entities and relations, so that an entity alone, or
    a relation, says little about the value.

    Consecutive rows share a document. Documents are held out by a hash of their facts, whatever
    their order, and those of valid and test have `num_sections` sections. The stages of the
    curriculum double the sections, from `first_sections` on; with levels, the shortest documents
    are first read at level 1 alone, then at one level more at a time, and longer ones at all. With
    two hops, the last stage asks questions of one hop and of two; before, the values of documents
    need no facts of their own.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_entities: int = 24
        num_relations: int = 24
        num_sections: int = 16
        """Sections of a document, of two facts each."""
        hops: int = 1
        """Most hops of a question: 1 or 2."""
        levels: int = 1
        """Level of the blocks that a model learns to read, after the levels below."""
        two_hops: float = 0.6
        """Share of questions of two hops, where there are any."""
        questions: int = 16
        """Consecutive rows of a batch that ask about one document of num_sections; in training,
        shorter ones are asked in proportion, so that an update reads about as many sections."""
        text: Literal["codes", "sentences"] = "codes"
        """Facts as e3 r5 e17 between noise, or as sentences such as Anna helps Boris."""
        curriculum: bool = False
        """Train on short documents first, and double them each time they are mastered."""
        first_sections: int = 2
        """Sections of the first documents, if num_sections is not less."""
        threshold: float = 0.9
        """Running accuracy, on the longest documents so far, at which the curriculum moves on."""
        window: int = 2000
        """Number of examples that the running accuracy looks back on."""

        def __post_init__(self) -> None:
            for name in ("num_entities", "num_relations"):
                check_int(name, getattr(self, name), 3, 10_000)
            check_int("num_sections", self.num_sections, 1, LARGEST)
            check_int("hops", self.hops, 1, 2)
            check_int("levels", self.levels, 1, 10)
            check_int("questions", self.questions, 1)
            check_int("first_sections", self.first_sections, 1)
            if not 0 < self.two_hops <= 1:
                raise UsageError(f"two_hops must be above 0 and at most 1, got {self.two_hops}")
            check_choices(self)
            check_curriculum(self)
            needed = PER_SECTION * self.num_sections
            keys = self.num_entities * self.num_relations
            if needed > keys:
                side = max(64, math.ceil(math.sqrt(needed)))
                raise usage_error(
                    f"num_sections {self.num_sections}, whose {needed} facts are more than the "
                    f"{keys} pairs of {self.num_entities} entities and {self.num_relations} "
                    "relations",
                    f"at most {keys // PER_SECTION} sections, since each pair is in one fact alone",
                    f"set num_entities={side} and num_relations={side}, or fewer sections",
                )

    config: Config
    prompt_end = "?"

    def __init__(self, config: Any = None, seed: int = 0):
        super().__init__(config, seed)
        config = self.config
        self.texts = TEXTS[config.text](config.num_entities, config.num_relations)
        self.vocab_size = len(self.texts.words)
        self.section_length = self.texts.section_length
        self.max_length = len(self.texts.form(config.hops)) + self.max_answer_length()
        sizes = [min(config.first_sections, config.num_sections)]
        while sizes[-1] < config.num_sections:
            sizes.append(min(2 * sizes[-1], config.num_sections))
        # A level begins with the shortest documents: a model that has learned to find one block of
        # many may give those of a new level no attention at all, and without it no gradient.
        first = [(1, sizes[0], level + 1) for level in range(config.levels)]
        self.stages = first + [(1, size, config.levels) for size in sizes[1:]]
        # Two hops begin with the longest documents: look-ups are learned by then, and among few
        # facts the second would be guessed.
        self.stages += [(2, sizes[-1], config.levels)] * (config.hops - 1)
        self.levels = range(len(self.stages))
        self.max_due = None if config.hops == 1 else 1 + config.hops
        self.difficulty = self.levels[0 if config.curriculum else -1]
        self.observed = 0

    @property
    def num_output_tokens(self) -> int:
        return self.config.num_entities

    def max_answer_length(self) -> int:
        return 1

    # curriculum

    def sections_of(self, update: int) -> int:
        """Return the number of sections of the documents of a training update at this stage."""
        longest = self.stages[self.difficulty][1]
        draws = Draws(row_keys(self.seed, _SIZES, np.array([update]), 1)[0])
        powers = (longest - 1).bit_length()  # of two, that are less
        if not powers or draws.below(100, 1)[0, 0] >= SHORTER:
            return longest
        return 1 << int(draws.below(powers, 1)[0, 0])

    def questions_about(self, num_sections: int) -> int:
        """Return the number of consecutive rows about a document of this size."""
        whole = self.config.questions
        least = min(whole, LEAST_QUESTIONS)
        return max(least, whole * num_sections // self.config.num_sections)

    def observe(self, correct: Bool[Tensor, " b"]) -> None:
        """Update the running accuracy, by updates on the longest documents of the stage alone."""
        is_longest = self.sections_of(self.observed) == self.stages[self.difficulty][1]
        self.observed += 1
        if is_longest:
            super().observe(correct)

    def state_dict(self) -> dict[str, Any]:
        """Return the difficulty, the running accuracy and the number of observed updates."""
        return super().state_dict() | {"observed": self.observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "observed" not in state:
            raise UsageError(f"state must hold observed, got {sorted(state)}")
        super().load_state_dict({k: x for k, x in state.items() if k != "observed"})
        self.observed = check_int("observed", state["observed"], 0)

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return questions about documents of one size, `questions` consecutive ones about each.

        A row is a function of (seed, split, update, row), and in training of the curriculum.
        """
        stream, config = check_batch(update, batch_size, split), self.config
        is_training, at = split == "train", np.array([update])
        hops, size = config.hops, config.num_sections
        if is_training:
            hops, _, highest = self.stages[self.difficulty]
            size = self.sections_of(update)
        questions = self.questions_about(size)
        count = -(-batch_size // questions)
        keys = row_keys(self.seed, stream, at, batch_size)[0]
        document_keys = row_keys(self.seed, _DOCUMENTS + stream, at, count)[0]
        facts = self._facts(document_keys, PER_SECTION * size, hops > 1, split)
        sections, section_lengths = self.texts.sections(facts, Draws(document_keys))
        document = np.arange(batch_size) // questions
        tokens, lengths, answers = self._questions(Draws(keys), facts, document, hops)
        targets = np.full(tokens.shape, IGNORED)
        targets[np.arange(batch_size), lengths - 1] = answers[:, -1]
        signed = [x.view(np.int64) for x in (keys, document_keys)]
        arrays = (tokens, targets, lengths, signed[0], sections, section_lengths, document)
        tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]
        levels = None
        if is_training and config.levels > 1:
            # A level is learned from those below it, which stay readable.
            levels = torch.from_numpy(1 + mix(document_keys).astype(np.int64) % highest)
        return Batch(
            tokens=tensors[0],
            targets=tensors[1],
            prompt_lengths=tensors[2],
            lengths=tensors[2].clone(),
            keys=tensors[3],
            sections=tensors[4],
            section_lengths=tensors[5],
            document=tensors[6],
            document_keys=torch.from_numpy(signed[1]) if is_training else None,
            document_levels=levels,
            **self._steps(tokens, lengths, answers),  # type: ignore[arg-type]
        )

    def _facts(
        self, keys: UInt64[np.ndarray, " d"], num_facts: int, is_chained: bool, split: str
    ) -> DocumentFacts:
        """Return for each key the first document drawn from it that belongs to `split`."""
        # Rejection sampling: each attempt has a key of its own, so that a document does not depend
        # on how often others were rejected.
        sizes = num_facts, self.config.num_entities, self.config.num_relations
        pending, found = np.arange(len(keys)), None
        for attempt in range(ATTEMPTS):
            draws = Draws(mix(keys[pending] + np.uint64(attempt + 1)))
            drawn = draw_facts(draws, *sizes, is_chained)
            good = of_split(drawn, split)
            found = drawn if found is None else found
            for all_of, new in zip(found, drawn, strict=True):
                all_of[pending[good]] = new[good]
            pending = pending[~good]
            if not len(pending):
                return found
        raise UsageError(
            f"{type(self).__name__} must have documents of {num_facts // PER_SECTION} sections for "
            f"{split}, got none in {ATTEMPTS:,} draws; allow more entities and relations"
        )

    def _questions(
        self, draws: Draws, facts: DocumentFacts, document: Int64[np.ndarray, " b"], hops: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the tokens of a question for each row, their lengths, and for each the value of
        its first hop and the answer."""
        asked = draws.below(facts.entity.shape[1], 1)[:, 0]
        share = self.config.two_hops if hops > 1 else 0
        is_second = draws.below(1 << 31, 1)[:, 0] < share * (1 << 31)
        partner = facts.partner[document, asked]
        second = np.where(is_second, facts.relation[document, partner], -1)
        relations = np.stack([facts.relation[document, asked], second], 1)
        tokens, lengths = self.texts.questions(facts.entity[document, asked], relations)
        first = facts.value[document, asked]
        answer = facts.value[document, np.where(is_second, partner, asked)]
        return tokens, lengths, np.stack([first, answer], 1)

    def _steps(
        self,
        tokens: Int64[np.ndarray, "b t"],
        lengths: Int64[np.ndarray, " b"],
        answers: Int64[np.ndarray, "b 2"],
    ) -> dict[str, Tensor]:
        """Return when answers are due, and the value of the first hop before that.

        A hop is a look-up, from the second step on. With one hop all answers are due at once.
        """
        if self.config.hops == 1:
            return {}
        rows, ends = np.arange(len(tokens)), lengths - 1
        hops = np.where(lengths > len(self.texts.form(1)), 2, 1)
        due = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64)
        due[rows, ends] = 1 + hops
        early = np.full((*tokens.shape, 2), IGNORED)
        early[rows, ends, 1] = np.where(hops == 2, answers[:, 0], IGNORED)
        return {"due": torch.from_numpy(due), "early": torch.from_numpy(early)}

    def evaluation_batches(self, split: str, num_examples: int) -> Iterator[Batch]:
        config = self.config
        documents = SCORING_SECTIONS // config.num_sections, SCORING_ROWS // config.questions
        rows = max(1, min(documents)) * config.questions
        for i, start in enumerate(range(0, num_examples, rows)):
            yield self.batch(i, min(rows, num_examples - start), split)

    def groups(self, split: str = "test", num_examples: int = 2000) -> Int64[np.ndarray, " n"]:
        """Return the number of each example's document."""
        return np.arange(check_int("num_examples", num_examples, 1)) // self.config.questions

    def evidence(self, batch: Batch) -> Int[Tensor, "b h"]:
        """Return the sections that the answer to each question rests on, in the order of its hops.

        The second one of a question of one hop is -1, as is the section of a fact that is absent.
        """
        assert batch.sections is not None and batch.section_lengths is not None
        assert batch.document is not None and batch.lengths is not None
        known: list[dict[tuple[int, int], tuple[int, int]]] = []
        for sections, sizes in zip(
            batch.sections.tolist(), batch.section_lengths.tolist(), strict=True
        ):
            known.append({})
            for number, (section, size) in enumerate(zip(sections, sizes, strict=True)):
                keys = self.texts.keys_of(section[:size])
                for entity, relation, value in zip(*[iter(keys)] * 3, strict=True):
                    known[-1][entity, relation] = value, number
        found = torch.full((len(batch), self.config.hops), -1)
        rows = zip(batch.tokens.tolist(), batch.lengths, batch.document.tolist(), strict=True)
        for row, (tokens, length, document) in enumerate(rows):
            entity, *relations = self.texts.keys_of(tokens[:length])
            for hop, relation in enumerate(relations):
                entity, found[row, hop] = known[document].get((entity, relation), (-1, -1))
        return found

    # evaluation

    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
        tools: Sequence[str | Tool] | None = None,
    ) -> dict[str, float]:
        """Return the share of right answers (`exact`), and with two hops that of each number."""
        refuse_tools(self, tools)
        given = split, check_int("num_examples", num_examples, 1)
        right = self.grade(model, *given, num_steps, halt)
        found = {"exact": float(right.mean())}
        if self.config.hops > 1:
            hops = torch.cat([self.hops_of(x) for x in self.evaluation_batches(*given)])
            for count, name in ((1, "one_hop"), (2, "two_hops")):
                if (hops == count).any():
                    found[name] = float(right[hops == count].mean())
        return found

    def hops_of(self, batch: Batch) -> Int[Tensor, " b"]:
        """Return the number of hops of each question."""
        assert batch.lengths is not None
        return 1 + (batch.lengths > len(self.texts.form(1))).to(torch.int64)

    # text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of sections and questions such as `e3 r5 e17 n3` or `e3 r5 ?`.

        Raises:
            UsageError: naming the first word that has no token.
        """
        return self.texts.encode(text)

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        return self.texts.decode(int(token) for token in tokens)

    def read_prompt(self, text: str) -> Prompt:
        """Read a question.

        Raises:
            UsageError: It has another form or too many hops, or `encode` refuses the text.
        """
        tokens, most = self.encode(text), self.config.hops
        hops = self.texts.hops_of(tokens)
        if hops is None or hops > most:
            raise usage_error(
                f"{text[:60]!r}" if tokens else "an empty prompt",
                f"a question of at most {most} hops" if most > 1 else "a question of one hop",
                "write one such as "
                + " or ".join(self.texts.example(count) for count in range(1, most + 1)),
            )
        return Prompt(tokens, 0, 1)
