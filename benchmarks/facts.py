"""Facts of documents that are read through a learned index: lengths, controls, levels.

    nohup python benchmarks/facts.py > runs/facts.log &
    python benchmarks/facts.py --cases facts/thinker --seeds 1
    python benchmarks/facts.py --page docs

A case is a recipe, or one with settings changed. Models are trained on at most 16 sections; all
questions are held out, in documents of 16, 64 and 256 sections, of which a step reads
`memory_top` blocks. It can be stopped and started again: finished runs are kept, others resume. One
thread for each run. `--page FOLDER` writes facts.json.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/memory.md.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import case_parser, measured, one_thread, run_jobs
from state_tracking import train
from torch import Tensor

import thinkers
from thinkers import recipes
from thinkers.config.overrides import override
from thinkers.files import write_file
from thinkers.memory.rows import DTYPES, rounded
from thinkers.models import thinker_reading
from thinkers.models.document_blocks import ABSENT, DocumentBlocks
from thinkers.models.generation import eval_mode
from thinkers.models.memory_option import memory_option, memory_top
from thinkers.tasks.answers import left_padded_prompts
from thinkers.tasks.facts import Facts

SIZES, QUESTIONS = (16, 64, 256), 1536
LONGER, LONG = 1024, 1000
"""Sections and questions of the longest documents, which need more entities."""


@dataclass(frozen=True)
class Case:
    """A recipe, with some settings changed."""

    recipe: str
    flags: tuple[str, ...] = ()
    sizes: tuple[int, ...] = SIZES


CASES = {
    "facts/thinker": Case("facts/thinker"),
    "facts_two_hops/thinker": Case("facts_two_hops/thinker"),
    "facts_levels/thinker": Case("facts_levels/thinker"),
    "64 entities": Case(
        "facts/thinker",
        (
            *("--task.num_entities=64", "--task.num_relations=64"),
            "--training.num_updates=4200",
        ),
        (*SIZES, LONGER),
    ),
    "sentences": Case(
        "facts/thinker",
        (
            *("--task.text=sentences", "--model.memory_section=12", "--model.mixing=6"),
            *("--model.block_latents=4", "--training.num_updates=2100"),
        ),
    ),
}


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/facts").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or list(CASES)
    jobs = [(name, seed, options.out) for seed in range(options.seeds) for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    folder = out / f"{file_name(name)}-{seed}"
    found = measured(folder.with_suffix(".json"), lambda: measure(name, seed, folder))
    shown = {size: scores["index"] for size, scores in found["scores"].items()}
    return f"{name} seed {seed}: {shown} {found['cpu_minutes']:.2f} CPU minutes"


def file_name(case: str) -> str:
    """Return the beginning of the names of a case's files."""
    return case.replace("/", "-").replace(" ", "_")


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed of a case, unless it was trained, and judge it."""
    case = CASES[name]
    flags = [*case.flags, f"--training.seed={seed}"]
    config = override(recipes.RECIPES[case.recipe](), flags=flags)
    # Kept apart from the scores, so that a finished run can be judged again.
    cost = measured(folder.with_name(f"{folder.name}-cost.json"), lambda: cost_of(config, folder))
    model, task = thinkers.open_run(folder)
    model.config = replace(model.config, memory_top=config.model.memory_top)
    with eval_mode(model):
        scores = {str(size): judge(model, of_size(task, size), size) for size in case.sizes}
        stored = dtypes(model, of_size(task, 64))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "scores": scores,
        "stored": stored,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": max(line["flops"] for line in lines if "flops" in line),
        "scale": float(model.index.scale().detach()),
        "updates": config.training.num_updates,
        **cost,
    }


def cost_of(config: Any, folder: Path) -> dict[str, Any]:
    """Train, and return the minutes that it took, unless it had been begun before."""
    begun, start = (folder / "config.json").exists(), time.process_time()
    train(config, folder)
    return {"cpu_minutes": (time.process_time() - start) / 60, "resumed": begun}


def of_size(task: Any, size: int) -> Facts:
    """Return the task with documents of this size, all of them held out."""
    return Facts(replace(task.config, num_sections=size), task.seed)


def judge(model: Any, task: Facts, size: int) -> dict[str, Any]:
    """Return the accuracy through the index and with its controls, and the blocks found."""
    ways: dict[str, dict[str, Any]] = {"index": {}, "random": {"matches": Random()}}
    ways |= {"cleared": {"blocks": None}, "half cleared": {}}
    if size <= 256:
        ways["all"] = {"top": None}
    if task.config.hops > 1:
        ways["asked once"] = {}
    right: dict[str, list[Tensor]] = {name: [] for name in ways}
    hops, hits, halves = [], [], []
    for batch in task.evaluation_batches("test", LONG if size == LONGER else QUESTIONS):
        blocks, evidence = model.blocks_of(batch), task.evidence(batch)
        ends = batch.prompt_lengths - 1  # type: ignore[operator]
        truth = batch.targets.gather(1, ends[:, None])[:, 0]
        odd = torch.arange(size) % 2 == 1
        kept = replace(batch, section_lengths=batch.section_lengths.masked_fill(odd, 0))  # type: ignore
        for name, options in ways.items():
            given = {"blocks": blocks} | options
            if name == "half cleared":
                given["blocks"] = model.blocks_of(kept)
            if name == "asked once":
                given["matches"] = AskedOnce()
            predicted, numbers = read(model, batch, **given)
            right[name].append(predicted == truth)
            if name == "index":
                hits.append(covered(blocks, batch.document, evidence, numbers))
        hops.append(task.hops_of(batch))
        halves.append((evidence % 2 == 1).any(1))
    by_way = {name: torch.cat(rows).double() for name, rows in right.items()}
    hop, hit, half = torch.cat(hops), torch.cat(hits).double(), torch.cat(halves)
    result: dict[str, Any] = {name: float(x.mean()) for name, x in by_way.items()}
    result["found"] = float(hit.mean())
    result["half cleared"] = {
        "cleared": float(by_way["half cleared"][half].mean()),
        "kept": float(by_way["half cleared"][~half].mean()),
        "kept before": float(by_way["index"][~half].mean()),
    }
    if task.config.hops > 1:
        two = hop == 2
        result["two hops"] = {name: float(x[two].mean()) for name, x in by_way.items()}
        result["two hops"]["found"] = float(hit[two].mean())
    return result


def read(
    model: Any,
    batch: Any,
    blocks: DocumentBlocks | None,
    matches: Callable[..., Tensor] | None = None,
    *,
    top: int | None | str = "own",
) -> tuple[Tensor, Tensor | None]:
    """Return the answers to a batch, and the numbers of the blocks that were read.

    Args:
        blocks: None means that the memory has been cleared.
        matches: Scores blocks in place of the index.
        top: Number of blocks that a step reads; "own" means `memory_top`.
    """
    number: Any = model.config.memory_top if top == "own" else top
    lengths = batch.prompt_lengths
    with memory_top(model, number), asked(matches):
        found = model(
            batch.tokens, lengths=lengths, prompt_lengths=lengths, **memory_option(blocks)
        )
    logits = found.logits[torch.arange(len(batch)), lengths - 1]
    return logits.argmax(-1), found.extra.get("blocks")


@contextmanager
def asked(matches: Callable[..., Tensor] | None) -> Iterator[None]:
    """Score blocks by this function inside the block; None leaves the index."""
    before = thinker_reading.best_matches
    if matches is not None:
        thinker_reading.best_matches = matches  # type: ignore[assignment]
    try:
        yield
    finally:
        thinker_reading.best_matches = before


class Random:
    """Matches that are drawn at random: any blocks are read."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, queries: Tensor, keys: Tensor, hidden: Tensor, document: Tensor) -> Tensor:
        return torch.rand(len(queries), keys.shape[1], generator=self.generator)


class AskedOnce:
    """Matches of the first step that asks, at every step."""

    def __init__(self) -> None:
        self.index = thinker_reading.best_matches
        self.first: dict[int, Tensor] = {}

    def __call__(self, queries: Tensor, *given: Tensor) -> Tensor:
        number = len(queries)
        if number not in self.first:
            self.first[number] = self.index(queries, *given)
        return self.first[number]


def covered(
    blocks: DocumentBlocks, document: Tensor, evidence: Tensor, numbers: Tensor | None
) -> Tensor:
    """Return True for questions all of whose facts are in a block that was read at some step."""
    assert numbers is not None
    read_ids = numbers.flatten(1)
    index = read_ids.clamp(min=0)[..., None].expand(-1, -1, 2)
    spans = blocks.spans[document].gather(1, index)
    right = torch.ones(len(document), dtype=torch.bool)
    for hop in evidence.T:
        inside = (spans[..., 0] <= hop[:, None]) & (hop[:, None] < spans[..., 1])
        right &= (inside & (read_ids != ABSENT)).any(1) | (hop < 0)
    return right


def dtypes(model: Any, task: Facts) -> dict[str, float]:
    """Return the accuracy with latents that were rounded as stores keep them."""

    def stored_as(dtype: str) -> Callable[[Tensor], Tensor]:
        def round_trip(x: Tensor) -> Tensor:
            found = rounded(x.detach().flatten(0, 1).numpy(), dtype)
            return torch.from_numpy(found).view_as(x)

        return round_trip

    ways: dict[str, Callable[[Tensor], Tensor]] = {"float32": lambda x: x}
    ways |= {dtype: stored_as(dtype) for dtype in DTYPES}
    right: dict[str, list[Tensor]] = {name: [] for name in ways}
    for batch in task.evaluation_batches("test", QUESTIONS):
        blocks: DocumentBlocks = model.blocks_of(batch)
        prompts, lengths = left_padded_prompts(batch), batch.prompt_lengths
        truth = batch.targets.gather(1, lengths[:, None] - 1)[:, 0]  # type: ignore[index]
        for name, way in ways.items():
            stored = replace(blocks, latents=way(blocks.latents))
            predicted = model.answer(prompts, lengths, 1, memory=stored)[:, 0]
            right[name].append(predicted == truth)
    return {name: float(torch.cat(rows).double().mean()) for name, rows in right.items()}


def write_results(out: Path, folder: Path) -> None:
    """Write facts.json, the results of all cases by seed; tools/docs_tables.py shows them."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{file_name(name)}-[0-9].json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
            for seed, run in found[name].items():
                print(name, seed, {x: round(y["index"], 4) for x, y in run["scores"].items()})
    write_file(folder / "facts.json", (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
