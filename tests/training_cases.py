"""Configurations of trainings that take a moment, and readers of their metrics."""

import json
from pathlib import Path

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models import MODELS
from thinkers.tasks import TASKS

QUICK = dict(
    num_updates=11,
    batch_size=6,
    warmup_updates=3,
    checkpoint_every=2,
    keep_last=50,
    evaluate_examples=3,
    log_every=1,
    device="cpu",
)


def make(model="decoder", task=None, settings=None, **own) -> Config:
    task = TASKS["copy"].Config(max_length=3) if task is None else task
    own = dict(dim=8, num_layers=1, num_heads=2) | own
    return Config.fit(MODELS[model], task, Training(**(QUICK | (settings or {}))), **own)


def lines(folder: Path, kind: str = "loss") -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in line]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder)]
