"""Process time of importing the library and of reporting a mistake, beside importing torch alone.

    python benchmarks/start_up.py [--repeats 9] [--against DIRECTORY]

Each is a new process, all of them in turn; a figure is the median of user and system time.
`--against` names a checkout of another edition, which is measured in turn with this one.

Machine: any; the ratios depend on it a little. Asked: a mistake is reported within 3 s, and
`import thinkers` takes no torch. Exit code 1 if missed. Measured: docs/measured.md.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import alternate, parser

HERE = Path(__file__).resolve().parents[1]
LIMIT = 3.0
"""Seconds within which a mistake is reported."""
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import thinkers": ["-c", "import thinkers"],
    "thinkers.build_model": ["-c", "import thinkers; thinkers.build_model"],
    "an unknown command": ["-m", "thinkers", "trian"],
    "a setting that no model takes": [
        *("-m", "thinkers", "train", "multiply/thinker", "--seed", "random"),
        "--training.random_steps=[1,99]",
    ],
}


def start(arguments: list[str], checkout: Path, folder: str):
    """A call that runs Python on `arguments` with the package of `checkout`."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

    def call() -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        expected = 2 if "-m" in arguments else 0
        if done.returncode != expected:
            sys.exit(f"exit code {done.returncode} of {arguments}:\n{done.stderr}")

    return call


def children_seconds(call) -> float:
    """User and system seconds of the processes that `call` waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--against", type=Path)
    options = arguments.parse_args()
    checkouts = [HERE] + ([options.against.resolve()] if options.against else [])
    with tempfile.TemporaryDirectory() as folder:
        calls = [
            start(command, checkout, folder)
            for command in COMMANDS.values()
            for checkout in checkouts
        ]
        for call in calls:
            call()  # Python compiles the files, once
        times = iter(alternate(calls, options.repeats, children_seconds))
    missed = False
    for name in COMMANDS:
        found = [next(times) for _ in checkouts]
        print(name + ": " + ", against ".join(f"{seconds:.2f} s" for seconds in found))
        missed |= COMMANDS[name][0] == "-m" and found[0] > LIMIT
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
