"""Reports and the demo: pages that stand alone, pictures, and what is asked of their text."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM
from html_reader import Reader, stands_alone
from paths import ROOT

from thinkers.errors import UsageError
from thinkers.report import html
from thinkers.report.html import Section, line_figure, write_page, write_png

LINES = {"looped": [(1, 0.125), (2, 0.5), (4, 0.994)], "decoder": [(1, 0.25)]}
LABELS = ("thinking steps", "right answers")
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_page_stands_alone_and_escapes_all_text(tmp_path):
    bad = "<script>alert(1)</script>"
    section = Section(
        heading=bad, text=bad, caption=bad, columns=[bad], rows=[[bad], [7]], marked=1
    )
    drawn = Section(drawing=line_figure(LINES, *LABELS), caption='a "caption"')
    write_page(tmp_path / "a.html", bad, bad, [section, drawn])
    page = (tmp_path / "a.html").read_text()
    assert stands_alone(page)
    assert Reader(page).text.count(bad) == 7
    assert 'class="marked"><td>7</td>' in page


def test_a_drawing_names_axes_and_lines_and_takes_the_ink_of_the_page():
    svg = html.drawing(line_figure(LINES, *LABELS))
    assert all(f">{text}<" in svg for text in (*LABELS, *LINES))
    assert "currentColor" in svg and html.INK not in svg


def test_the_figures_of_a_page_have_ids_of_their_own(tmp_path):
    drawn = [Section(drawing=line_figure(LINES, *LABELS), caption=f"{n}") for n in range(3)]
    write_page(tmp_path / "a.html", "a", "b", drawn)
    page = (tmp_path / "a.html").read_text()
    ids = [a["id"] for _, a in Reader(page).tags if "id" in a]
    assert len(ids) > 30 and len(set(ids)) == len(ids)
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert used and {a or b for a, b in used} <= set(ids)


def test_a_heat_map_has_a_cell_for_each_step_and_size_and_no_image():
    cells = [[0.25, 1.0, 0.5], [0.75, 0.0, 1.0]]
    figure = html.heat_figure({"looped": cells, "decoder": [[0.5, 0.2, 0.1]]}, ["swaps", "links"])
    looped, decoder, _ = figure.axes
    for axes, values in ((looped, cells), (decoder, [[0.5, 0.2, 0.1]])):
        assert axes.collections[0].get_array().tolist() == values
        assert axes.yaxis_inverted() and axes.collections[0].get_clim() == (0, 1)
    assert "<image" not in html.drawing(figure)


def test_lines_of_shares_are_drawn_on_the_whole_range():
    figure = html.line_figure({"a": [(0, 0.2), (1, 0.9)], "b": [(0, 0.1)]}, "x", "y")
    (axes,) = figure.axes
    assert axes.get_ylim() == (0, 1)
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.2, 0.9], [0.1]]


def test_what_a_script_reads_cannot_end_its_element(tmp_path):
    value = {"a": ["</script><script>alert(1)</script>", "<!--", "\u2028&amp;", 1.5, None]}
    write_page(tmp_path / "a.html", "a", "b", [], data=value)
    page = (tmp_path / "a.html").read_text()
    assert stands_alone(page)
    (held,) = re.findall(r'(?s)<script type="application/json" id="data">(.*?)</script>', page)
    assert json.loads(held) == value


def test_markup_is_escaped_unless_a_template_of_ours_made_it(tmp_path):
    write_page(tmp_path / "a.html", "a", "b", [Section(markup="<b>bold</b>")])
    page = (tmp_path / "a.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x00", "a␊b␀"),
        ("\u202eabc", "[U+202E]abc"),
        ("\x9b\u2028\ud800", "[U+009B][U+2028][U+D800]"),
        ("ä 漢 🙂", "ä 漢 🙂"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert html.visible(text) == shown


def test_all_text_of_a_page_can_be_seen(tmp_path):
    bad = "a\u202eb\x1b[2J"
    section = Section(heading=bad, text=bad, columns=[bad], rows=[[bad]])
    write_page(tmp_path / "a.html", bad, bad, [section])
    page = (tmp_path / "a.html").read_text()
    assert "\u202e" not in page and "\x1b" not in page
    assert page.count("a[U+202E]b␛[2J") == 8


def test_a_drawing_is_the_same_bytes_every_time():
    first, second = (html.drawing(line_figure(LINES, *LABELS)) for _ in range(2))
    assert first == second


def test_a_png_is_a_png(tmp_path):
    write_png(line_figure(LINES, *LABELS, ink="black"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "thinkers\[report\]"'):
        line_figure(LINES, *LABELS)


def demo(*line):
    """What the demo ends with."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("os.cpu_count", lambda: 1)  # one worker: importing torch again takes longest
        patch.setattr(sys, "argv", ["demo.py", "--out", "runs/demo", "--num_examples", "23", *line])
        runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    return ended.value.code


def test_the_demo_writes_a_picture_and_a_report_and_keeps_the_one_before(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert demo("--budget", "2e9") == 0
    *_, page, work, last = capsys.readouterr().out.splitlines()
    assert page == "comparison runs/demo/compared/report.html" and Path(page.split()[1]).exists()
    assert re.fullmatch(r"work: \d+ s", work)
    scores = r"16 swaps: looped \d\.\d{3}, decoder \d\.\d{3}"
    assert re.fullmatch(rf"{scores}, report runs/demo/report.html", last)
    assert Path("runs/demo/accuracy.png").read_bytes().startswith(PNG)
    page = Path("runs/demo/report.html").read_text()
    assert stands_alone(page) and "23 held-out rows" in page and "compared/runs" in page
    assert all(name in page for name in ("decoder", "looped", "Ten stories", "Learning curves"))

    monkeypatch.setattr("thinkers.report.html.drawing", lambda *_, **__: "<svg></svg>")
    assert demo("--budget", "0") == 2 and Path("runs/demo/report.html").exists()  # where it was
    Path("runs/demo/report.html").unlink()  # as if it had been interrupted
    assert demo("--budget", "2e9") == 0 and Path("runs/demo/report.html").exists()
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]
    functions = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    assert functions["move_aside"](Path("runs/demo"), Path("runs/demo/compared")).exists()
    assert [path.name for path in Path("runs").iterdir()] == ["demo.1"]


def test_the_demo_moves_nothing_that_is_not_a_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/thesis.txt").write_text("years")
    assert demo() == 2 and Path("runs/demo/thesis.txt").read_text() == "years"
    assert "something other than a demo" in capsys.readouterr().err
    Path("runs/file").touch()
    assert demo("--out", "runs/file") == 2 and Path("runs/file").is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_figures_stand_side_by_side_where_there_is_room(tab, tmp_path, width):
    drawn = [
        Section(heading=f"{n}", drawing=line_figure(LINES, *LABELS), half=True) for n in range(2)
    ]
    write_page(tmp_path / "a.html", "a", "b", drawn)
    tab.open(tmp_path / "a.html", width)
    boxes = tab.run(
        "[...document.querySelectorAll('figure')].map((x) => {"
        "const box = x.getBoundingClientRect(); return [box.left, box.right, box.top]; })"
    )
    (_, end, top), (begin, last, other) = boxes
    assert (end < begin and top == other and last > 0.85 * width) == (width == 1280)
    assert (top < other and last <= width) == (width == 390)
