"""Pages and pictures of results: one self-contained HTML file, and PNG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkers.checkpoints import write_file
from thinkers.errors import UsageError
from thinkers.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the colour of the text, which a page decides on: see `drawing`."""
MARK, PALE = "#2f7fc4", "#8fb3d4"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: some of a text, a drawing and a table.

    Args:
        drawing: A figure.
        caption: What it shows, for whoever cannot see it.
        marked: The index of the row that stands out.
    """

    heading: str = ""
    text: str = ""
    drawing: "Figure | None" = None
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    marked: int | None = None


def accuracy_figure(
    scores: Mapping[int, float], trained_at: int | None = None, ink: str = INK
) -> "Figure":
    """Accuracy at each number of thinking steps, the one that was trained standing out.

    Args:
        scores: {thinking steps: the share of right answers}.
        ink: The colour of lines and text.
    """
    figure = _report("matplotlib.figure").Figure(figsize=(5.2, 3), layout="constrained")
    axes = figure.add_subplot()
    steps = sorted(scores)
    values = [scores[n] for n in steps]
    colours = [MARK if n == trained_at or trained_at is None else PALE for n in steps]
    bars = axes.bar(range(len(steps)), values, color=colours, width=0.7)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, color=ink)
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    told = "" if trained_at is None else f" (as trained: {trained_at})"
    axes.set_xlabel(f"thinking steps{told}", color=ink)
    axes.set_ylabel("exact answers", color=ink)
    axes.tick_params(colors=ink)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=ink)
    return figure


def drawing(figure: "Figure") -> str:
    """The figure as SVG to stand in a page: its ink is the page's, light or dark."""
    matplotlib = _report("matplotlib")
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "thinkers", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def write_png(figure: "Figure", path: str | Path) -> None:
    """The figure on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    write_file(Path(path), buffer.getvalue())


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """One HTML file that needs nothing else, no network and no script; all text is escaped."""
    jinja2 = _report("jinja2")
    markup = _report("markupsafe").Markup
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    shown = [
        vars(section) | {"drawing": section.drawing and markup(drawing(section.drawing))}
        for section in sections
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title, lead=lead, sections=shown, footer=f"made by thinkers {__version__}"
    )
    write_file(Path(path), (page + "\n").encode())


def _report(module: str) -> Any:
    """A module of the extra `report`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"found: no {module.partition('.')[0]}, which reports are made with\n"
            'to do: pip install "thinkers[report]"'
        ) from None
