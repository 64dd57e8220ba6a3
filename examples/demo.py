"""Train a model that thinks and one that does not on a shell game, and show what thinking gains.

python examples/demo.py --out runs/demo
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import thinkers
from thinkers import tasks
from thinkers.cli.main import guarded
from thinkers.comparison import page
from thinkers.comparison.results import PAGE, Comparison
from thinkers.errors import UsageError
from thinkers.evaluation.by_step import accuracy_by_step
from thinkers.models.base import Model
from thinkers.models.generation import eval_mode
from thinkers.report import html
from thinkers.report.html import Section
from thinkers.runs import folder as run_folder
from thinkers.tasks import Task

MODELS = ("looped", "decoder")
BUDGET = 2.2e12
"""FLOPs of each training: one to two minutes on one core."""
TRAINED, LONGEST = 16, 24
"""Most swaps of a training row, and of the rows that are shown."""
STEPS = 26
"""Thinking steps that are shown."""
SMOOTHED = 15
"""Logged updates, every tenth, that a point of a learning curve is the mean of."""
STORIES = (3, 4, 6, 8, 8, 10, 12, 14, 16, 16)
"""Numbers of swaps of the stories."""
MEANING = (
    "A ball lies under the first of five cups; each token swaps two of them, and after each swap "
    "the model says where the ball is."
)


def main() -> int:
    options = parse()
    start = time.monotonic()
    compared = compare(options)
    print(page.terminal_table(compared))
    if compared.failures:
        return compared.exit_code

    models = {name: opened(compared, name)[0] for name in MODELS}
    task = opened(compared, "looped")[1]
    scores = {name: last_answers(models[name], task, options.num_examples) for name in MODELS}
    by_step = {name: by_swaps(models[name], task, options.num_examples) for name in MODELS}
    figure = heat_figure(by_step, ink="black")
    html.write_png(figure, options.out / "accuracy.png")
    minutes = (time.monotonic() - start) / 60
    report = options.out / "report.html"
    html.write_page(
        report,
        title="A model that thinks follows the ball",
        lead=f"{MEANING} With {TRAINED} swaps, the looped model is right in "
        f"{scores['looped']:.1%} of {options.num_examples:,} held-out rows after {TRAINED} "
        f"thinking steps; a decoder of equal size, trained with equal FLOPs, in "
        f"{scores['decoder']:.1%}, where guessing gives 20 %.",
        sections=[
            *heat_sections(by_step),
            curves_section(compared),
            settings_section(compared, minutes),
            stories_section(models["looped"], task),
            shown_section(),
        ],
    )
    print(f"comparison {compared.folder / PAGE}")
    print(f"work: {60 * minutes:.0f} s")
    print(
        f"{TRAINED} swaps: looped {scores['looped']:.3f}, decoder {scores['decoder']:.3f}, "
        f"report {report}"
    )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--budget", type=float, default=BUDGET, help="FLOPs of each training")
    parser.add_argument("--num_examples", type=int, default=2000, help="held-out rows to score on")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> Comparison:
    """Train and score both; continue an interrupted demo, keep a finished one."""
    folder = options.out / "compared"
    is_finished = all((options.out / name).exists() for name in ("report.html", "accuracy.png"))
    is_begun = (folder / run_folder.RECORD).exists() and not is_finished
    if options.out.is_file() or (
        options.out.is_dir() and not is_finished and not is_begun and any(options.out.iterdir())
    ):
        raise UsageError(
            f"found: {options.out}, which holds something other than a demo\n"
            "expected: an earlier demo, an empty folder, or none\nfix: choose another --out"
        )
    aside = move_aside(options.out, folder) if is_finished else None
    try:
        return thinkers.compare(
            "cups",
            MODELS,
            budget=options.budget,
            seeds=1,
            num_examples=options.num_examples,
            out=folder,
            resume=is_begun,
            workers=min(2, os.cpu_count() or 1),
        )
    except UsageError:
        if aside is not None and not options.out.exists():
            aside.rename(options.out)
        raise


def move_aside(demo: Path, compared: Path) -> Path:
    """Rename a finished demo and return its new folder."""
    demo, number = demo.resolve(), 1
    while (aside := demo.with_name(f"{demo.name}.{number}")).exists():
        number += 1
    free = run_folder.owned(compared, new=False) if compared.exists() else contextlib.nullcontext()
    with free:  # taking the lock makes sure that no process is training in it
        demo.rename(aside)
    print(f"the previous demo is now {aside}")
    return aside


def run_of(compared: Comparison, name: str) -> Path:
    return compared.folder / compared.results[name][0].record["run"]


def opened(compared: Comparison, name: str) -> tuple[Model, Task]:
    model, task = thinkers.open_run(run_of(compared, name))
    assert task is not None
    return model, task


def rows_of(task: Task, swaps: int) -> Task:
    """Return the task with rows of so many swaps alone."""
    return tasks.from_config(replace(task.config, min_length=swaps, max_length=swaps), task.seed)


def last_answers(model: Model, task: Task, num_examples: int) -> float:
    """Return the share of held-out rows of most swaps whose last answer is right."""
    steps = TRAINED if model.config.takes_steps else None
    return rows_of(task, TRAINED).score(model, "test", num_examples, steps)["exact"]


def by_swaps(model: Model, task: Task, num_examples: int) -> Tensor:
    """Return the accuracy after each step (rows) and each swap (columns)."""
    batch = rows_of(task, LONGEST).batch(0, num_examples, "test")
    steps, choices = min(STEPS, model.config.max_steps), task.num_output_tokens
    return accuracy_by_step(model, [batch], steps, num_output_tokens=choices)[:, 1:]


def heat_figure(by_step: dict[str, Tensor], **options: str) -> Any:
    maps = {name: shares.tolist() for name, shares in by_step.items()}
    return html.heat_figure(maps, ["swaps"] * len(maps), **options)


def heat_sections(by_step: dict[str, Tensor]) -> list[Section]:
    looped, decoder = by_step["looped"], by_step["decoder"]
    shown = (4, 8, 12, 16, 24)
    diagonal = ", ".join(
        f"{float(looped[min(n, len(looped)) - 1, n - 1]):.3f} at {n}" for n in shown
    )
    only = ", ".join(f"{float(decoder[0, n - 1]):.3f} at {n}" for n in shown)
    return [
        Section(
            half=True,
            text="Accuracy after each thinking step (down) and each swap (across). The looped "
            "model is right from as many steps as swaps on (dashed), and sooner where few swaps "
            f"move the ball. Training rows had at most {TRAINED} swaps.",
            drawing=heat_figure({"looped": looped}),
            caption=f"Looped model, with as many steps as swaps: {diagonal} swaps",
        ),
        Section(
            half=True,
            text="The decoder has one pass: it follows the first swaps, and guesses after more. "
            "Guessing gives 20 %. It has the same size, and cost the same FLOPs to train.",
            drawing=heat_figure({"decoder": decoder}),
            caption=f"Decoder: {only} swaps",
        ),
    ]


def curves_section(compared: Comparison) -> Section:
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in MODELS:
        written = (run_of(compared, name) / "metrics.jsonl").read_text().splitlines()
        read = [x for x in map(json.loads, written) if "token_accuracy" in x]
        last = max((x["update"] for x in read), default=1)
        points = [(x["update"] / last, x["token_accuracy"]) for x in read]
        # Rows of an update have one number of swaps, so single updates jump up and down.
        windows = [points[max(0, i - SMOOTHED) : i] for i in range(1, len(points) + 1)]
        lines[name] = [(x[-1][0], statistics.mean(y for _, y in x)) for x in windows]
    return Section(
        heading="Learning curves",
        half=True,
        text="Share of right answers on the rows of an update, before they are learned from, as "
        f"running means over {10 * SMOOTHED} updates. Both trainings cost the same FLOPs.",
        drawing=html.line_figure(lines, "share of the training FLOPs", "right answers"),
        caption=f"Learning curves of {' and '.join(MODELS)}",
    )


def stories_section(model: Model, task: Task) -> Section:
    """Ten held-out rows, and the answer after each step."""
    rows = []
    steps = min(STEPS, model.config.max_steps)
    for place, swaps in enumerate(STORIES):
        batch = rows_of(task, swaps).batch(place, 1, "test")
        with eval_mode(model):
            states = model(batch.tokens, num_steps=steps, keep_states=True).states
            answers = model.read_out(states)[0, :, -1].argmax(-1)
        wanted = batch.targets[0, -1:]
        wrong = (answers != wanted).nonzero()
        first = int(wrong[-1]) + 2 if len(wrong) else 1
        rows.append(
            (
                task.decode(batch.tokens[0].tolist()),
                task.decode(wanted.tolist()),
                " ".join(task.decode([int(answer)]) for answer in answers[:18]),
                f"{first}" if first <= steps else "never",
            )
        )
    return Section(
        heading="Ten stories",
        text="Held-out rows, the cup of the ball after the last swap, the answer after each of the "
        "first 18 thinking steps, and the step from which on the answer stays right.",
        columns=("swaps", "ball", "answers after steps 1, 2, 3, ..", "right from step"),
        rows=rows,
    )


def shown_section() -> Section:
    return Section(
        heading="What this shows",
        text="Thinking steps let a small model follow as many swaps as it takes steps, where a "
        "model of fixed depth, of equal size and with equal training FLOPs, guesses. It does not "
        "show that thinking helps on other tasks, nor that nothing else solves this one: the "
        "loss of the looped model contains the step at which an answer is due, an answer costs it "
        "more FLOPs, and a decoder that writes every state down solves it too (docs/evidence.md). "
        "One seed is an example, no measurement.",
    )


def settings_section(compared: Comparison, minutes: float) -> Section:
    records = {name: results[0].record for name, results in compared.results.items()}
    return Section(
        heading="Settings",
        half=True,
        columns=("model", "parameters", "updates", "steps", "FLOPs of an answer"),
        rows=[
            (
                name,
                f"{sum(p.numel() for p in opened(compared, name)[0].parameters()):,}",
                f"{record['updates']:,}",
                record["num_steps"],
                f"{record['answer_flops'][str(record['num_steps'])]:,.0f}",
            )
            for name, record in records.items()
        ],
        notes=[
            f"{minutes:.1f} minutes, torch {torch.__version__}, seed 0.",
            "compared/report.html beside this page has all figures of the comparison, and "
            "compared/runs a folder for each model.",
        ],
    )


if __name__ == "__main__":
    raise SystemExit(guarded(main))
