"""The figures of a long measurement: what grows is noticed, what stays is not."""

import pytest
import soak


def samples(**grows):
    """Sixty samples of a process, in which some figures grow by so much with each."""
    flat = {
        "mb": 300.0,
        "files": 9,
        "threads": 3,
        "maps": 200,
        "children": 0,
        "disk": 1000,
        "cost": 1,
    }
    return [
        {"process": 1, "seconds": 5.0 * i, "number": 100 * i}
        | {name: x + grows.get(name, 0) * i for name, x in flat.items()}
        for i in range(60)
    ]


def test_what_stays_is_no_problem():
    found = soak.summary({1: samples()})
    assert soak.problems(found) == [] and found["minutes"] == pytest.approx(295 / 60)
    # A process that was short says nothing.
    assert soak.summary({1: samples(), 2: samples(files=1)[:10]})["files"] == 0
    assert soak.problems(soak.summary({2: samples()[:10]})) == ["too few samples"]


@pytest.mark.parametrize(
    ("name", "by"),
    [("mb", 0.2), ("files", 1), ("threads", 1), ("maps", 1), ("disk", 60), ("cost", 0.01)],
)
def test_what_grows_is_named(name, by):
    found = soak.summary({1: samples(), 2: samples(**{name: by})})
    names = {"mb": "slope", "cost": "drift"}
    assert names.get(name, name) in " ".join(soak.problems(found))
