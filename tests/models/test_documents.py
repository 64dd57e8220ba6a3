"""Documents of a batch follow the rows that ask about them, and are checked at the edge."""

import dataclasses
from dataclasses import dataclass, replace

import pytest
import torch
from model_cases import ids, tiny

from thinkers import Batch, collate
from thinkers.models.batch import as_batch
from thinkers.models.decoder import Decoder
from thinkers.models.documents import SHAPES

FIELDS = tuple(SHAPES)


class Reader(Decoder):
    """A model that says that it has a memory, for checks alone."""

    name = "reader"

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        memory: str = "blocks"
        memory_section: int = 5
        read_level: int = 3


def reader() -> Reader:
    return Reader(Reader.Config(vocab_size=11, dim=8, num_heads=2, num_layers=1))


def asked(d: int = 3, n: int = 2, s: int = 4, b: int = 6, seed: int = 0, **more) -> Batch:
    """`b` rows of random tokens that ask about random ones of `d` documents."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, s + 1, (d, n), generator=g)
    sections = torch.randint(0, 11, (d, n, s), generator=g)
    document = torch.randint(0, d, (b,), generator=g)
    keys = torch.randint(0, 1 << 60, (d,), generator=g)
    tokens = ids(b, 3, seed=seed) % 11
    batch = Batch(
        tokens,
        tokens.roll(-1, 1),
        sections=sections,
        section_lengths=lengths,
        document=document,
        document_keys=keys,
        document_levels=torch.randint(1, 4, (d,), generator=g),
    )
    return replace(batch, **more)


def of_row(batch: Batch, row: int) -> tuple:
    """The real content of the document that a row asks about, and its key."""
    number = int(batch.document[row])
    found = zip(batch.sections[number], batch.section_lengths[number], strict=True)
    sections = [tokens[:length].tolist() for tokens, length in found if length]
    own = int(batch.document_keys[number]), int(batch.document_levels[number])
    return sections, own, batch.tokens[row].tolist()


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(1, None, 2),
        slice(2, 4),
        slice(0, 0),
        torch.tensor([5, 0, 5, 2]),
        torch.tensor([True, False, False, True, False, False]),
    ],
)
def test_chosen_rows_keep_the_documents_that_they_ask_about_and_no_other(index):
    batch = asked(d=4)
    found = batch.rows(index)
    places = torch.arange(len(batch))[index].tolist()
    assert [of_row(found, i) for i in range(len(found))] == [of_row(batch, i) for i in places]
    kept = sorted({int(batch.document[i]) for i in places})
    assert torch.equal(found.sections, batch.sections[kept])  # in their order
    assert torch.equal(found.section_lengths, batch.section_lengths[kept])
    assert len(found.document_keys) == len(kept)


def test_rows_without_keys_or_without_documents_stay_so():
    batch = asked()
    assert replace(batch, document_keys=None).rows(slice(2)).document_keys is None
    plain = batch.rows(slice(2))
    plain = replace(plain, **dict.fromkeys(FIELDS))
    assert all(getattr(plain.rows(slice(1)), name) is None for name in FIELDS)
    assert all(getattr(plain.to("cpu"), name) is None for name in FIELDS)
    assert all(getattr(collate([plain, plain]), name) is None for name in FIELDS)


def test_every_field_moves_to_a_device():
    found = asked(early=ids(6, 6).view(6, 3, 2)).to("meta")
    for field in dataclasses.fields(Batch):
        value = getattr(found, field.name)
        assert value is None or value.device.type == "meta", field.name
    assert found.sections is not None and found.document_keys is not None


def test_joined_batches_keep_each_rows_document():
    some = [asked(2, 1, 4, 3, seed=1), asked(3, 4, 2, 2, seed=2), asked(1, 2, 3, 1, seed=3)]
    found = collate(some)
    assert found.sections.shape == (6, 4, 4) and found.section_lengths.shape == (6, 4)
    rows = [of_row(batch, i) for batch in some for i in range(len(batch))]
    assert [of_row(found, i) for i in range(len(found))] == rows
    again = collate([found.rows(slice(i, i + 1)) for i in range(len(found))])
    assert [of_row(again, i) for i in range(len(again))] == rows


@pytest.mark.misuse
@pytest.mark.parametrize("name", FIELDS)
def test_documents_are_joined_if_all_batches_have_them(name):
    with pytest.raises(ValueError, match=f"{name} must be set in all .* 1 of 2, first at 1"):
        collate([asked(), asked(**{name: None})])
    if name not in ("document_keys", "document_levels"):
        with pytest.raises(ValueError, match=f"{name} must be set beside \\w+, got None"):
            collate([asked(**{name: None})] * 2)


def test_a_checked_batch_has_zeros_as_padding_of_sections():
    batch = asked(b=4)
    beyond = torch.arange(4) >= batch.section_lengths[..., None]
    found = as_batch(replace(batch, sections=batch.sections.where(~beyond, -7)), reader())
    assert torch.equal(found.sections, batch.sections.where(~beyond, 0))
    for name in FIELDS[1:]:
        assert torch.equal(getattr(found, name), getattr(batch, name))


@pytest.mark.misuse
@pytest.mark.parametrize("name", ["looped", "thinker", "decoder"])
def test_a_model_without_a_memory_refuses_documents(name):
    with pytest.raises(ValueError, match=f"sections for {name} without a memory") as error:
        tiny(name, {}).loss(asked())
    assert len(str(error.value).splitlines()) == 3


def changed(name: str, place: tuple, value: int) -> dict:
    tensor = getattr(asked(), name).clone()
    tensor[place] = value
    return {name: tensor}


@pytest.mark.misuse
@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"sections": None}, ValueError, "sections must be set beside section_lengths, got None"),
        ({"section_lengths": None}, ValueError, "section_lengths must be set beside sections"),
        ({"document": None}, ValueError, "document must be set beside sections, got None"),
        ({"sections": torch.zeros(3, 2, 4)}, TypeError, r"sections must be an int64 .* float32"),
        ({"document": [0] * 6}, TypeError, "document must be an int64 tensor, got list"),
        (
            {"sections": ids(3, 2)},
            ValueError,
            r"sections must have shape \(d, n, s\), all at least 1, got \[3, 2\]",
        ),
        ({"sections": torch.zeros(3, 0, 4).long()}, ValueError, r"at least 1, got \[3, 0, 4\]"),
        (
            {"section_lengths": ids(3, 1)},
            ValueError,
            r"section_lengths must have shape \(3, 2\), got \[3, 1\]",
        ),
        ({"document": torch.zeros(5).long()}, ValueError, r"document must have shape \(6\), got"),
        ({"document_keys": torch.zeros(2).long()}, ValueError, r"document_keys must have shape"),
        (
            changed("section_lengths", (1, 0), 5),
            ValueError,
            "section_lengths must be in 0 .. 4, got 5 at document 1, section 0",
        ),
        (changed("section_lengths", (2, 1), -1), ValueError, "got -1 at document 2, section 1"),
        (
            changed("document", (4,), 3),
            ValueError,
            r"document must be in 0 .. 2 \(3 documents\), got 3 in row 4",
        ),
    ],
)
def test_what_is_wrong_with_documents_is_named_with_its_place(more, error, message):
    with pytest.raises(error, match=message):
        as_batch(asked(**more), reader())


@pytest.mark.misuse
def test_ids_and_sizes_of_sections_are_those_of_the_model():
    batch = asked()
    sections, lengths = batch.sections.clone(), torch.full_like(batch.section_lengths, 4)
    sections[1, 0, 3] = 11
    wrong = replace(batch, sections=sections, section_lengths=lengths)
    rule = r"sections must be in 0 .. 10 \(vocab_size 11\), got 11 at \[1, 0, 3\]"
    with pytest.raises(ValueError, match=rule):
        as_batch(wrong, reader())
    long = asked(s=6, section_lengths=torch.full((3, 2), 6))
    with pytest.raises(ValueError, match=r"at most 5 tokens \(memory_section\), got 6"):
        as_batch(long, reader())
