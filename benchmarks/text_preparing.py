"""Time and peak memory of tokenizing a large text.

python benchmarks/text_preparing.py [--megabytes 1000] [--vocabularies byte character bpe]

A subprocess tokenizes a generated file, one letter in thirteen of which takes two bytes, with an
empty cache; a second one reads the cache. The exit code is 1 if byte tokens take 1 GB of memory or
more, or less than 20 MB are tokenized in a second of process time. All files are deleted
afterwards.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PREPARE = """
import json, resource, sys, time
from thinkers.tasks.text import Text

config = Text.Config(path=sys.argv[1], vocabulary=sys.argv[2], context=64)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time(), time.perf_counter()
task = Text(config)
seconds = time.process_time() - start[0]
waited = time.perf_counter() - start[1]
tokens = sum(len(task.tokens(split)) for split in ("train", "test"))
batch = task.batch(0, 2)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(seconds=seconds, waited=waited, tokens=tokens, peak=peak, base=base)))
"""


def write_text(file: Path, megabytes: int) -> None:
    """Write lines of words from a vocabulary of 20,000, some of them not ASCII."""
    draw = random.Random(1)
    letters = "etaoinshrdlu" + "é"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(20_000)]
    block = b""
    while len(block) < 10**7:
        block += (" ".join(draw.choices(words, k=1000)) + "\n").encode()
    with file.open("wb") as stream:
        for _ in range(0, megabytes, 10):
            stream.write(block)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--vocabularies", nargs="+", default=["byte"])
    options = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        write_text(file, options.megabytes)
        size = file.stat().st_size
        environment = os.environ | {"THINKERS_CACHE": f"{folder}/cache"}
        for kind in options.vocabularies:
            for turn in ("tokenized", "from the cache"):
                found = json.loads(
                    subprocess.run(
                        [sys.executable, "-c", PREPARE, str(file), kind],
                        env=environment,
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    ).stdout
                )
                rate, peak = size / 1e6 / found["seconds"], found["peak"] / 1024
                print(
                    f"{kind:9} {turn:14} {size / 1e6:,.0f} MB in {found['seconds']:.1f} s of "
                    f"process time ({found['waited']:.0f} s of wall time), "
                    f"{rate:.0f} MB/s, {found['tokens']:,} tokens, peak memory {peak:,.0f} MiB, "
                    f"{(found['peak'] - found['base']) / 1024:,.0f} of them for it",
                    flush=True,
                )
                holds &= kind != "byte" or (rate >= 20 and peak < 1000)
    return int(not holds)


if __name__ == "__main__":
    raise SystemExit(main())
