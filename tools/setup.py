"""Make .venv in the checkout with the pinned packages, or reuse the one that is there.

    python tools/setup.py            # .venv, what make test and make demo need
    python tools/setup.py extras     # .venv-extras, what make test-extras needs

Runs under the interpreter that the environment is made with, on the standard library alone.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPLETE = "set-up-is-complete"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/setup.py")
EXTRAS = {
    ".venv": "dev,report,text",
    ".venv-extras": "dev,report,text,wandb,qdrant,hf,eval,onnx,serve,reasoning_gym,docs",
}
"""The extras of the package that each environment has."""
OF_TESTS = {
    ".venv": (),
    ".venv-extras": (
        *("httpx", "ipykernel", "jupytext", "lightning", "nbclient"),
        *("openai", "qdrant-edge-py", "scikit-learn"),
    ),
}
"""Packages that tests and examples alone use."""
OLDEST, NEWEST = (3, 11), (3, 14)
"""The Python versions that the pinned torch has wheels for."""


def key() -> str:
    """Digest of everything an environment depends on: files, interpreter, folder."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version} {ROOT}".encode())
    return digest.hexdigest()


def pip(venv: Path, *arguments: str) -> None:
    command = [venv / "bin" / "python", "-m", "pip", "install", "-qq"]
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*command, *constraints, *arguments], check=True, env=os.environ | settings)


def build(venv: Path) -> None:
    if venv.exists():
        print(f"set-up: {venv.name} is incomplete or outdated; making it again", flush=True)
        shutil.rmtree(venv)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    print("set-up: installing torch, then the rest", flush=True)
    # setuptools before the package, whose build is not isolated: an isolated one would fetch
    # setuptools again, by no constraints. torch beside it, so that the largest fails first.
    pip(venv, "torch", "setuptools")
    package = "--no-build-isolation", "--editable", f"{ROOT}[{EXTRAS[venv.name]}]"
    pip(venv, *OF_TESTS[venv.name], *package)
    (venv / COMPLETE).write_text(key())  # last, so that an interrupted set-up is made again


def report_problem(found: str, expected: str, fix: str) -> None:
    print(f"found: {found}\nexpected: {expected}\nfix: {fix}", file=sys.stderr)


def main(name: str = "") -> int:
    """Make or reuse .venv, or .venv-NAME, and return the exit code."""
    venv = ROOT / (f".venv-{name}" if name else ".venv")
    version = ".".join(map(str, sys.version_info[:3]))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, x)) for x in (OLDEST, NEWEST))
        report_problem(
            f"Python {version} ({sys.executable})",
            f"Python {oldest} to {newest}",
            "name one: make test PYTHON=python3.12",
        )
        return 2
    if venv.name not in EXTRAS:
        report_problem(f"tools/setup.py {name}", "extras, or no word", "change the word")
        return 2
    print(f"set-up: Python {version} ({sys.executable})", flush=True)
    start = time.monotonic()
    with open(ROOT / "pyproject.toml") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two makes at once, the second waits for the first
        stamp, python = venv / COMPLETE, venv / "bin" / "python"
        reused = stamp.exists() and stamp.read_text() == key() and python.exists()
        if not reused:
            try:
                build(venv)
            except subprocess.CalledProcessError as error:
                report_problem(
                    f"{' '.join(map(str, error.cmd))} failed",
                    "pip finds the versions of constraints.txt",
                    "see pip's message above (on Debian, install python3-venv), then repeat",
                )
                return 1
    how = "reused" if reused else "made"
    print(f"set-up: {time.monotonic() - start:.1f} s ({venv.name} {how})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
