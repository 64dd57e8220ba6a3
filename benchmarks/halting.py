"""Halting: accuracy against mean steps, its controls, what happens beyond the trained depth, time.

    nohup python benchmarks/halting.py > runs/halting.log &
    python benchmarks/halting.py --cases cups/halting links/looped --seeds 1
    python benchmarks/halting.py --cases shakespeare/halting --text tinyshakespeare.txt
    python benchmarks/halting.py --page docs

A case is a recipe, with a gate unless its name says otherwise. It can be stopped and started again:
finished runs are kept, others resume. One thread for each run. All rows are held out. A row is
right if all its graded tokens are, each read after the right ones before it. Steps are those of
real tokens without START. `--page FOLDER` writes halting.json and the figure of what was measured.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes; times
are ratios of two ways in one process, in turn. Asked and measured: docs/halting.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import alternate, case_parser, measured, one_thread, run_jobs
from state_tracking import task_with, train
from torch.nn import functional as F

import thinkers
from thinkers import recipes
from thinkers.config.experiment import Config
from thinkers.config.overrides import override
from thinkers.files import write_file
from thinkers.models import Looped
from thinkers.models.batch import IGNORED, Batch, real_positions
from thinkers.models.generation import eval_mode
from thinkers.models.halting_model import first_lasting, gate_loss
from thinkers.report import html

ROWS, PAIRED_ROWS = 2000, 10_000
GATES = (0.1, 0.3, 0.5, 0.7, 0.9)
GATE = 0.5
SWAPS = (4, 8, 16, 24)
CLOCK_ROWS, ALTERNATIONS = 64, 7


@dataclass(frozen=True)
class Case:
    """A recipe, settings that are changed, and what of halting is left out in training."""

    recipe: str
    flags: Sequence[str] = ()
    control: str = ""
    """not_frozen: keys go on after a token's last step; afterwards: a gate on a trained model."""


GATED = ("--model.halting=true",)
CASES = {
    "cups/halting": Case("cups/halting"),
    "cups/not_frozen": Case("cups/halting", control="not_frozen"),
    "cups/gate_afterwards": Case("cups/looped", control="afterwards"),
    "links/halting": Case("links/halting"),
    "links/looped": Case("links/looped"),
    "add/halting": Case("add/looped", GATED),
    "arithmetic/halting": Case("arithmetic/looped", GATED),
    "shakespeare/halting": Case("shakespeare/looped", GATED),
}


def main() -> None:
    options = parse()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or [name for name in CASES if options.text or not needs_text(name)]
    jobs = [(n, seed, options.out, options.text) for seed in range(options.seeds) for n in names]
    run_jobs(run_job, jobs, options.workers)


def parse() -> argparse.Namespace:
    arguments = case_parser(__doc__, list(CASES), "runs/halting")
    arguments.add_argument("--text", type=Path, help="the text of shakespeare")
    options = arguments.parse_args()
    if options.text is None and any(map(needs_text, options.cases or ())):
        arguments.error("shakespeare/halting needs --text FILE")
    return options


def needs_text(name: str) -> bool:
    return recipes.needs_text(CASES[name].recipe)


def run_job(job: tuple[str, int, Path, Path | None]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out, text = job
    one_thread()
    result = out / f"{name.replace('/', '-')}-{seed}.json"
    found = measured(result, lambda: measure(name, seed, out, text))
    return f"{name} seed {seed}: {found['points']} {found['cpu_minutes']:.2f} CPU minutes"


def measure(name: str, seed: int, out: Path, text: Path | None) -> dict[str, Any]:
    case = CASES[name]
    flags = [*case.flags] + ([f"--task.path={text}"] if needs_text(name) else [])
    config = override(recipes.RECIPES[case.recipe](), flags=flags)
    config = replace(config, training=replace(config.training, seed=seed))
    if case.control == "not_frozen":
        # This process trains one case.
        frozen = Looped._run_frozen
        Looped._run_frozen = lambda model, batch, steps, _: frozen(model, batch, steps, None)
    kept = case.recipe if case.control == "afterwards" else name
    folder = out / f"{kept.replace('/', '-')}-{seed}"
    start = time.process_time()
    run = train(config, folder)
    if case.control == "not_frozen":
        Looped._run_frozen = frozen
    model, task = thinkers.open_run(run)
    if case.control == "afterwards":
        model = with_gate(model, task)
    minutes = (time.process_time() - start) / 60
    kind = name.partition("/")[0]
    judges = {"cups": cups, "links": links, "shakespeare": text_loss}
    found = judges.get(kind, answers)(config, model, task)
    if name == "cups/halting":
        found["clock"] = clock(model, config)
    return found | {"cpu_minutes": minutes}


def with_gate(model: Any, task: Any) -> Any:
    """Train a gate on a model that stays as it is: the first step from which an answer is right."""
    config = replace(model.config, halting=True)
    gated = Looped(config)
    gated.load_state_dict(model.state_dict(), strict=False)
    gated.eval()
    optimizer = torch.optim.AdamW(gated.gate.parameters(), lr=1e-2)
    for update in range(500):
        batch = task.batch(update, 32)
        with torch.no_grad():
            states = gated(batch.tokens, keep_states=True).states  # there is no coda
            need = first_lasting(gated.read_out(states), batch.targets)
        all_steps = torch.full_like(need, states.shape[1])
        real = real_positions(batch.tokens, batch.lengths)
        loss = gate_loss(gated.gate(states)[..., 0], need, all_steps, real, int(real.sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gated


def point(
    model: Any, batches: Iterable[Batch], num_steps: int, halt: float | str | None = None
) -> dict[str, float]:
    """Return scores and costs of held-out rows.

    rows, last, tokens: the share of rows with all graded tokens right, of right last ones, of right
    graded tokens; steps: their mean; flops: those done, as a share of those of all steps.
    """
    sums = torch.zeros(9, dtype=torch.float64)
    with eval_mode(model):
        for batch in batches:
            for start in range(0, len(batch), 250):
                sums += _point(model, batch.rows(slice(start, start + 250)), num_steps, halt)
    rows, right, last, graded, right_tokens, loss, tokens, steps, work = sums.tolist()
    return {
        "rows": right / rows,
        "last": last / rows,
        "tokens": right_tokens / graded,
        "loss": loss / graded,
        "steps": steps / tokens,
        "flops": work / rows,
    }


def _point(model: Any, batch: Batch, num_steps: int, halt: float | str | None) -> torch.Tensor:
    options = {} if batch.positions is None else {"positions": batch.positions}
    found = model(batch.tokens, lengths=batch.lengths, num_steps=num_steps, halt=halt, **options)
    graded = batch.targets != IGNORED
    right = (found.logits.argmax(-1) == batch.targets) & graded
    places = torch.arange(graded.shape[1])
    last = (graded * places).argmax(1, keepdim=True)
    real = real_positions(batch.tokens, batch.lengths) & (places > 0)
    size = batch.tokens.shape
    whole = model.flops(*size, num_steps)
    asked = {"halt": halt} if halt == "answered" else {}
    work = whole if halt is None else model.flops(*size, num_steps, steps=found.steps, **asked)
    losses = F.cross_entropy(
        found.logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    values = [
        len(batch),
        (right | ~graded).all(1).sum(),
        right.gather(1, last).sum(),
        graded.sum(),
        right.sum(),
        losses,
        real.sum(),
        (found.steps * real).sum(),
        work / whole * len(batch),
    ]
    return torch.tensor([float(x) for x in values], dtype=torch.float64)


def curve(
    model: Any, rows: Callable[[], Iterable[Batch]], most: int, gates: Sequence[float] = GATES
) -> dict[str, Any]:
    """Return points of fixed depths up to `most`, and of thresholds."""
    fixed = {k: point(model, rows(), k) for k in range(1, most + 1)}
    return {"fixed": fixed, "halting": {g: point(model, rows(), most, g) for g in gates}}


def guard(model: Any, rows: Callable[[], Iterable[Batch]]) -> dict[str, Any]:
    """Return points at once, twice and four times the trained steps, with and without halting."""
    trained = model.config.num_steps
    return {
        f"{times}x": {
            "fixed": point(model, rows(), times * trained),
            "halting": point(model, rows(), times * trained, GATE),
        }
        for times in (1, 2, 4)
    }


def cups(config: Config, model: Any, task: Any) -> dict[str, Any]:
    def rows(swaps: int, number: int) -> list[Batch]:
        same = task_with(config, min_length=swaps, max_length=swaps)
        return [same.batch(0, number, "test")]

    points: dict[str, Any] = {}
    for swaps in SWAPS:
        batches = rows(swaps, PAIRED_ROWS if swaps == 16 else ROWS)
        limit = 16 if swaps <= 16 else swaps + 2
        points[f"{swaps}"] = {
            "fixed": point(model, batches, limit),
            "halting": point(model, batches, limit, GATE),
        }
    batches = rows(16, ROWS)
    found = {"points": points, "curve": curve(model, lambda: batches, 16)}
    return found | {"guard": guard(model, lambda: batches)}


def links(config: Config, model: Any, task: Any) -> dict[str, Any]:
    """Halt with the first answer that is not WAIT; steps are compared with the depth."""
    most = config.task.max_depth
    batches = list(task.evaluation_batches("test", ROWS))
    fixed, halting = point(model, batches, most), point(model, batches, most, "answered")
    by_depth: dict[int, list[float]] = {}
    exact = total = 0
    with eval_mode(model):
        for batch in batches:
            found = model(batch.tokens, lengths=batch.lengths, num_steps=most, halt="answered")
            graded = batch.targets != IGNORED
            exact += int(((found.steps == batch.due) & graded).sum())
            total += int(graded.sum())
            for depth in batch.due[graded].unique().tolist():
                by_depth.setdefault(depth, []).extend(
                    found.steps[graded & (batch.due == depth)].tolist()
                )
    steps = {depth: sum(x) / len(x) for depth, x in sorted(by_depth.items())}
    points = {"all": {"fixed": fixed, "halting": halting}}
    return {"points": points, "steps_by_depth": steps, "steps_equal_depth": exact / total}


def answers(config: Config, model: Any, task: Any) -> dict[str, Any]:
    """Judge a task whose answers have no due step, or registers with theirs."""
    batches = list(task.evaluation_batches("test", ROWS))
    trained = model.config.num_steps
    fixed, halting = point(model, batches, trained), point(model, batches, trained, GATE)
    points = {"all": {"fixed": fixed, "halting": halting}}
    most = trained + 2
    return {"points": points, "curve": curve(model, lambda: batches, most)} | {
        "guard": guard(model, lambda: batches)
    }


def text_loss(config: Config, model: Any, task: Any) -> dict[str, Any]:
    batches = [task.batch(i, 20, "valid") for i in range(10)]
    trained = model.config.num_steps
    points = {
        "all": {
            "fixed": point(model, batches, trained),
            "halting": point(model, batches, trained, GATE),
        }
    }
    return {"points": points, "curve": curve(model, lambda: batches, trained)}


def clock(model: Any, config: Config) -> dict[str, float]:
    """Decode rows of 1 to 16 swaps token by token, with a cache, both ways in turn."""
    batch = task_with(config, min_length=16, max_length=16).batch(0, CLOCK_ROWS, "test")
    targets, lengths = batch.targets, 2 + torch.arange(CLOCK_ROWS) % 16  # START and 1 .. 16 swaps

    def decode(halt: float | None) -> torch.Tensor:
        """Return the share of right answers; rows leave the batch where they end."""
        options = {} if halt is None else {"halt": halt}
        rows = torch.arange(CLOCK_ROWS)
        one, right = torch.ones_like(lengths), torch.zeros(())
        with eval_mode(model):
            _, cache = model.prefill(batch.tokens[:, :1], one, 16, False, 17, **options)
            for t in range(1, batch.tokens.shape[1]):
                left = (lengths[rows] > t).nonzero()[:, 0]
                if len(left) < len(rows):
                    rows = rows[left]
                    cache.select(left)
                logits = model.extend(batch.tokens[rows, t], cache)
                right += (logits.argmax(-1) == targets[rows, t]).sum()
        return right / (lengths - 1).sum()

    scores = [float(decode(halt)) for halt in (None, GATE)]
    fixed, halting = alternate([lambda: decode(None), lambda: decode(GATE)], ALTERNATIONS)
    return {"fixed": scores[0], "halting": scores[1], "times faster": fixed / halting}


def write_results(out: Path, folder: Path) -> None:
    """Write halting.json, the results of all cases by seed, and the figure."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{name.replace('/', '-')}-[0-9].json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
    if curves := {n: s for n, s in found.items() if n in ("cups/halting", "add/halting")}:
        html.write_png(draw(curves), folder / "halting.png")
    write_file(folder / "halting.json", (json.dumps(found, indent=1) + "\n").encode())


def draw(found: dict[str, dict[str, Any]]) -> Any:
    """Draw accuracy against mean steps, mean over seeds: fixed depths, and thresholds."""
    drawn = html.figure(figsize=(5.0 * len(found), 3.6))
    panels = drawn.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, seeds) in zip(panels, found.items(), strict=True):
        for way, style in (("fixed", "o-"), ("halting", "s")):
            curves = [seed["curve"][way].values() for seed in seeds.values()]
            points = [[(p["steps"], p["tokens"]) for p in curve] for curve in curves]
            steps, scores = torch.tensor(points).mean(0).T.tolist()
            label = "fixed depth" if way == "fixed" else f"halting, {GATES[0]} .. {GATES[-1]}"
            axes.plot(steps, scores, style, label=label, markersize=4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("mean steps of a token")
        axes.set_ylabel("right tokens")
        axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
