"""Updates per second of train(), against a plain loop written for one experiment.

    python benchmarks/training_rate.py [--num_updates 150] [--repeats 7]
    python benchmarks/training_rate.py --recipe shakespeare/decoder --text tinyshakespeare.txt

Both train a decoder in this process on one thread, in turn, with the same layers, optimiser,
batches and log lines; the plain loop calls the layers themselves. Time is process time between the
batch after the warm-up and the last batch, so that neither start nor final save count. The first
losses must agree.

Machine: the ratio depends little on it. Asked: at least 0.95 of the rate of the plain loop. Exit
code 1 if missed. Measured: docs/measured.md.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from harness import one_thread, parser
from torch.nn import functional as F

from thinkers import RECIPES, tasks
from thinkers.config.experiment import Config, build
from thinkers.config.overrides import override
from thinkers.nn.block import causal_attention
from thinkers.training import optim
from thinkers.training.loop import train

WARM_UP = 20
MIN_RATIO = 0.95


def plain(config: Config, folder: Path) -> None:
    """Train a decoder on next tokens, in a loop as one writes it for one experiment."""
    settings = config.training
    torch.manual_seed(settings.seed)
    task, model = build(config)
    tables = {model.embedding.weight}
    answers = model.embedding.weight if config.model.tie_head else model.head.weight
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p not in tables]
    rest = [p for p in model.parameters() if p.ndim < 2 or p in tables]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings.lr, settings.betas, fused=True)
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as log:
        for update in range(settings.num_updates):
            lr = optim.learning_rate(update, settings)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = task.batch(update, settings.batch_size)
            x = model.embedding(batch.tokens)
            table = model.rotary.table(torch.arange(x.shape[1]), x.dtype)
            for block in model.blocks:
                x = block(x, table, causal_attention)
            logits = F.linear(model.norm(x), answers)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (update + 1) % settings.log_every == 0:
                graded = batch.targets != -100
                right = ((logits.argmax(-1) == batch.targets) | ~graded).all(1).float().mean()
                line = {"update": update + 1, "loss": loss.item(), "accuracy": right.item()}
                log.write(json.dumps(line | {"lr": lr, "norm": norm.item()}) + "\n")


def seconds(loop, config: Config, folder: Path) -> float:
    """Process time of a loop from the first batch after the warm-up to the last one."""
    times: list[float] = []
    task = type(tasks.from_config(config.task))
    batch = task.batch

    def timed(self, update, *args):
        times.append(time.process_time())
        return batch(self, update, *args)

    with mock.patch.object(task, "batch", timed):
        loop(config, folder)
    return times[config.training.num_updates - 1] - times[WARM_UP]


def losses(folder: Path) -> list[float]:
    text = (folder / "metrics.jsonl").read_text()
    return [x["loss"] for x in map(json.loads, text.splitlines()) if "loss" in x]


def settings_of(options: argparse.Namespace) -> Config:
    """The recipe with so many updates, and neither evaluation nor saving between them."""
    flags = [] if options.text is None else [f"--task.path={options.text}"]
    recipe = override(RECIPES[options.recipe](), flags=flags)
    training = dataclasses.replace(
        recipe.training,
        num_updates=options.num_updates,
        checkpoint_every=10**9,
        evaluate_every=None,
        evaluate_examples=10,
        device="cpu",
    )
    return dataclasses.replace(recipe, training=training)


def measure(config: Config, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of train() and of the plain loop, in turn, after one warm-up of both."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as root:
        for repeat in range(repeats + 1):
            a, b = Path(root) / f"ours-{repeat}", Path(root) / f"plain-{repeat}"
            # The order alternates too: the second of a pair finds warmer caches.
            if repeat % 2:
                pair = seconds(train, config, a), seconds(plain, config, b)
            else:
                pair = (seconds(plain, config, b), seconds(train, config, a))[::-1]
            # Later on, roundings of sums taken in another order have grown.
            for x, y in zip(losses(a)[:5], losses(b)[:5], strict=True):
                assert abs(x - y) <= 1e-5 * y, f"the loops must train the same, got {x} and {y}"
            if repeat:
                ours.append(pair[0])
                theirs.append(pair[1])
    return ours, theirs


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--num_updates", type=int, default=150)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--recipe", default="add/decoder", help="of a decoder without dropout")
    arguments.add_argument("--text", help="the text of a recipe that needs one")
    options = arguments.parse_args()
    one_thread()
    ours, theirs = measure(settings_of(options), options.repeats)
    updates = options.num_updates - 1 - WARM_UP
    mine, plain_one = statistics.median(ours) / updates, statistics.median(theirs) / updates
    ratio = statistics.median(y / x for x, y in zip(ours, theirs, strict=True))
    print(f"train() {1e3 * mine:.2f} ms, plain loop {1e3 * plain_one:.2f} ms per update")
    print(f"rate of train() / rate of the plain loop: {ratio:.3f} (at least {MIN_RATIO})")
    raise SystemExit(ratio < MIN_RATIO)


if __name__ == "__main__":
    main()
