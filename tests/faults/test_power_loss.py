"""The power fails at any moment: what was acknowledged is there, whatever else the disk kept.

And the mutation check: without any one sync or rename of the package something would be lost.
"""

import tempfile
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from fault_cases import WRITING, quick_pages
from faulty_disk import quick_folder
from paths import ROOT
from power_loss import RECOVERED, find_sites, images, loss, recorded, without

PACKAGE = ROOT / "thinkers"
SITES = find_sites(PACKAGE)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_pages():
        yield


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(dir=quick_folder()) as folder:
        yield Path(folder)


@cache
def record(kind, place):
    return recorded(kind(), place, SITES)


@pytest.mark.parametrize("most", [None, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WRITING, ids=lambda x: x.name)
def test_no_image_of_a_disk_lacks_what_was_acknowledged(kind, place, most):
    case, root, events, expected = record(kind, place)
    found = list(images(root, events, mixes=0 if most is None else 40))
    step = max(1, len(found) // (most or case.images))
    wrong = []
    for number, (said, tree) in enumerate(found[::step]):
        recovers = number % RECOVERED == RECOVERED - 1
        what = loss(case, said, tree, place / "image", expected if recovers else None)
        wrong += [f"image {number * step} of {len(found)}: {what}"] if what else []
    print(f"{kind.name}: {len(found[::step])} of {len(found)} images")
    assert wrong == []


def test_without_any_one_sync_or_rename_something_is_lost(place):
    kept, untried = [], []
    for file, lines in SITES.items():
        for first, _ in lines:
            site = (file, first)
            users = [x for x in WRITING if any(site in e.sites for e in record(x, place)[2])]
            name = f"{Path(file).relative_to(PACKAGE)}:{first}"
            if not users:
                untried.append(name)
            elif not any(loses(*record(x, place)[:3], site, place) for x in users):
                kept.append(f"{name}, in {[x.name for x in users]}")
    assert (kept, untried) == ([], [])


def loses(case, root, events, site, place):
    """Return True if an image of the operation without a call lacks what was acknowledged."""
    left = without(root, events, site)
    if left is None:
        return True
    found = images(root, left, mixes=0)
    return any(loss(case, said, tree, place / "image") for said, tree in islice(found, 400))
