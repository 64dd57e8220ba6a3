"""Small files that claim much memory, read under a limit of address space: refused at once.

    python benchmarks/resource_bombs.py
    python benchmarks/resource_bombs.py --page docs

Each file is read in a fork of a process that has imported everything, under RLIMIT_AS of 2 GB more
than it has. It must be refused by an error with the exit code that is listed, within 1 s of process
time and 200 MB. `--page FOLDER` writes the part `bombs` of reliability.json.

Machine: the result hardly depends on it. Asked: none is read, and none takes more. Exit code 1
otherwise.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from file_cases import make_comparison, make_run
from harness import parser, resident, write_part

from thinkers.comparison import results as compared
from thinkers.config import overrides
from thinkers.errors import exit_code
from thinkers.files import write_file
from thinkers.json_files import with_digest
from thinkers.memory.list_files import read_parts
from thinkers.memory.text_files import read_text
from thinkers.models import load_model
from thinkers.published.unpickle import read_settings
from thinkers.recipes import RECIPES
from thinkers.runs import checkpoint
from thinkers.runs.result import open_run
from thinkers.serve.protocol import parse_completion
from thinkers.strict_json import parse_json

ROOM, MOST_MB, MOST_SECONDS = 2 << 30, 200.0, 1.0
KILLED_AFTER = 10
"""Seconds of process time that a bomb may take."""
Bomb = tuple[Callable[[], Any], int]
"""A call that reads a file, and the exit code of the error that it must raise."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=Path("runs/resource_bombs"))
    arguments.add_argument("--page", type=Path, help="write the results into this folder, and end")
    options = arguments.parse_args()
    results = options.out / "result.json"
    if options.page is not None:
        write_part(options.page, "bombs", json.loads(results.read_text()))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    write_file(results, (json.dumps(found) + "\n").encode())
    raise SystemExit(any(one["problem"] for one in found.values()))


def measure(folder: Path) -> dict[str, Any]:
    """Read every bomb; return {name: exit code, process time, memory, problem}."""
    with contextlib.redirect_stdout(io.StringIO()):
        bombs = make_bombs(folder)
    found = {}
    for name, (call, code) in bombs.items():
        found[name] = one = in_child(call, code)
        spent = f"{one['code']}  {one['seconds']:.2f} s  {one['mb']:>4} MB"
        print(f"{name:<44} {spent}  {one['problem']}", flush=True)
    return found


def in_child(call: Callable[[], Any], expected: int) -> dict[str, Any]:
    """Read one bomb in a fork under the limit."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if (process := os.fork()) == 0:
        limit = int(resident("VmSize") * (1 << 20)) + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (KILLED_AFTER, KILLED_AFTER))
        before, start, code, text = resident("VmHWM"), time.process_time(), 0, ""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call()
        except BaseException as error:
            code, text = exit_code(error), f"{type(error).__name__}: {error}"
        spent = {"seconds": round(time.process_time() - start, 3), "code": code}
        spent |= {"mb": round(resident("VmHWM") - before), "text": text[:300]}
        os.write(writing, json.dumps(spent).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        content = stream.read()
    _, status = os.waitpid(process, 0)
    if not content:
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "seconds": 0.0, "mb": 0, "problem": "the process has died"}
    found: dict[str, Any] = json.loads(content)
    problems = []
    if found["code"] != expected:
        problems.append(f"expected exit code {expected}, got: {found['text'] or 'no error'}")
    if found["seconds"] > MOST_SECONDS or found["mb"] > MOST_MB:
        problems.append("too much time or memory")
    del found["text"]
    return found | {"problem": "; ".join(problems)}


def make_bombs(folder: Path) -> dict[str, Bomb]:
    """Write all files; return what reads them."""
    bombs: dict[str, Bomb] = {}
    for make in (of_json, of_models, of_checkpoints, of_settings, of_others):
        home = folder / make.__name__
        home.mkdir()
        bombs |= make(home)
    return bombs


def of_json(home: Path) -> dict[str, Bomb]:
    contents = {
        "nested 30 million deep": b"[" * 30_000_000,
        "2 million keys": b"{" + b",".join(b'"%d":0' % i for i in range(2_000_000)) + b"}",
        "250,000 keys, the last one twice": b"{%s}"
        % b",".join(b'"%d":0' % min(i, 249_998) for i in range(250_000)),
        "32 million numbers": b"[" + b"0," * 32_000_000 + b"0]",
        "an integer of 30 million digits": b"9" * 30_000_000,
        "a float of 30 million digits": b"1." + b"9" * 30_000_000 + b"e999",
    }
    found: dict[str, Bomb] = {}
    for name, content in contents.items():
        found[f"JSON, {name}"] = (lambda c=content: parse_json(c, "x"), 4)  # type: ignore[misc]
    body = b'{"model": "a", "prompt": [' + b'"x",' * 250_000 + b'"x"]}'
    found["request with 250,000 prompts"] = (lambda: parse_completion(body, 4096), 2)
    return found


def of_models(home: Path) -> dict[str, Bomb]:
    found: dict[str, Bomb] = {}

    def add(name: str, change: Callable[[Path], object]) -> None:
        place = make_run(home / str(len(found))) / "model"
        change(place)
        found[f"model, {name}"] = (lambda: load_model(place), 4)

    def header(place: Path, content: bytes, size: int | None = None) -> None:
        length = len(content) if size is None else size
        (place / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content)

    one = '"x":{"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}'
    add("a header of 2^60 bytes", lambda p: header(p, b"{}", 1 << 60))
    add("a header of 2^24 blanks", lambda p: header(p, b"{}" + b" " * ((1 << 24) - 2)))
    add("a tensor of 2^60 bytes", lambda p: header(p, f"{{{one % (1 << 58, 1 << 60)}}}".encode()))
    sizes = ",".join(["4294967296"] * 99)
    add("a tensor of 2^3168 elements", lambda p: header(p, f"{{{one % (sizes, 0)}}}".encode()))
    names = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(200_000)
    )
    add("200,000 empty tensors", lambda p: header(p, f"{{{names}}}".encode()))
    for field, value in (("num_layers", 10**9), ("dim", 10**9), ("vocab_size", 10**15)):
        add(f"{field} {value:.0e}", lambda p, f=field, v=value: forge(p / "config.json", f, v))  # type: ignore[misc]
    add("a config.json of 1 TB", lambda p: os.truncate(p / "config.json", 1 << 40))
    add("weights of 1 TB", lambda p: os.truncate(p / "model.safetensors", 1 << 40))
    return found


def forge(file: Path, field: str, value: Any) -> None:
    """Change a setting of a model, and make its digest again."""
    record = json.loads(file.read_bytes())
    del record["sha256"]
    record["config"][field] = value
    file.write_bytes(with_digest(record))


def of_checkpoints(home: Path) -> dict[str, Bomb]:
    found: dict[str, Bomb] = {}
    for name, change in {
        "a manifest of 1 TB": lambda p: os.truncate(p / checkpoint.MANIFEST, 1 << 40),
        "a state.json of 1 TB": lambda p: os.truncate(p / checkpoint.STATE, 1 << 40),
        "weights of 1 TB": lambda p: os.truncate(p / checkpoint.WEIGHTS, 1 << 40),
    }.items():
        run = make_run(home / str(len(found)))
        place = checkpoint.saved(run / "checkpoints")[-1]
        change(place)
        found[f"checkpoint, {name}"] = (lambda p=place: checkpoint.read(p), 4)  # type: ignore[misc]
    run = make_run(home / "record")
    os.truncate(run / "config.json", 1 << 40)
    found["a run's config.json of 1 TB"] = (lambda: open_run(run), 4)
    return found


def of_settings(home: Path) -> dict[str, Bomb]:
    """Settings in YAML and JSON, and flags."""
    config = RECIPES["add/looped"]()
    laughs = "a: &a [x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "aliases of aliases": laughs,
        "nested 100,000 deep": "model: " + "[" * 100_000,
        "15,000 keys": "model:\n" + "".join(f"  k{i}: 1\n" for i in range(15_000)),
        "a number of 150,000 digits": "model: {dim: " + "9" * 150_000 + "}",
        "a number of 150,000 hexadecimal digits": "model: {dim: 0x" + "f" * 150_000 + "}",
    }
    found: dict[str, Bomb] = {}
    for number, (name, text) in enumerate(texts.items()):
        file = home / f"{number}.yaml"
        file.write_text(text)
        read = lambda f=file: overrides.override(config, [str(f)])  # noqa: E731
        found[f"YAML, {name}"] = (read, 2)
    huge = home / "huge"
    huge.touch()
    os.truncate(huge, 1 << 40)
    found["YAML of 1 TB"] = (lambda: overrides.override(config, [str(huge)]), 2)
    found["published settings of 1 TB"] = (lambda: read_settings(huge), 3)
    found["a flag of 10^30"] = (
        lambda: overrides.override(config, flags=[f"--model.dim={10**30}"]),
        2,
    )
    return found


def of_others(home: Path) -> dict[str, Bomb]:
    """A memory's texts and index, grades of a comparison, a published checkpoint."""
    huge, index = home / "huge", home / "index"
    huge.touch()
    os.truncate(huge, 1 << 40)
    fields = (b"tk lists", 1, 1 << 30, 1 << 40, 1 << 50, 1, 0, 1, 1.0, 0, 0, 0, 0)
    head = struct.pack("<8sII QQQ qQd 4I", *fields).ljust(124, b"\0")
    index.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + bytes(4096))
    out = make_comparison(home)
    grades = out / "runs/looped-0/grades.npz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        head_of_array = io.BytesIO()
        shape = {"descr": "|b1", "fortran_order": False, "shape": (1 << 29,)}
        np.lib.format.write_array_header_1_0(head_of_array, shape)
        with archive.open("steps_1.npy", "w", force_zip64=True) as stream:
            stream.write(head_of_array.getvalue())
            for _ in range(1 << 9):
                stream.write(bytes(1 << 20))
    grades.write_bytes(buffer.getvalue())
    result = grades.with_name("result.json")
    record = json.loads(result.read_bytes())
    del record["sha256"]
    record["grades"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    result.write_bytes(with_digest(record))
    return {
        "text of 1 TB for a memory": (lambda: read_text(huge), 3),
        "index of 2^50 keys": (lambda: read_parts(index), 4),
        "grades of 0.5 GB in 0.5 MB": (lambda: compared.read(out), 4),
    }


if __name__ == "__main__":
    main()
