"""Reports: one self-contained HTML file, and figures as SVG and PNG."""

import base64
import datetime
import functools
import hashlib
import io
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from thinkers.files import write_file
from thinkers.optional import require
from thinkers.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""Placeholder for the text colour of a page, light or dark; see `drawing`."""
MARK, PALE = "#2f7fc4", "#8fb3d4"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page, of text, a figure and a table, each of them optional.

    Args:
        drawing: A figure.
        caption: Description of the figure for screen readers.
        marked: Index of the highlighted row.
        markup: Result of `render`; any other text is escaped.
        notes: Sentences below the text, as a list.
        half: On a wide screen, take half of the width, beside the next section that does so.
    """

    heading: str = ""
    text: str = ""
    drawing: "Figure | None" = None
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    marked: int | None = None
    markup: str = ""
    notes: Sequence[str] = ()
    half: bool = False


def heat_figure(
    shares: Mapping[str, Sequence[Sequence[float]]], sizes: Sequence[str], ink: str = INK
) -> "Figure":
    """Draw the accuracy of models by thinking step and by difficulty, a heat map for each.

    Args:
        shares: {title: accuracy after each step (rows) at each difficulty (columns)}, both from 1.
        sizes: Name of the difficulty of each map: "swaps".
        ink: Colour of lines and text.
    """
    drawn = figure(figsize=(5.0 * len(shares), 3.9))
    panels = drawn.subplots(1, len(shares), squeeze=False)[0]
    for axes, (name, values), size in zip(panels, shares.items(), sizes, strict=True):
        steps, width = len(values), len(values[0])
        # Rectangles, since the policy of a page forbids embedded images.
        edges = ([i + 0.5 for i in range(n + 1)] for n in (width, steps))
        image = axes.pcolormesh(*edges, values, vmin=0, vmax=1, cmap="viridis", linewidth=0.3)
        image.set_edgecolor("face")  # without edges, a viewer shows gaps between the cells
        axes.invert_yaxis()
        if steps > 1:
            most = min(steps, width)
            axes.plot([1, most], [1, most], "--", color="white", linewidth=1)
            axes.set_yticks(_ticks(steps))
        else:
            axes.set_yticks([1])
        axes.set_xticks(_ticks(width))
        axes.set_title(name, color=ink, fontsize=10)
        axes.set_xlabel(size, color=ink)
        axes.set_ylabel("thinking steps", color=ink)
        axes.tick_params(colors=ink)
    # With 50 colours or more, matplotlib would draw the bar as an image.
    levels = [i / 20 for i in range(21)]
    bar = drawn.colorbar(image, ax=list(panels), shrink=0.9, boundaries=levels)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])
    bar.set_label("right answers", color=ink)
    bar.ax.tick_params(colors=ink)
    return drawn


def _ticks(count: int) -> list[int]:
    """Return the numbers 1 and every fourth up to `count`."""
    return [1, *range(4, count + 1, 4)]


def line_figure(
    lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, ink: str = INK
) -> "Figure":
    """Draw shares in 0 .. 1 as lines, {name: points (x, y)}."""
    drawn = figure(figsize=(5.2, 3.2))
    axes = drawn.add_subplot()
    for (name, points), colour in zip(lines.items(), (MARK, "#d07a2d", "#4f9a5b"), strict=False):
        x, y = ([point[i] for point in points] for i in range(2))
        axes.plot(x, y, color=colour, label=name, linewidth=1.4)
    axes.set_ylim(0, 1)
    axes.set_xlabel(x_label, color=ink)
    axes.set_ylabel(y_label, color=ink)
    axes.tick_params(colors=ink)
    axes.legend(frameon=False, labelcolor=ink)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=ink)
    return drawn


def figure(figsize: tuple[float, float]) -> "Figure":
    """Make an empty figure, of this size in inches."""
    return require("matplotlib.figure", "report", "a report").Figure(
        figsize=figsize, layout="constrained"
    )


def drawing(figure: "Figure", name: str = "figure") -> str:
    """Return the figure as SVG for a page, with INK replaced by the text colour of the page.

    Args:
        name: Prefix of its ids, which keeps those of several figures on a page apart.
    """
    matplotlib = require("matplotlib", "report", "a report")
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "thinkers", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _strict(tag[0], name), svg)
    return svg.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)


def _strict(tag: str, name: str) -> str:
    """Turn the style of a tag into attributes, and prefix its ids with `name`."""
    tag = re.sub(r' style="([^"]*)"', _attributes, tag)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)


def _attributes(style: "re.Match[str]") -> str:
    """Turn a style into attributes: the policy of a page forbids inline styles."""
    pairs = [rule.split(":", 1) for rule in style[1].split(";") if ":" in rule]
    given = {name.strip(): value.strip() for name, value in pairs}
    given.pop("font-family", None)
    return "".join(f' {name}="{value}"' for name, value in given.items())


def write_png(figure: "Figure", path: str | Path) -> None:
    """Write the figure on a white background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    write_file(Path(path), buffer.getvalue())


def write_page(
    path: str | Path,
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    parts: Sequence[str] = (),
    data: Any = None,
) -> None:
    """Write one HTML file that needs no other file and no network; all text is escaped.

    Its content security policy allows its own script and style sheet by their hashes, and nothing
    else.

    Args:
        parts: Names of further style sheets and scripts in `pages`.
        data: Value that its script reads, as JSON.
    """
    markup = require("markupsafe", "report", "a report").Markup
    style = "".join(_text(name) for name in ("page.css", *parts) if name.endswith(".css"))
    script = "".join(_text(name) for name in parts if name.endswith(".js"))
    shown = [
        vars(section)
        | {"drawing": section.drawing and markup(drawing(section.drawing, f"f{number}"))}
        for number, section in enumerate(sections)
    ]
    page = render(
        "page.html",
        title=title,
        lead=lead,
        sections=shown,
        footer=f"made by thinkers {__version__} on {datetime.date.today().isoformat()}",
        policy=policy(style, script),
        style=markup(style),
        script=markup(script),
        data="" if data is None else markup(as_data(data)),
    )
    write_file(Path(path), (page + "\n").encode())


def policy(style: str, script: str) -> str:
    """Return the content security policy that allows these, and images in the page itself."""

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'" if text else "'none'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def as_data(value: Any) -> str:
    """Return JSON that is safe inside a script element, for any strings in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return "".join(f"\\u{ord(x):04x}" if x in "<>&" else x for x in text)


def render(template: str, **values: Any) -> Any:
    """Render a template of `pages` with escaped values, as markup for `Section.markup`."""
    return require("markupsafe", "report", "a report").Markup(_template(template).render(values))


def link(text: str, target: str | os.PathLike[str]) -> Any:
    """Return a link to a file or folder, whose path is relative to that of the page."""
    # With the dot and the quoting no name is an address, such as one that begins "javascript:".
    return render("link.html", text=text, address=f"./{quote(os.fspath(target), errors='replace')}")


def command(words: Sequence[str]) -> Any:
    """Return a command for a shell, whose lines break between words alone where they can."""
    return render("command.html", words=[shlex.quote(word) for word in words])


@functools.cache
def _template(name: str) -> Any:
    jinja2 = require("jinja2", "report", "a report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.from_string(_text(name))


def visible(text: str) -> str:
    """Replace control characters, and those that reorder text, by visible symbols."""
    shown = []
    for x in text:
        if ord(x) < 32:
            shown.append(chr(0x2400 + ord(x)))  # the control picture of the character
        elif unicodedata.category(x) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"[U+{ord(x):04X}]")
        else:
            shown.append(x)
    return "".join(shown)


def _text(name: str) -> str:
    return (Path(__file__).parent / "pages" / name).read_text(encoding="utf-8")
