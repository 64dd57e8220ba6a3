"""Draw docs/star_graph.png: the task of star graphs, and the scores of its two recipes.

python tools/star_graph_figure.py
"""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thinkers.recipes import results

OUT = Path(__file__).resolve().parents[1] / "docs" / "star_graph.png"
INK, MUTED, MARK = "#1f2328", "#8b949e", "#2f7fc4"
RECIPES = {"star_graph/decoder": "decoder", "star_graph/deepsight": "deepsight"}
UPPER, LOWER = [[(1, y), (2, 1.5 * y), (3, 1.5 * y), (4, 1.5 * y)] for y in (0.6, -0.6)]
"""Positions of the nodes of the two arms; the start is at (0, 0)."""


def main() -> None:
    # An opaque white background, so that the picture reads the same on a dark page.
    figure = Figure(figsize=(8, 3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_task(left)
    draw_scores(right)
    figure.savefig(OUT, dpi=150)
    print(OUT)


def draw_task(axes: Axes) -> None:
    """Draw a star with two arms and mark the choice that has to be planned."""
    axes.set_title("Which arm leads to the goal?", color=INK, fontsize=11)
    for arm, colour in ((UPPER, MARK), (LOWER, MUTED)):
        axes.plot(*zip((0, 0), *arm, strict=True), color=colour, linewidth=2, zorder=1)
        axes.scatter(*zip(*arm, strict=True), s=260, color="white", edgecolors=colour, zorder=2)
    axes.scatter([0], [0], s=260, color=INK, zorder=2)
    axes.scatter(*UPPER[-1], s=260, color=MARK, zorder=3)
    axes.annotate("start", (0, 0), (0, -0.28), ha="center", va="top", color=INK)
    axes.annotate("goal", UPPER[-1], (4, 0.62), ha="center", va="top", color=MARK)
    axes.text(0.75, 0, "only this step\nmust be planned", color=INK, va="center", fontsize=9)
    axes.text(2.5, 1.12, "each of these is one look-up", color=MUTED, ha="center", fontsize=9)
    axes.set_xlim(-0.5, 4.4)
    axes.set_ylim(-1.3, 1.5)
    axes.axis("off")


def draw_scores(axes: Axes) -> None:
    """Draw the mean of each recipe as a bar and its seeds as dots."""
    found = results()
    for x, (recipe, label) in enumerate(RECIPES.items()):
        scores = [seed["scores"]["exact"] for seed in found[recipe]["seeds"].values()]
        mean = statistics.mean(scores)
        colour = MARK if label == "deepsight" else MUTED
        axes.bar(x, mean, width=0.55, color=colour, alpha=0.85)
        offsets = [x + 0.1 * (i - (len(scores) - 1) / 2) for i in range(len(scores))]
        axes.scatter(offsets, scores, s=14, color=INK, zorder=3)
        # Four digits where two would round to 1.00.
        shown = f"{mean:.2f}" if mean < 0.995 else f"{mean:.4f}"
        axes.text(x, mean + 0.06, shown, ha="center", color=INK)
    axes.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    axes.text(1.55, 0.515, "guessing", color=INK, ha="center", va="bottom", fontsize=9)
    axes.set_title("Whole paths right, held-out graphs", color=INK, fontsize=11)
    axes.set_xticks(range(len(RECIPES)), list(RECIPES.values()), color=INK, fontsize=11)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlim(-0.45, 1.8)
    axes.set_ylim(0, 1.2)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
