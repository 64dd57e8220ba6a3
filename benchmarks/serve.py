"""Requests per second of `thinkers serve`, 32 at once beside one by one, and their latency.

    python benchmarks/serve.py [--models decoder looped] [--requests 200] [--repeats 7]

A run on text (width 128, 4 layers; looped: 4 steps of 4 layers; one update of training, since speed
does not depend on weights) is served in a process of its own. Prompts of 4 to 64 characters are
continued by 8 to 64 tokens, drawn at temperature 1 by a seed of their own. All requests are asked
one by one first, and every time both ways must give these texts again; to save time, one by one is
then measured on the first 40. Then a prompt is continued by 8 tokens, alone and while a text of
1,000 tokens is written.

Machine: two cores, one for the server's model and one for its event loop and for the clients. Both
ways alternate, and the median is shown; the process time of the server per request hardly depends
on other processes. Asked: 32 at once at least 3 times the requests per second. Exit code 1 if
missed or if a text differs. Needs the extra serve. Measured: docs/serve.md.
"""

import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser

import thinkers
from thinkers.config.experiment import Config
from thinkers.config.training import Training

AT_ONCE, ONE_BY_ONE, MIN_RATIO = 32, 40, 3.0
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "
SIZES = {"dim": 128, "num_layers": 4, "num_heads": 4, "max_length": 256}


def make_run(name: str, folder: Path) -> Path:
    """Train a model on text for one update."""
    (folder / "text.txt").write_text(TEXT * 200)
    task = thinkers.TASKS["text"].Config(path=str(folder / "text.txt"), context=256)
    training = Training(num_updates=1, batch_size=2, device="cpu", evaluate_examples=1)
    sizes = SIZES | {"num_steps": 4}
    config = Config.fit(thinkers.MODELS[name], task, training, **sizes)
    return thinkers.train(config, folder / name).folder


@contextmanager
def serving(run: Path) -> Iterator[tuple[int, int]]:
    """Serve a run in a process, and give its port and its id."""
    command = [sys.executable, "-m", "thinkers", "serve", str(run), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found, "the server has not started"
        try:
            yield int(found[1]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def process_seconds(pid: int) -> float:
    """Process time of another process so far, in seconds (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, request: dict[str, Any]) -> tuple[str, float]:
    """The text of a request, and its seconds."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(request), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["choices"][0]["text"], time.monotonic() - start


def draw(model: str, count: int) -> list[dict[str, Any]]:
    """Requests, the same ones every time."""
    rng = np.random.default_rng(0)
    lengths, tokens = rng.integers(4, 65, count), rng.integers(8, 65, count)
    starts = rng.integers(0, len(TEXT), count)
    return [
        {
            "model": model,
            "prompt": (TEXT * 2)[start : start + length],
            "max_tokens": int(new),
            "seed": seed,
        }
        for seed, (start, length, new) in enumerate(zip(starts, lengths, tokens, strict=True))
    ]


def run_all(port: int, requests: Sequence[dict[str, Any]], at_once: int) -> tuple[Any, float, Any]:
    """The texts, the requests per second and the latencies."""
    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(lambda request: ask(port, request), requests))
    seconds = time.monotonic() - start
    return [text for text, _ in found], len(found) / seconds, [latency for _, latency in found]


def beside_a_long_text(port: int, model: str, repeats: int) -> tuple[float, float]:
    """Median seconds of a short request, alone and beside a text of 1,000 tokens."""
    short = {"model": model, "prompt": TEXT[:20], "max_tokens": 8, "seed": 1}
    alone = statistics.median(ask(port, short)[1] for _ in range(repeats))
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, port, short | {"max_tokens": 1000})
        time.sleep(0.5)
        beside = []
        while not long.done() and len(beside) < repeats:
            beside.append(ask(port, short)[1])
        assert len(beside) == repeats, "the long text was too short"
    return alone, statistics.median(beside)


def measure(name: str, count: int, repeats: int) -> bool:
    """Print the figures of a model; return True if they are within their bounds."""
    with tempfile.TemporaryDirectory() as home, serving(make_run(name, Path(home))) as (port, pid):
        requests = draw(name, count)
        wanted, _, _ = run_all(port, requests, 1)
        asked = {1: requests[:ONE_BY_ONE], AT_ONCE: requests}
        rates: dict[int, list[float]] = {1: [], AT_ONCE: []}
        latencies: dict[int, list[float]] = {1: [], AT_ONCE: []}
        costs: dict[int, list[float]] = {1: [], AT_ONCE: []}
        differ = 0
        for _ in range(repeats):
            for at_once in rates:
                before = process_seconds(pid)
                texts, rate, seconds = run_all(port, asked[at_once], at_once)
                costs[at_once].append(1000 * (process_seconds(pid) - before) / len(texts))
                differ += sum(a != b for a, b in zip(texts, wanted, strict=False))
                rates[at_once].append(rate)
                latencies[at_once] += seconds
        short = beside_a_long_text(port, name, repeats)
    one, many = (statistics.median(found) for found in rates.values())
    number = repeats * sum(map(len, asked.values()))
    print(f"{name}: {differ} of {number} texts differ")
    for at_once, rate in ((1, one), (AT_ONCE, many)):
        p50, p99 = np.percentile(latencies[at_once], (50, 99))
        spread = f"{min(rates[at_once]):.1f} to {max(rates[at_once]):.1f}"
        print(
            f"  {at_once:>2} at once: {rate:.1f} requests/s ({spread}), latency p50 {p50:.3f} s, "
            f"p99 {p99:.3f} s, process time {statistics.median(costs[at_once]):.0f} ms a request"
        )
    print(f"  {many / one:.2f} times as many requests/s (at least {MIN_RATIO})")
    print(
        f"  8 tokens: {short[0]:.3f} s alone, {short[1]:.3f} s beside a text of 1,000", flush=True
    )
    return not differ and many >= MIN_RATIO * one


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=["decoder", "looped"])
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    reached = [measure(name, options.requests, options.repeats) for name in options.models]
    raise SystemExit(not all(reached))


if __name__ == "__main__":
    main()
