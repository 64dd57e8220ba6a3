"""The section of an ablation on a page, and its lines for the terminal."""

from typing import Any

from thinkers.inspection.results import DESCRIPTIONS, Ablation
from thinkers.report import html
from thinkers.report.html import Section


def verdict(found: Ablation) -> str:
    """Write the largest significant loss, in a sentence."""
    effects = [effect for effect in found.effects if effect.loss.low > 0]
    head = f"{found.model} has {found.metric} {found.score:.3f} after {found.num_steps} steps"
    if not effects:
        return f"{head}; no replacement of its thoughts causes a significant loss."
    worst = max(effects, key=lambda effect: effect.loss.value)
    return f"{head}, and {worst.score:.3f} with its thoughts replaced ({worst.replacement})."


def ablation_lines(found: Ablation) -> list[str]:
    """Format the ablation for a terminal."""
    lines = [
        f"{found.metric} {found.score:.4f} at {found.num_steps} steps, of {found.num_examples} "
        "held-out examples; with replaced thoughts:",
        f"{'replacement':<18} {found.metric:>9}  {'loss':>9}  99 % interval",
    ]
    for effect in found.effects:
        loss = effect.loss
        lines.append(
            f"{effect.replacement:<18} {effect.score:>9.4f}  {loss.value:>9.4f}  "
            f"{loss.low:.4f} .. {loss.high:.4f}  {effect.verdict}"
        )
    return lines


def ablation_section(found: Ablation, heading: str) -> Section:
    """Return the section of a page."""
    rows = [
        [
            effect.replacement,
            DESCRIPTIONS[effect.replacement],
            f"{effect.score:.4f}",
            f"{effect.loss.value:.4f}",
            f"{effect.loss.low:.4f} .. {effect.loss.high:.4f}",
            effect.verdict,
        ]
        for effect in found.effects
    ]
    return Section(
        heading=heading,
        text=f"Loss of {found.metric} when every thought that a step passes on is replaced; it is "
        f"{found.score:.4f} with the model's own thoughts (at {found.num_steps} steps, on "
        f"{found.num_examples:,} held-out examples). The 99 % intervals are over paired questions: "
        "they hold for these weights and other questions, not for other seeds.",
        drawing=loss_figure(found),
        caption="; ".join(
            f"{e.replacement}: loss {e.loss.value:.4f}, {e.loss.low:.4f} to {e.loss.high:.4f}"
            for e in found.effects
        ),
        columns=("replacement", "thoughts", found.metric, "loss", "99 % interval", "verdict"),
        rows=rows,
    )


def loss_figure(found: Ablation) -> Any:
    """Draw each loss with its interval."""
    ink = html.INK
    height = 0.8 + 0.45 * len(found.effects)
    figure = html.figure(figsize=(5.2, height))
    axes = figure.add_subplot()
    for place, effect in enumerate(reversed(found.effects)):
        axes.plot([effect.loss.low, effect.loss.high], [place, place], color=html.PALE, lw=5)
        axes.plot([effect.loss.value], [place], "o", color=html.MARK)
    axes.axvline(0, color=ink, lw=0.8)
    axes.set_yticks(range(len(found.effects)), [e.replacement for e in reversed(found.effects)])
    axes.set_ylim(-0.6, len(found.effects) - 0.4)
    axes.set_xlabel(f"loss of {found.metric}", color=ink)
    axes.tick_params(colors=ink)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=ink)
    return figure
