"""Makes .venv in the checkout with what the constraints pin, or reuses what is there.

Runs under the interpreter that the environment shall have, with the standard library alone.
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
VENV = ROOT / ".venv"
STAMP = VENV / "set-up-is-complete"
PYTHON = VENV / "bin" / "python"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/setup.py")
EXTRAS = "dev,report,text"


def key() -> str:
    """What the environment depends on: these files, this interpreter, this folder."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version} {ROOT}".encode())
    return digest.hexdigest()


def pip(*arguments: str) -> None:
    command = [PYTHON, "-m", "pip", "install", "-qq"]
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*command, *constraints, *arguments], check=True, env=os.environ | settings)


def build() -> None:
    if VENV.exists():
        print("set-up: .venv is incomplete or outdated, making it again", flush=True)
        shutil.rmtree(VENV)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    print("set-up: installing torch, then the rest", flush=True)
    pip("torch", "setuptools")
    pip("--no-build-isolation", "--editable", f"{ROOT}[{EXTRAS}]")
    STAMP.write_text(key())


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (the PYTHON that make was given may be older)
        print(f"found Python {sys.version.split()[0]}, expected 3.11 or 3.12", file=sys.stderr)
        print("say which to use: make test PYTHON=python3.12", file=sys.stderr)
        return 2
    start = time.monotonic()
    with open(ROOT / "pyproject.toml") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits for the first
        reused = STAMP.exists() and STAMP.read_text() == key() and PYTHON.exists()
        if not reused:
            try:
                build()
            except subprocess.CalledProcessError as error:
                print(f"set-up failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
                print("expected pip to find the pins of constraints.txt", file=sys.stderr)
                print("on Debian, python3-venv must be installed; then repeat", file=sys.stderr)
                return 1
    version = ".".join(map(str, sys.version_info[:3]))
    how = "reused" if reused else "made"
    seconds = time.monotonic() - start
    print(f"set-up: {seconds:.1f} s (.venv {how}, Python {version})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
