"""The page of an inspection with a long-term memory, in a real browser."""

import pytest
from browser import CHROMIUM, FAINT, OUTSIDE, OVERLAPS
from reading_cases import facts, written

from thinkers.inspection.inspect import inspect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder, run = tmp_path_factory.mktemp("page"), facts()
    with written(folder / "m", run, "a", "b" * 30, keep_text=True) as memory:
        inspect(run, "e1 r2 ?", 3, folder / "a.html", memory=memory, top=3)
    return folder / "a.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(tab, page, width):
    tab.open(page, width)
    assert tab.messages == [] and tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(OUTSIDE) == tab.run(OVERLAPS) == tab.run(FAINT) == []


def test_the_blocks_of_the_selected_step_are_marked(tab, page):
    tab.open(page)
    marked = "[...document.querySelectorAll('.blocks tbody.now')].map((x) => x.dataset.step)"
    assert tab.run("document.querySelectorAll('.blocks tbody').length") == 2
    for keys, steps in (((), ["3"]), (("ArrowLeft",), ["2"]), (("ArrowLeft",), [])):
        tab.run("document.getElementById('step').focus()")
        tab.press(*keys)
        assert tab.run(marked) == steps
