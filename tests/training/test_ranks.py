"""Data parallelism: several ranks have the losses of one process, and one of them writes."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from paths import ROOT

from thinkers.training.loop import resume

SCRIPT = """
import os
import sys
from thinkers.config.experiment import Config
from thinkers.models import MODELS
from thinkers.tasks import TASKS
from thinkers.config.training import Training
from thinkers.training import loop
precision, accumulation, folder, *fails = sys.argv[1:]
settings = Training(
    num_updates=8, batch_size=12, accumulation=int(accumulation), warmup_updates=3, log_every=1,
    checkpoint_every=3, evaluate_examples=3, device="cpu", precision=precision, lr=1e-2,
    depth="fixed" if "{model}" == "decoder" else "random",
    random_steps=None if "{model}" == "decoder" else (1, 3),
)
task = TASKS["add"].Config(max_digits=2, curriculum=True, window=12, threshold=0.05)
config = Config.fit(MODELS["{model}"], task, settings, dim=8, num_layers=1, num_heads=2)
if fails:
    step = loop.step

    def failing(state, *rest):
        if os.environ["RANK"] == fails[0] and state.update == 7:
            raise RuntimeError("a fault of this rank")
        return step(state, *rest)

    loop.step = failing
loop.train(config, folder, callbacks=[lambda state, result: print("called", result.update)])
"""


def start(*command: object, **variables: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment | {name: str(value) for name, value in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FORKS = """
import os, runpy, sys
import torch._dynamo  # the first optimiser of a process imports it
import thinkers.training.loop
outputs, number, *sys.argv = sys.argv[1:]
ranks = []
for rank in map(str, range(int(number))):
    ranks.append(os.fork())
    if not ranks[-1]:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = rank
        with open(os.path.join(outputs, rank), "w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        runpy.run_path(sys.argv[0])
        sys.exit()
print([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks])
"""
"""Ranks that are forks of one process, which imports for all of them, and then their codes."""


def start_ranks(number: int, outputs: Path, *command: object) -> subprocess.Popen[str]:
    """Start ranks as torchrun does, without its start-up time; each prints into `outputs`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = dict(WORLD_SIZE=number, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return start("-c", FORKS, outputs, number, *command, **shared)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def losses(folder: Path, name: str = "loss") -> list[float]:
    text = (folder / "metrics.jsonl").read_text()
    return [x[name] for x in map(json.loads, text.splitlines()) if "loss" in x]


def test_two_ranks_have_the_losses_of_one_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{model}", "looped"))
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    ranks = start_ranks(2, outputs, script, "float64", 3, tmp_path / "two", 1)
    arguments = [str(script), "float64", "1", str(tmp_path / "one")]
    with mock.patch.object(sys, "argv", arguments):
        runpy.run_path(str(script))
    assert finish(ranks) == "[1, 1]\n"
    first, second = ((outputs / rank).read_text() for rank in "01")
    assert first.count("saved update=3") == 1 and "a fault of this rank" in second
    assert "saved update" not in second
    assert len(re.findall(r"^called \d", first, re.M)) == 7  # the first rank alone
    one = losses(tmp_path / "one")[:7]
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-12, abs=0)
    shares = [losses(tmp_path / folder, "token_accuracy")[:7] for folder in ("one", "two")]
    assert shares[1] == pytest.approx(shares[0], rel=1e-12, abs=0)
    assert 0 < max(shares[0]) < 1

    # The second rank fails after update 7, and the first one because of it.
    file = tmp_path / "two" / "status.json"
    assert json.loads(file.read_text()) == {
        "code": 1,
        "rank": 1,
        "step": 7,
        "message": "RuntimeError: a fault of this rank",
    }
    assert not [x.name for x in file.parent.iterdir() if x.suffix == ".tmp"]
    resume(tmp_path / "two")
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("model", ["decoder", "looped", "thinker"])
def test_two_ranks_of_torchrun_have_the_losses_of_one_process(
    tmp_path, precision, tolerance, model
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{model}", model))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    output = finish(start(*launcher, script, precision, 2, tmp_path / "two"))
    assert output.count("saved update=3") == 1, output
    finish(start(script, precision, 1, tmp_path / "one"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=tolerance, abs=0)
