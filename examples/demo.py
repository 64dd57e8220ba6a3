"""Train a small model to add, and show how its answers depend on how long it thinks.

python examples/demo.py --out runs/demo
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import thinkers
from thinkers import reports, runs, tasks
from thinkers.cli import guarded
from thinkers.reports import Section
from thinkers.tasks.base import left_padded_prompts

STEPS = (1, 2, 4, 8, 16)


def main() -> int:
    options = parse()
    start = time.monotonic()
    move_aside(options.out)
    config = thinkers.RECIPES["add/thinker"]()
    if options.num_updates:
        training = replace(config.training, num_updates=options.num_updates)
        config = replace(config, training=training)
    run = thinkers.train(config, out=options.out)

    steps = [n for n in STEPS if n <= run.model.config.max_steps]
    rows = thinkers.evaluate(run, num_steps=steps, num_examples=options.num_examples)
    scores = {row["num_steps"]: row["exact"] for row in rows}
    usual = run.model.config.num_steps
    minutes = (time.monotonic() - start) / 60
    reports.write_png(
        reports.accuracy_figure(scores, usual, ink="black"), run.folder / "accuracy.png"
    )
    report = run.folder / "report.html"
    reports.write_page(
        report,
        title="A model that thinks before it adds",
        lead=f"{scores[usual]:.1%} of {options.num_examples:,} held-out sums are exactly right "
        f"after {usual} thinking steps.",
        sections=[
            accuracy_section(rows, usual),
            examples_section(run, config, steps),
            settings_section(run, config, minutes),
        ],
    )
    print(f"work: {60 * minutes:.0f} s")
    print(f"accuracy {scores[usual]:.3f} at {usual} steps, report {report}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--num_updates", type=int, help="train less than the recipe does")
    parser.add_argument("--num_examples", type=int, default=2000, help="held-out sums to judge by")
    return parser.parse_args()


def move_aside(folder: Path) -> None:
    """Keep an earlier demo under another name."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    with runs.owned(folder, new=False):  # nobody is training in it
        folder.rename(aside)
    print(f"the demo before this one is now {aside}")


def accuracy_section(rows: list[dict], usual: int) -> Section:
    scores = {row["num_steps"]: row["exact"] for row in rows}
    told = ", ".join(f"{value:.3f} at {n}" for n, value in scores.items())
    return Section(
        text="The same weights, asked to think for longer or shorter. A sum counts if every "
        "digit is right; none of these sums was trained on.",
        drawing=reports.accuracy_figure(scores, usual),
        caption=f"Exact answers by thinking steps: {told}",
        columns=("thinking steps", "exact", "digits right"),
        rows=[[r["num_steps"], f"{r['exact']:.3f}", f"{r['per_token']:.3f}"] for r in rows],
        marked=list(scores).index(usual) if usual in scores else None,
    )


def examples_section(run: thinkers.Run, config: thinkers.Config, steps: list[int]) -> Section:
    task = tasks.from_config(config.task, config.training.seed)
    batch = task.batch(0, 8, "test")
    prompts = left_padded_prompts(batch)
    room = task.answer_width(task.config.sizes[-1]) + 1
    columns = []
    for n in steps:
        answers = run.model.answer(prompts, batch.prompt_lengths, room, n)
        columns.append([task.decode(row.tolist()) for row in answers])
    questions = [
        task.decode(row[:length].tolist())
        for row, length in zip(batch.tokens, batch.prompt_lengths, strict=True)
    ]
    return Section(
        heading="What it answers",
        text="Eight held-out sums, and the answer after each number of thinking steps.",
        columns=("sum", *(str(n) for n in steps)),
        rows=list(zip(questions, *columns, strict=True)),
    )


def settings_section(run: thinkers.Run, config: thinkers.Config, minutes: float) -> Section:
    record = runs.read_record(run.folder)
    size = sum(p.numel() for p in run.model.parameters())
    model = f"{run.model.name}, {size:,} parameters, {config.model.dim} wide"
    rows = [
        ("recipe", config.recipe),
        ("model", model),
        ("updates", f"{config.training.num_updates:,} of {config.training.batch_size} sums"),
        ("time", f"{minutes:.1f} minutes on {record['device']}, threads: {record['threads']}"),
        ("seed", config.training.seed),
        ("torch", record["versions"]["torch"]),
        ("record", "config.json and metrics.jsonl, beside this page"),
    ]
    return Section(heading="How it was made", rows=rows)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
