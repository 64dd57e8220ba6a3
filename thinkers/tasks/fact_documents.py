"""Random documents of facts: entity and relation have a value, which is an entity."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from thinkers.prng import Draws, constants, mix
from thinkers.tasks.base import SPLITS, splits_of_hashes
from thinkers.tasks.star_graph import distinct

PER_SECTION = 2
"""Facts of a section."""
SPARE = 1.6
"""Cells of a document's grid for each of its facts."""
SMALLEST_SIDE = 3
"""The fewest entities and relations of a grid, if there are as many."""
_SALT = 29


class DocumentFacts(NamedTuple):
    """Facts of documents, in their order: those of section i are 2 i and 2 i + 1.

    Args:
        partner: Number of another fact of the document; in chained documents the value is its
            entity, so that it can be asked about further.
    """

    entity: Int64[np.ndarray, "d f"]
    relation: Int64[np.ndarray, "d f"]
    value: Int64[np.ndarray, "d f"]
    partner: Int64[np.ndarray, "d f"]


def grid(num_facts: int, num_entities: int, num_relations: int) -> tuple[int, int]:
    """Return how many entities and relations the facts of a document are about.

    They are few, so that each is in several facts: neither half of a key is enough to find a fact.
    """
    side = max(SMALLEST_SIDE, math.ceil(math.sqrt(SPARE * num_facts)))
    entities = min(num_entities, side)
    relations = min(num_relations, max(side, math.ceil(num_facts / entities)))
    return min(num_entities, max(entities, math.ceil(num_facts / relations))), relations


def draw_facts(
    draws: Draws, num_facts: int, num_entities: int, num_relations: int, is_chained: bool
) -> DocumentFacts:
    """Return random facts for each key, no two of a document with equal entity and relation."""
    width, height = grid(num_facts, num_entities, num_relations)
    entities = distinct(draws, num_entities, width)
    relations = distinct(draws, num_relations, height)
    cells = distinct(draws, width * height, num_facts)
    entity = np.take_along_axis(entities, cells // height, 1)
    relation = np.take_along_axis(relations, cells % height, 1)
    others = 1 + draws.below(num_facts - 1, num_facts)
    partner = (np.arange(num_facts) + others) % num_facts
    value = draws.below(num_entities, num_facts)
    if is_chained:
        value = np.take_along_axis(entity, partner, 1)
    return DocumentFacts(entity, relation, value, partner)


def of_split(facts: DocumentFacts, split: str) -> np.ndarray:
    """Return True for documents of `split`, by a hash that ignores the order of their facts."""
    parts = np.stack([facts.entity, facts.relation, facts.value], -1).astype(np.uint64)
    hashes = mix(((parts + np.uint64(1)) * constants(3, _SALT)).sum(-1, dtype=np.uint64))
    found: UInt64[np.ndarray, " d"] = mix(hashes.sum(1, dtype=np.uint64))
    return splits_of_hashes(found) == SPLITS.index(split)
