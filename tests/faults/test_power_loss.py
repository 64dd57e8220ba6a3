"""The power fails at any moment: what was acknowledged is there, whatever else the disk kept.

And the mutation check: without any one sync or rename of the package something would be lost.
"""

import contextlib
import shutil
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from fault_cases import CASES, ExportFails
from faulty_disk import Ended, end_of, quick_folder
from paths import ROOT
from power_loss import RecordedDisk, find_sites, images, without, write_image

PACKAGE = ROOT / "thinkers"
SITES = find_sites(PACKAGE)
RECOVERED = 40
"""One of so many images is also continued, until the result is that of an undisturbed operation."""
WRITING = [*(case for case in CASES if case.loses_power), ExportFails]


@pytest.fixture(scope="module", autouse=True)
def quick_pages():
    """Pages without their figures, and few checkpoints of a comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinkers.comparison.plan.POINTS", 1)
        patch.setattr("thinkers.report.html.drawing", lambda *_, **__: "<svg></svg>")
        yield


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(dir=quick_folder()) as folder:
        yield Path(folder)


@cache
def record(kind, place):
    """An operation, the folder before it, what was done, and its result."""
    case, folder = kind(), place / f"{kind.name} recorded"
    folder.mkdir()
    case.begin(folder)
    disk = RecordedDisk(folder, SITES)
    with contextlib.redirect_stdout(disk), disk:
        case.act(folder)
    disk.see_native()
    return case, disk.root, disk.events, case.result(folder)


def loss(case, said, tree, folder, expected=None):
    """Return what is lost in an image; "" if nothing is."""
    write_image(tree, folder)
    try:
        wrong = case.lost(folder, Ended(0, "", said))
        if not wrong and expected is not None:
            ended = end_of(lambda: case.again(folder))
            if ended.code or case.result(folder) != expected:
                wrong = [f"not recovered: code {ended.code}, {ended.text}"]
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)
    return "; ".join(wrong)


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
