"""Train three small models to add with matched compute, and report the answers by thinking steps.

python examples/demo.py --out runs/demo
"""

import argparse
import contextlib
import os
import time
from pathlib import Path

import thinkers
from thinkers import tasks
from thinkers.cli.main import guarded
from thinkers.comparison import one_run, page
from thinkers.comparison.results import PAGE, Comparison
from thinkers.errors import UsageError
from thinkers.models.base import Model
from thinkers.report import html
from thinkers.report.html import Section
from thinkers.runs import folder as run_folder
from thinkers.tasks import Task
from thinkers.tasks.answers import left_padded_prompts

MODELS = ("decoder", "looped", "thinker")
SHOWN = "thinker"
BUDGET = 4e12
"""FLOPs of each training: about four minutes on one core."""
STEPS = (1, 2, 4, 8, 16)


def main() -> int:
    options = parse()
    start = time.monotonic()
    compared = compare(options)
    print(page.terminal_table(compared))
    if compared.failures:
        return compared.exit_code

    run = options.out / "compared" / compared.results[SHOWN][0].record["run"]
    record = run_folder.read_record(run)
    config = thinkers.Config.from_dict(record["config"])
    model, task = thinkers.load(run), tasks.from_config(config.task, one_run.EXAMPLES_SEED)
    steps = [n for n in STEPS if n <= model.config.max_steps]
    rows = thinkers.evaluate((model, task), steps, options.num_examples)
    scores = {row["num_steps"]: row["exact"] for row in rows}
    usual = model.config.num_steps
    minutes = (time.monotonic() - start) / 60
    html.write_png(html.accuracy_figure(scores, usual, ink="black"), options.out / "accuracy.png")
    report = options.out / "report.html"
    html.write_page(
        report,
        title="A model that thinks before it adds",
        lead=f"{scores[usual]:.1%} of {options.num_examples:,} held-out sums are exactly right "
        f"after {usual} thinking steps.",
        sections=[
            accuracy_section(rows, usual),
            examples_section(model, task, steps),
            others_section(compared),
            settings_section(model, config, record, minutes),
        ],
    )
    print(f"comparison {compared.folder / PAGE}")
    print(f"work: {60 * minutes:.0f} s")
    print(f"accuracy {scores[usual]:.3f} at {usual} steps, report {report}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--budget", type=float, default=BUDGET, help="FLOPs of each training")
    parser.add_argument("--num_examples", type=int, default=2000, help="held-out sums to score on")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> Comparison:
    """Train and score all three; continue an interrupted demo, keep a finished one."""
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
            "add",
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


def accuracy_section(rows: list[dict], usual: int) -> Section:
    scores = {row["num_steps"]: row["exact"] for row in rows}
    listed = ", ".join(f"{value:.3f} at {n}" for n, value in scores.items())
    return Section(
        text="The same weights at other numbers of thinking steps. A sum counts as right if every "
        "digit is; none of these sums was trained on.",
        half=True,
        drawing=html.accuracy_figure(scores, usual),
        caption=f"Exact answers by thinking steps: {listed}",
        columns=("thinking steps", "exact", "digits right"),
        rows=[[r["num_steps"], f"{r['exact']:.3f}", f"{r['per_token']:.3f}"] for r in rows],
        marked=list(scores).index(usual) if usual in scores else None,
    )


def examples_section(model: Model, task: Task, steps: list[int]) -> Section:
    batch = task.batch(0, 8, "test")
    prompts = left_padded_prompts(batch)
    room = task.answer_width(task.config.sizes[-1]) + 1
    columns = []
    for n in steps:
        answers = model.answer(prompts, batch.prompt_lengths, room, n)
        columns.append([task.decode(row.tolist()) for row in answers])
    questions = [
        task.decode(row[:length].tolist())
        for row, length in zip(batch.tokens, batch.prompt_lengths, strict=True)
    ]
    return Section(
        heading="Examples",
        half=True,
        text="Eight held-out sums, and the answer after each number of thinking steps.",
        columns=("sum", *(str(n) for n in steps)),
        rows=list(zip(questions, *columns, strict=True)),
    )


def others_section(compared: Comparison) -> Section:
    """Table of all models, which had the same budget."""
    records = {name: results[0].record for name, results in compared.results.items()}
    return Section(
        heading="Compared with models that think less",
        text="Equal parameters, equal training FLOPs, the same held-out sums. One seed decides "
        "nothing: compared/report.html beside this page has all figures and their intervals.",
        columns=("model", "exact", "thinking steps", "updates", "FLOPs of an answer"),
        rows=[
            (
                name,
                f"{record['score']:.3f}",
                record["num_steps"],
                f"{record['updates']:,}",
                f"{record['answer_flops'][str(record['num_steps'])]:,.0f}",
            )
            for name, record in records.items()
        ],
        marked=list(records).index(SHOWN),
    )


def settings_section(
    model: Model, config: thinkers.Config, record: dict, minutes: float
) -> Section:
    size = sum(p.numel() for p in model.parameters())
    described = f"{model.name}, {size:,} parameters, {config.model.dim} wide"
    rows = [
        ("model", described),
        ("updates", f"{config.training.num_updates:,}, each of {config.training.batch_size} sums"),
        ("time", f"{minutes:.1f} minutes on {record['device']}, all three models"),
        ("seed", config.training.seed),
        ("torch", record["versions"]["torch"]),
        ("record", "compared/runs: a folder for each model, with config.json and metrics.jsonl"),
    ]
    return Section(heading="Settings", rows=rows)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
