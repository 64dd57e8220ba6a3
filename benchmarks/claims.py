"""Claims of the published ideas at small size, at equal parameters and FLOPs, on two texts.

    nohup python benchmarks/claims.py --shakespeare FILE > runs/claims.log &
    python benchmarks/claims.py --texts python --cases decoder deepsight --seeds 1
    python benchmarks/claims.py --page docs

Every case is 64 wide and has the parameters of `shakespeare/decoder` of that width, within 1.4 %,
unless its name says fewer. It is trained with the FLOPs of 600 updates of that decoder; a tenth of
its updates are warm-up. The texts are Shakespeare's plays, and 1 MB of the sources of Python's own
library. Finished runs are kept, others resume. One thread for each run. `--page FOLDER` writes
claims.json.

Machine: losses, which another machine's roundings change as another seed does; CPU minutes. The
second text differs with the version of Python.
Asked: which claims hold here. Measured: docs/published.md.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import case_parser, file_name, flops_of, measured, one_thread, run_jobs
from state_tracking import train

import thinkers
from thinkers import recipes, tasks
from thinkers.comparison import budgets
from thinkers.comparison.matching import build, fit, last_stage_batches, parameters
from thinkers.config.experiment import Config, resolve_sizes
from thinkers.config.overrides import override
from thinkers.files import write_file
from thinkers.recipes.pairs import base

BYTES, EXAMPLES, UPDATES = 1_000_000, 2000, 600
WIDTH = ("--model.dim=64",)
FEWER = 0.75
"""Share of the parameters in cases of fewer."""


@dataclass(frozen=True)
class Case:
    """A model, its settings, and its share of the decoder's parameters."""

    model: str
    flags: tuple[str, ...] = ()
    size: float = 1.0


# No codes of steps: new embeddings, of deviation 0.02, are small beside them (0.7).
_UNIVERSAL = (
    *("--model.num_prelude_layers=0", "--model.num_coda_layers=0", "--model.injection=none"),
    "--model.num_layers=4",
)
CASES = {
    "decoder": Case("decoder"),
    "deepsight": Case("deepsight"),
    "deepsight, no planning loss": Case("deepsight", ("--model.plan_loss=none",)),
    "deepsight, fewer parameters": Case("deepsight", size=FEWER),
    "thoughtsformer, 1 thought": Case("thoughtsformer", ("--model.num_steps=1",)),
    "thoughtsformer, 2 thoughts": Case("thoughtsformer", ("--model.num_steps=2",)),
    "thoughtsformer, 4 thoughts": Case("thoughtsformer", ("--model.num_steps=4",)),
    "universal, 2 steps": Case("looped", (*_UNIVERSAL, "--model.num_steps=2")),
    "universal, 4 steps": Case("looped", (*_UNIVERSAL, "--model.num_steps=4")),
    "reasoning tokens": Case("reasoning_tokens", ("--model.num_steps=1",)),
    "fillers": Case("pause", ("--model.num_steps=1",)),
}
TEXTS = ("shakespeare", "python")


def main() -> None:
    arguments = case_parser(__doc__, list(CASES), "runs/claims")
    arguments.add_argument("--texts", nargs="*", choices=TEXTS, default=TEXTS)
    arguments.add_argument("--shakespeare", type=Path, help="the text of this name")
    options = arguments.parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {"shakespeare": options.shakespeare, "python": options.out / "python.txt"}
    if "python" in options.texts and not files["python"].exists():
        write_file(files["python"], python_sources())
    names = options.cases or list(CASES)
    jobs = [
        (name, text, files[text], seed, options.out)
        for seed in range(options.seeds)
        for text in options.texts
        for name in names
    ]
    run_jobs(run_job, jobs, options.workers)


def python_sources() -> bytes:
    """Return the first megabyte of the modules of Python's library, without what is not ASCII."""
    folder = Path(os.__file__).parent
    found = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return bytes(x for x in found if x < 128 and x != 13)[:BYTES]


def run_job(job: tuple[str, str, Path, int, Path]) -> str:
    """Train and grade one seed of a case on a text, unless its result is there; return a line."""
    name, text, file, seed, out = job
    one_thread()
    folder = out / f"{text}-{file_name(name)}-{seed}"
    result = folder.with_name(f"{folder.name}.json")
    found = measured(result, partial(measure, name, file, seed, folder))
    return f"{text}, {name}, seed {seed}: {found['loss']:.4f}, {found['cpu_minutes']:.2f} minutes"


def configuration(name: str, file: Path, seed: int) -> Config:
    """Return a case of the decoder's size, trained with the FLOPs of UPDATES of the decoder."""
    flags, case = [f"--task.path={file}", *WIDTH], CASES[name]
    decoder = override(recipes.RECIPES["shakespeare/decoder"](), flags=flags)
    decoder = _resolved(decoder)
    flops = UPDATES * _update_flops(decoder)
    config = _resolved(override(base(case.model, decoder.task), flags=[*WIDTH, *case.flags]))
    config = replace(
        config, model=fit(config.model, parameters, case.size * parameters(decoder.model))
    )
    updates = budgets.updates_for(config, flops)
    # The recipe's share: of few updates, its 100 would be more than half.
    warmup = updates // 10
    training = replace(
        config.training, num_updates=updates, warmup_updates=warmup, seed=seed, device="cpu"
    )
    return replace(config, training=training, recipe="")


def _resolved(config: Config) -> Config:
    return replace(config, model=resolve_sizes(config.model, tasks.from_config(config.task)))


def _update_flops(config: Config) -> float:
    batch = last_stage_batches(config.task, config.training.batch_size)[0]
    return build(config.model).batch_flops(batch, None, training=True)


def measure(name: str, file: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed of a case, and grade it on the test split."""
    config = configuration(name, file, seed)
    begun, start = (folder / "config.json").exists(), time.process_time()
    run = train(config, folder)
    minutes = (time.process_time() - start) / 60
    model, task = thinkers.open_run(run)
    return {
        "loss": task.score(model, "test", EXAMPLES)["loss"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops_of(folder),
        "updates": config.training.num_updates,
        "cpu_minutes": minutes,
        "resumed": begun,
    }


def write_results(out: Path, folder: Path) -> None:
    """Write claims.json, the results by text, case and seed."""
    found: dict[str, dict[str, Any]] = {}
    for text in TEXTS:
        for name in CASES:
            files = sorted(out.glob(f"{text}-{file_name(name)}-[0-9].json"))
            runs = {x.stem[-1]: json.loads(x.read_text()) for x in files}
            if runs:
                found.setdefault(text, {})[name] = runs
                print(text, name, [round(run["loss"], 4) for run in runs.values()])
    write_file(folder / "claims.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
