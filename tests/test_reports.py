"""Reports and the demo: pages that stand alone, pictures, and what is asked of their text."""

import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from thinkers import reports
from thinkers.errors import UsageError
from thinkers.reports import Section, accuracy_figure, write_page, write_png

ROOT = Path(__file__).parents[1]
SCORES = {1: 0.125, 2: 0.5, 4: 0.994, 16: 0.871}
PNG = b"\x89PNG\r\n\x1a\n"


class Reader(HTMLParser):
    """The text of a page, and its tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def stands_alone(page):
    """Whether nothing is fetched or run by this page."""
    found = Reader(page)
    csp = [
        a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    sources = [
        a[key]
        for _, a in found.tags
        for key in ("src", "href", "xlink:href", "action")
        if not a.get(key, "#").startswith("#")
    ]
    scripts = [tag for tag, a in found.tags if tag == "script" or any(k[:2] == "on" for k in a)]
    return csp == ["default-src 'none'; style-src 'unsafe-inline'"] and not sources + scripts


def test_a_page_stands_alone_and_escapes_all_text(tmp_path):
    bad = "<script>alert(1)</script>"
    section = Section(
        heading=bad, text=bad, caption=bad, columns=[bad], rows=[[bad], [7]], marked=1
    )
    drawn = Section(drawing=accuracy_figure(SCORES, 4), caption='a "caption"')
    write_page(tmp_path / "a.html", bad, bad, [section, drawn])
    page = (tmp_path / "a.html").read_text()
    assert stands_alone(page)
    assert Reader(page).text.count(bad) == 7
    assert 'class="marked"><td>7</td>' in page


def test_a_drawing_says_every_score_and_takes_the_ink_of_the_page():
    svg = reports.drawing(accuracy_figure(SCORES, 4))
    assert all(f"{score:.3f}" in svg for score in SCORES.values())
    assert "as trained" in svg and "currentColor" in svg and reports.INK not in svg


def test_a_drawing_is_the_same_bytes_every_time():
    first, second = (reports.drawing(accuracy_figure(SCORES, 4)) for _ in range(2))
    assert first == second


def test_a_png_is_a_png(tmp_path):
    write_png(accuracy_figure(SCORES, ink="black"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "thinkers\[report\]"'):
        accuracy_figure(SCORES)


def test_the_demo_writes_a_picture_and_a_report_and_keeps_the_one_before(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = ["demo.py", "--out", "runs/demo", "--num_updates", "2", "--num_examples", "23"]
    monkeypatch.setattr(sys, "argv", line)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
        assert ended.value.code == 0
    *_, work, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"work: \d+ s", work)
    assert re.fullmatch(r"accuracy \d\.\d{3} at \d+ steps, report runs/demo/report.html", last)
    for folder in (Path("runs/demo"), Path("runs/demo.1")):
        assert (folder / "accuracy.png").read_bytes().startswith(PNG)
        page = (folder / "report.html").read_text()
        assert stands_alone(page) and "23 held-out sums" in page and "add/thinker" in page
