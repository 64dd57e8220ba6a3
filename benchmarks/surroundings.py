"""The same results in other locales, time zones, folders and rights, and without a network.

    nohup python benchmarks/surroundings.py > runs/surroundings.log &
    python benchmarks/surroundings.py --page docs

In each surrounding a process of its own trains a run, resumes it, evaluates it, generates,
inspects, and reads texts of several scripts; then it prints a digest of the weights, scores and
texts. It must equal that of the plain surrounding. A folder whose name is not UTF-8 must be refused
with exit code 2. `unshare -rn` gives a process no network. Surroundings that were measured are not
measured again. `--page FOLDER` writes the part `surroundings` of reliability.json.

Machine: the result does not depend on it. Asked: all are equal. Exit code 1 otherwise.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import measured, parser, write_part

import thinkers
from thinkers.cli.main import main as command

ROOT = Path(__file__).resolve().parents[1]
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TEXT = "The cat sat on the mat. größer, 日本語, עברית, \u202eabc 🙂\n" * 60
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "LC_ALL=C, in ASCII": {"env": {"LC_ALL": "C", **ASCII}},
    "LC_ALL=POSIX": {"env": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}},
    "LC_ALL=C.UTF-8": {"env": {"LC_ALL": "C.UTF-8"}},
    "a locale that is not there": {"env": {"LC_ALL": "tr_TR.UTF-8", "LANG": "xx_YY"}},
    "TZ=Pacific/Kiritimati": {"env": {"TZ": "Pacific/Kiritimati"}},
    "TZ=America/St_Johns": {"env": {"TZ": "America/St_Johns"}},
    "TZ that is not there": {"env": {"TZ": "Nowhere/None"}},
    "umask 077": {"umask": 0o077},
    "umask 000": {"umask": 0},
    "HOME that is not there": {"env": {"HOME": "/nonexistent/home"}},
    "HOME that cannot be written": {"env": {"HOME": "/proc"}},
    "other hashes": {"env": {"PYTHONHASHSEED": "1"}},
    "a folder of spaces and quotes": {"folder": " a 'b' \"c\" "},
    "a folder with a line break": {"folder": "a\nb"},
    "a folder in other scripts": {"folder": "größe 日本 🙂"},
    "a folder that begins with -": {"folder": "-a"},
    "a folder of 200 characters": {"folder": "x" * 200},
    "a folder that is a link": {"link": True},
    "a folder that is not UTF-8": {"folder": os.fsdecode(b"a\xff"), "refused": True},
    "no network": {"before": ["unshare", "-rn"]},
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", nargs="*", choices=sorted(CASES), help="default: all")
    arguments.add_argument("--out", type=Path, default=Path("runs/surroundings"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    arguments.add_argument("--work", type=Path, help="what each process does, in this folder")
    options = arguments.parse_args()
    if options.work is not None:
        print(json.dumps(work(options.work)))
        return
    files = {name: options.out / f"{number}.json" for number, name in enumerate(CASES)}
    if options.page is not None:
        found = {name: json.loads(x.read_text()) for name, x in files.items() if x.exists()}
        failed = differing(found)
        write_part(options.page, "surroundings", {"cases": len(found), "failed": failed})
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in dict.fromkeys(["plain", *(options.cases or CASES)]):
        found[name] = measured(files[name], lambda name=name: run(**CASES[name]))  # type: ignore[misc]
        print(f"{name}: {found[name]}", flush=True)
    failed = differing(found)
    print("all are equal" if not failed else "they differ:", *failed, sep="\n")
    raise SystemExit(bool(failed))


def differing(found: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, one in found.items()
        if one != ({"code": 2} if CASES[name].get("refused") else found["plain"])
    ]


def run(
    env: Mapping[str, str] | None = None,
    umask: int = -1,
    folder: str = "work",
    link: bool = False,
    refused: bool = False,
    before: Sequence[str] = (),
) -> dict[str, Any]:
    """Work in a process in a surrounding; return what it found, or its exit code."""
    with tempfile.TemporaryDirectory() as home:
        place = Path(home) / folder
        if refused:
            words = ["-m", "thinkers", "train", "add/decoder", f"--out={place}"]
        else:
            place.mkdir()
            if link:
                (Path(home) / "link").symlink_to(place, target_is_directory=True)
                place = Path(home) / "link"
            words = [str(Path(__file__)), f"--work={place}"]
        environment = {k: x for k, x in os.environ.items() if not k.startswith(("LC_", "LANG"))}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
        environment |= {"THINKERS_CACHE": f"{home}/cache", **(env or {})}
        done = subprocess.run(
            [*before, sys.executable, *words], env=environment, capture_output=True, umask=umask
        )
    if refused:
        return {"code": done.returncode}
    if done.returncode:
        return {"code": done.returncode, "error": done.stderr.decode(errors="replace")[-500:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(place: Path) -> dict[str, Any]:
    """Train, resume, evaluate, generate, inspect and read texts; return digests of all results."""
    run, text = place / "run", place / "texts"
    text.mkdir()
    for name in ("a", "größe"):
        (text / name).write_text(TEXT, encoding="utf-8")
    sizes = ["--model.dim=8", "--model.num_layers=1", "--model.num_heads=1"]
    settings = [*sizes, "--training.num_updates=3", "--training.batch_size=4"]
    settings.append("--training.evaluate_examples=4")
    codes = [
        command(["train", "add/looped", *settings, "--task.max_digits=1", f"--out={run}"]),
        command(["train", f"--resume={run}", "--training.num_updates=5"]),
        command(
            ["evaluate", "--num_examples=20", f"--out={place / 'scores.json'}", "--", str(run)]
        ),
        command(["inspect", "--prompt=1+2=", f"--out={place / 'page.html'}", "--", str(run)]),
        command(
            [
                *("train", "text/looped", *settings, f"--task.path={text}", "--task.context=16"),
                *("--task.vocabulary=character", f"--out={place / 'read'}"),
            ]
        ),
    ]
    found: dict[str, Any] = {"codes": codes, "answer": thinkers.answer(run, "1+2=")}
    found["text"] = thinkers.generate(place / "read", "größer", max_new_tokens=20, seed=3)
    for name in ("run/model/model.safetensors", "read/model/model.safetensors", "scores.json"):
        found[name] = hashlib.sha256((place / name).read_bytes()).hexdigest()[:16]
    found["folder"] = sorted(x.name for x in run.iterdir())
    return found


if __name__ == "__main__":
    main()
