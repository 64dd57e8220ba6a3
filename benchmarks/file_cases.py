"""Files of runs, models, comparisons, indexes and ledgers, and changes of them to be read.

"forged" files have values that were changed and a digest that fits. Nothing here runs by itself.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from mutations import BYTES, JSON, change_bytes, change_value

import thinkers
from thinkers.comparison import results
from thinkers.comparison.subprocesses import last_progress
from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.errors import DamagedError
from thinkers.json_files import with_digest
from thinkers.memory.list_files import read_parts
from thinkers.memory.lists import Lists
from thinkers.models import load_model
from thinkers.models.weights_file import read_header, read_tensors
from thinkers.published.unpickle import read_weights
from thinkers.research.ledger import INTERVALS, LEDGER, Ledger
from thinkers.runs import checkpoint
from thinkers.runs.metrics import read_kept
from thinkers.runs.result import open_run


class Slow(BaseException):
    """A case takes too long."""


@dataclass(frozen=True)
class Case:
    """Something to parse.

    Args:
        must_be_refused: It has changed, and its digest tells.
    """

    content: bytes
    parse: Callable[[], Any]
    must_be_refused: bool = False


Draw = Callable[[Random], Case]


def make_run(folder: Path) -> Path:
    """Train a small model for two updates."""
    settings = Training(
        num_updates=2, checkpoint_every=1, evaluate_examples=2, batch_size=3, seed=0
    )
    task = thinkers.TASKS["add"].Config(max_digits=1)
    config = Config.fit(thinkers.MODELS["looped"], task, settings, dim=8, num_layers=1, num_heads=2)
    return thinkers.train(config, folder / "run").folder


def of_file(file: Path, parse: Callable[[], Any], tokens: Sequence[bytes] = BYTES) -> Draw:
    """Return cases of a file with a digest, which must be refused once a byte has changed."""
    intact = file.read_bytes()

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, [intact], tokens)
        file.write_bytes(content)
        return Case(content, parse, content != intact)

    return draw


def of_forged(file: Path, parse: Callable[[], Any]) -> Draw:
    """Return cases of a JSON file whose values have changed and whose digest fits."""
    intact = json.loads(file.read_bytes())
    intact.pop("sha256")

    def draw(rng: Random) -> Case:
        value = change_value(rng, intact)
        try:
            content = with_digest(value)
        except (TypeError, ValueError):  # no object, or not of JSON
            content = json.dumps(value).encode()
        file.write_bytes(content)
        return Case(content, parse)

    return draw


def checkpoints(folder: Path) -> Draw:
    """Any file of a checkpoint, in turn."""
    path = checkpoint.saved(make_run(folder) / "checkpoints")[-1]
    intact = {x.name: x.read_bytes() for x in path.iterdir()}

    def draw(rng: Random) -> Case:
        name = rng.choice(sorted(intact))
        for other, content in intact.items():
            (path / other).write_bytes(content)
        content = change_bytes(rng, [intact[name]], JSON)
        (path / name).write_bytes(content)
        return Case(content, lambda: checkpoint.read(path), content != intact[name])

    return draw


def forged_tensors(folder: Path) -> Draw:
    """Files of tensors that no digest protects."""
    path = checkpoint.saved(make_run(folder) / "checkpoints")[-1] / checkpoint.WEIGHTS
    intact, file = path.read_bytes(), folder / "x.safetensors"
    size = 8 + int.from_bytes(intact[:8], "little")

    def parse() -> None:
        with suppress(DamagedError):
            read_header(file)
        with suppress(DamagedError):
            read_tensors(file)
        read_weights(file)

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, [intact])
        if rng.random() < 0.5:
            header = json.dumps(change_value(rng, json.loads(intact[8:size]))).encode()
            content = len(header).to_bytes(8, "little") + header + intact[size:]
        file.write_bytes(content)
        return Case(content, parse)

    return draw


def forged_manifest(folder: Path) -> Draw:
    path = checkpoint.saved(make_run(folder) / "checkpoints")[-1]
    return of_forged(path / checkpoint.MANIFEST, lambda: checkpoint.read(path))


def metrics(folder: Path) -> Draw:
    """What a checkpoint knows of metrics.jsonl, and the end of a log."""
    file = folder / "metrics.jsonl"
    intact = b"".join(b'{"update": %d, "loss": 1.5}\n' % i for i in range(30))
    kept = {"size": len(intact), "sha256": hashlib.sha256(intact).hexdigest()}

    def parse() -> None:
        last_progress(file)
        read_kept(file, kept)

    def draw(rng: Random) -> Case:
        content = change_bytes(rng, [intact + b'{"update": 31', b"update 3/9  loss 1"], JSON)
        file.write_bytes(content)
        return Case(content, parse, not content.startswith(intact))

    return draw


def record(folder: Path) -> Draw:
    run = make_run(folder)
    return of_file(run / "config.json", lambda: open_run(run), JSON)


def forged_record(folder: Path) -> Draw:
    run = make_run(folder)
    return of_forged(run / "config.json", lambda: open_run(run))


def model_config(folder: Path) -> Draw:
    place = make_run(folder) / "model"
    return of_file(place / "config.json", lambda: load_model(place), JSON)


def forged_model_config(folder: Path) -> Draw:
    place = make_run(folder) / "model"
    return of_forged(place / "config.json", lambda: load_model(place))


def make_comparison(folder: Path) -> Path:
    settings = {"max_digits": 1}
    flags = {f"task.{name}": value for name, value in settings.items()}
    flags |= {"model.dim": 8, "model.num_layers": 1, "model.num_heads": 2, "training.batch_size": 3}
    models = ["decoder", "looped"]
    out = folder / "compared"
    thinkers.compare(
        "add", models, budget="2 updates", seeds=1, settings=flags, out=out, num_examples=3
    )
    return out


def comparison(folder: Path) -> Draw:
    """Any file that a comparison reads, in turn."""
    out = make_comparison(folder)
    names = ("config.json", "runs/looped-0/result.json", "runs/looped-0/grades.npz")
    draws = [of_file(out / name, lambda: results.read(out), JSON) for name in names]
    intact = {name: (out / name).read_bytes() for name in names}

    def draw(rng: Random) -> Case:
        for name, content in intact.items():
            (out / name).write_bytes(content)
        return rng.choice(draws)(rng)

    return draw


def forged_plan(folder: Path) -> Draw:
    out = make_comparison(folder)
    return of_forged(out / "config.json", lambda: results.read(out))


def index(folder: Path) -> Draw:
    """The file of an index of a memory."""
    keys = torch.nn.functional.normalize(torch.randn(90, 8), dim=1).half()
    Lists.build(keys.numpy(), np.arange(90), num_lists=3).save(folder / "index")
    return of_file(folder / "index", lambda: read_parts(folder / "index"))


def ledger(folder: Path) -> Draw:
    """The ledger of a search: changed bytes, and forged values."""
    meta = {"recipe": "add/looped", "minutes": 1.0, "metric": "exact"}
    made = Ledger.create(folder, meta | {"task_flags": [], "higher_is_better": True})
    for base in (None, 1, 2):
        number = made.begin(base, "0" * 64, {"flags": ["--a=1"], "files": []}, "first", 0)
        made.end(number, "keep", {"metric": 0.5, "seconds": 60.0})
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    made.judge({"seeds": 3, "first": 1, "best": 3} | dict.fromkeys(INTERVALS, interval))
    made.close()
    intact = (folder / LEDGER).read_bytes()

    def parse() -> None:
        with Ledger(folder) as found:
            [x.metric for x in found.experiments()]
            found.chain(found.best())
            found.judgement()

    def draw(rng: Random) -> Case:
        file = folder / LEDGER
        file.write_bytes(intact)
        if rng.random() < 0.5:
            forge(file, rng)
        else:
            file.write_bytes(change_bytes(rng, [intact]))
        return Case(file.read_bytes(), parse)

    return draw


def forge(file: Path, rng: Random) -> None:
    """Change some values of a database."""
    columns = {
        "experiment": ("id", "base", "digest", "change", "seed", "started", "status", "result"),
        "meta": ("name", "value"),
        "judgement": ("made", "result"),
    }
    texts = ("[]", "{}", "null", '{"metric": "x"}', '{"flags": 1}', "[" * 9999, "keep", "discard")
    values = (*texts, None, 0, 1, 2, 3, -1, 2**62, 1.5, "", b"\xff", "x" * 99)
    db = sqlite3.connect(file, isolation_level=None)
    with suppress(sqlite3.Error):
        for _ in range(rng.choice((1, 1, 2))):
            table = rng.choice(sorted(columns))
            column, row = rng.choice(columns[table]), rng.randrange(1, 4)
            where = "" if rng.random() < 0.2 else f" WHERE rowid = {row}"
            db.execute(f"UPDATE {table} SET {column} = ?{where}", (rng.choice(values),))
    db.close()
