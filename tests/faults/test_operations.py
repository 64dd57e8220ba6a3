"""A fault at any operation of the disk: nothing acknowledged is lost, and a repetition succeeds.

The first operation fails, then the second and so on, until all have; at each change of the disk the
process also dies once. Short tests try every one of cheap operations, and a part of the others.
"""

import tempfile
from itertools import cycle
from pathlib import Path
from unittest import mock

import pytest
from fault_cases import CASES, quick_pages
from faulty_disk import ERRORS, KILL, count, quick_folder, trial


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Each fsync is called, and fails in its turn; what it waits for is left out."""
    with mock.patch("os.fsync", lambda _: None), quick_pages():
        yield


@pytest.fixture(scope="module", params=CASES, ids=lambda x: x.name)
def case(request):
    """An operation, the folder in which it is about to begin, and a folder for what is tried."""
    with tempfile.TemporaryDirectory(dir=quick_folder()) as folder:
        begun, place = Path(folder) / "begun", Path(folder) / "place"
        begun.mkdir()
        place.mkdir()
        found = request.param()
        found.begin(begun)
        count(found, begun, place, changes=False)  # which imports what is imported late
        yield found, begun, place


@pytest.mark.parametrize("kind", ["deaths", "errors"])
@pytest.mark.parametrize("is_long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_fault_of_the_disk_loses_what_was_acknowledged(case, kind, is_long):
    operation, begun, place = case
    dies = kind == "deaths"
    if dies and not operation.loses_power:
        pytest.skip(f"{operation.name} changes nothing on the disk")
    number, expected = count(operation, begun, place, changes=dies)
    every = 1 if is_long else operation.every[0 if dies else 1]
    tried, wrong = 0, []
    for point, fault in zip(range(1, number + 1, every), cycle(ERRORS), strict=False):
        ended = trial(operation, begun, place, point, KILL if dies else fault, expected, dies)
        wrong += [ended.text] if ended.text else []
        tried += bool(ended.failed)
    print(f"{operation.name}: {kind} at {tried} of {number} points")
    assert wrong == [] and tried == len(range(1, number + 1, every)) > 0
