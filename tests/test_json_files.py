"""Files of JSON: formats of other versions."""

from pathlib import Path

import pytest

from thinkers.errors import DamagedError, FormatError
from thinkers.json_files import check_format


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (1, "x has format 1, of an older version; this version reads 2: train again"),
        (3, "x has format 3, of a newer version; this version reads 2: upgrade"),
        (None, "x has format None; it must be an integer"),
        ("2", "x has format '2'; it must be an integer"),
        (True, "x has format True; it must be an integer"),
    ],
)
def test_older_and_newer_formats_are_refused_in_different_words(found, message):
    check_format(Path("x"), 2, 2)
    kind = FormatError if type(found) is int else DamagedError
    with pytest.raises(kind, match=message):
        check_format(Path("x"), found, 2)
