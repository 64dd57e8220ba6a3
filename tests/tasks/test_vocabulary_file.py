"""vocabulary.json of a run: what is read is what was written."""

import pytest

from thinkers.errors import DamagedError, DataError
from thinkers.tasks.vocabulary_file import load_vocabulary, save_vocabulary

STATE = {"words": ["cellar", "mill", "milk"], "max_length": 7, "stories": "0f"}
SCHEMA = {"words": list, "max_length": int, "stories": str}


def test_a_vocabulary_is_written_once_and_compared_from_then_on(tmp_path):
    changed = DataError("other stories")
    save_vocabulary(tmp_path, STATE, changed)
    assert load_vocabulary(tmp_path, SCHEMA) == STATE
    save_vocabulary(tmp_path, STATE, changed)
    with pytest.raises(DataError, match="other stories"):
        save_vocabulary(tmp_path, STATE | {"max_length": 8}, changed)


def test_every_bit_counts(tmp_path):
    save_vocabulary(tmp_path, STATE, DataError("other stories"))
    file = tmp_path / "vocabulary.json"
    whole = file.read_bytes()
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(DamagedError, match="vocabulary.json .*restore it from a copy"):
            load_vocabulary(tmp_path, SCHEMA)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"cellar",\n  "mill"', '"mill",\n  "cellar"'),
        lambda text: text.replace(' "max_length": 7,\n', ""),
        lambda text: text.replace("7", "7.0"),
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[" * 9999,
    ],
)
def test_an_edited_vocabulary_is_refused(tmp_path, edit):
    save_vocabulary(tmp_path, STATE, DataError("other stories"))
    file = tmp_path / "vocabulary.json"
    text = edit(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(DamagedError, match="vocabulary.json .*restore it from a copy"):
        load_vocabulary(tmp_path, SCHEMA)


def test_a_field_that_is_missing_is_named(tmp_path):
    save_vocabulary(tmp_path, STATE, DataError("other stories"))
    with pytest.raises(DamagedError, match="lacks 'kinds'"):
        load_vocabulary(tmp_path, SCHEMA | {"kinds": list})
