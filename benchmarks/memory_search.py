"""A million blocks in a long-term memory: append, open, rebuild and search, by CPU time and memory.

    python benchmarks/memory_search.py                    # both cases, into runs/memory_search
    python benchmarks/memory_search.py --blocks 200000 --cases two_keys
    python benchmarks/memory_search.py --page docs

Keys are of unit length, in 4,000 loose clusters: a random centre and 0.8 times normal noise. A
block has one key of 64 numbers, or two keys of 32 and the score of the better one; and 512 bytes of
latents. 256 queries are stored keys, each with normal noise of 0.6 times its length. Recall is the
share of the 10 blocks that an exact search in float32 finds. Each step runs in a process of its own
on one thread, and ends with the most memory that its process had; `--page FOLDER` writes
memory_search.json, what was measured.

Machine: times are CPU times and depend on it; recall hardly does. Asked and measured:
docs/measured.md.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import measured, one_thread, parser, process_seconds, resident

from thinkers.files import write_file
from thinkers.memory.blocks import Blocks
from thinkers.memory.sqlite import SqliteStore

CLUSTERS, CHUNK, QUERIES, K = 4000, 50_000, 256, 10
COMMIT = 10_000
"""Blocks of one append."""
LATENT_NUMBERS = 256
"""Numbers in the latents of a block, in float16."""


@dataclass(frozen=True)
class Case:
    """Blocks with `latents` latents and keys each, the keys `dim` numbers wide."""

    latents: int
    dim: int
    blocks: int


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", nargs="*", choices=["one_key", "two_keys"])
    arguments.add_argument("--blocks", type=int, default=1_000_000)
    arguments.add_argument("--out", type=Path, default=Path("runs/memory_search"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    cases = {
        f"{name}-{options.blocks}": Case(latents, dim, options.blocks)
        for name, latents, dim in (("one_key", 1, 64), ("two_keys", 2, 32))
        if not options.cases or name in options.cases
    }
    results = {name: options.out / f"{name}.json" for name in cases}
    if options.page is not None:
        found = {name: json.loads(file.read_text()) for name, file in results.items()}
        write_file(
            options.page / "memory_search.json", (json.dumps(found, indent=1) + "\n").encode()
        )
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name, case in cases.items():
        found = measured(results[name], lambda c=case: measure(c, options.out / "store"))
        print(name, json.dumps(found), flush=True)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Measure a case; the store is deleted afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    questions = folder.with_suffix(".npz")
    found: dict[str, Any] = {}
    for step in (prepare, append, rebuild, reopen, search):
        # A process for each: peaks of memory, and what is cached, are its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found |= pool.submit(step, case, folder, questions).result()
        print(f"{step.__name__}: {found}", flush=True)
    shutil.rmtree(folder)
    return found


def prepare(case: Case, folder: Path, questions: Path) -> dict[str, Any]:
    """Draw the queries, and find their best blocks by exact search."""
    one_thread()
    random = np.random.default_rng(1)
    asked = np.sort(random.integers(0, case.blocks, QUERIES))
    keys = np.concatenate(
        [part[asked[(asked >= i) & (asked < i + len(part))] - i, 0] for i, part in chunks(case)]
    ).astype(np.float32)
    queries = keys + 0.6 / case.dim**0.5 * random.standard_normal(keys.shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    best, scores = torch.zeros(QUERIES, 0, dtype=torch.int64), torch.zeros(QUERIES, 0)
    for start, part in chunks(case):
        products = (
            torch.from_numpy(queries) @ torch.from_numpy(part.astype(np.float32)).flatten(0, 1).T
        )
        own = products.view(QUERIES, len(part), case.latents).amax(2)
        scores = torch.cat([scores, own], 1)
        best = torch.cat([best, torch.arange(start, start + len(part)).expand(QUERIES, -1)], 1)
        scores, places = scores.topk(K, 1)
        best = best.gather(1, places)
    np.savez(questions, queries=queries, best=best.numpy() + 1)  # the first id is 1
    return {}


def chunks(case: Case) -> Iterator[tuple[int, np.ndarray]]:
    """Yield keys (n, latents, dim) of CHUNK blocks in float16, with the number of the first."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, case.dim), dtype=np.float32)
    for start in range(0, case.blocks, CHUNK):
        random = np.random.default_rng([2, start])
        shape = (min(CHUNK, case.blocks - start), case.latents)
        keys = 0.8 * random.standard_normal((*shape, case.dim), dtype=np.float32)
        keys += centres[random.integers(0, CLUSTERS, shape)]
        keys /= np.linalg.norm(keys, axis=2, keepdims=True)
        yield start, keys.astype(np.float16)


def append(case: Case, folder: Path, questions: Path) -> dict[str, Any]:
    """Append all blocks, COMMIT at once; the seconds are those inside of the store."""
    one_thread()
    store = SqliteStore.create(
        folder,
        fingerprint="0" * 64,
        vocabulary="",
        dim=LATENT_NUMBERS // case.latents,
        index_dim=case.dim,
        latents=case.latents,
        section=16,
        levels=1,
        group=4,
        dtype="float16",
    )
    seconds, last = 0.0, 0
    for _, part in chunks(case):
        for start in range(0, len(part), COMMIT):
            blocks = as_blocks(case, part[start : start + COMMIT], last + 1)
            seconds += process_seconds(lambda b=blocks: store.append(b))
            last += len(blocks)
    peak = resident("VmHWM")
    closing = process_seconds(store.close)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "append_s": seconds,
        "append_rss_mb": peak,
        "close_s": closing,
        "disk_mb": size / 2**20,
    }


def as_blocks(case: Case, keys: np.ndarray, first: int) -> Blocks:
    n, m = keys.shape[:2]
    latents = np.random.default_rng(first).standard_normal(
        (n, m, LATENT_NUMBERS // m), dtype=np.float32
    )
    return Blocks(
        latents=torch.from_numpy(latents),
        keys=torch.from_numpy(keys.astype(np.float32)),
        sizes=torch.full((n,), m),
        levels=torch.ones(n, dtype=torch.int64),
        topics=[f"topic {i % 100}" for i in range(n)],
        sources=["source"] * n,
        spans=torch.tensor([[0, 16]]).expand(n, 2),
        lines=torch.ones(n, 2, dtype=torch.int64),
        texts=[None] * n,
        tokens=[None] * n,
        children=[()] * n,
        ids=torch.arange(first, first + n),
    )


def rebuild(case: Case, folder: Path, questions: Path) -> dict[str, Any]:
    """Make the index anew from the keys in the store, and save it."""
    one_thread()
    store = SqliteStore(folder)
    seconds = process_seconds(store.rebuild)
    store.close()
    return {"rebuild_s": seconds, "rebuild_rss_mb": resident("VmHWM")}


def reopen(case: Case, folder: Path, questions: Path) -> dict[str, Any]:
    """Open the store and answer the first query."""
    one_thread()
    queries = torch.from_numpy(np.load(questions)["queries"])
    first = process_seconds(lambda: SqliteStore(folder).search(queries[:1], K))
    return {"open_s": first}


def search(case: Case, folder: Path, questions: Path) -> dict[str, Any]:
    """Search by one query and by 64 at once."""
    one_thread()
    held = np.load(questions)
    queries = torch.from_numpy(held["queries"])
    store = SqliteStore(folder)
    found = store.search(queries, K).ids.tolist()
    recall = np.mean(
        [len({*a} & {*b}) / K for a, b in zip(found, held["best"].tolist(), strict=True)]
    )
    with store.view() as view:
        one = times(lambda i: view.search(queries[i : i + 1], K), 2 * list(range(QUERIES)))
        many = times(lambda i: view.search(queries[i : i + 64], K), 4 * list(range(0, QUERIES, 64)))
    return {
        "recall": float(recall),
        "query_ms": {"p50": float(np.median(one)), "p99": float(np.quantile(one, 0.99))},
        "queries_64_ms": float(np.median(many)),
        "search_rss_mb": resident("VmHWM"),
    }


def times(call: Callable[[int], object], starts: list[int]) -> list[float]:
    """CPU milliseconds of each call."""
    return [1000 * process_seconds(lambda i=i: call(i)) for i in starts]


if __name__ == "__main__":
    main()
