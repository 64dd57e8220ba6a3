"""Runs of pytest on a copy of the package, in processes that have imported torch already."""

import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT

PRELOADED = ["torch", "numpy"]
"""Imported once, which takes longer than most of the tests. Plugins of pytest cannot be among them:
it imports them itself."""
LONGEST = 300
"""Seconds after which a run is stopped, as that of a defect by which a test waits for ever."""


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Args:
        code: The exit code of pytest; None if it took too long, or ended without one.
        files: The files of the modules of the package that were imported.
    """

    code: int | None
    output: str
    files: list[Path]


def run(package: Path, tests: tuple[str, ...]) -> Outcome:
    """Run tests, files or ids in `tests/`, with this copy of the package, up to the first failure.

    Args:
        package: A folder `thinkers` in an empty folder, into which results are written.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(package.parent, tests))
    process.start()
    process.join(LONGEST)
    process.kill()
    process.join()
    report, output = package.parent / "report.json", package.parent / "output"
    found = json.loads(report.read_text()) if report.exists() else {"code": None, "files": []}
    text = output.read_text() if output.exists() else ""
    return Outcome(found["code"], text, [Path(name) for name in found["files"]])


def _run(home: Path, tests: tuple[str, ...]) -> None:
    """Run pytest in this process, which has not imported the package."""
    assert "thinkers" not in sys.modules
    output = os.open(home / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(home)
    sys.path.insert(0, str(home))
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, given)])
    settings = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
    settings += [f"--config-file={ROOT / 'pyproject.toml'}", f"--basetemp={home / 'tmp'}"]
    code = pytest.main([*settings, *(f"{ROOT}/tests/{name}" for name in tests)])
    modules = [x for name, x in sys.modules.items() if name.partition(".")[0] == "thinkers"]
    files = [x.__file__ for x in modules if x.__file__ is not None]
    (home / "report.json").write_text(json.dumps({"code": int(code), "files": files}))
