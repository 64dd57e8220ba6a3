"""ablate(run): does the thought matter? What a model loses when other thoughts take its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import usage_error
from thinkers.evaluation.statistics import difference
from thinkers.inspection.page import write
from thinkers.inspection.results import Ablation, Effect
from thinkers.models.base import Model
from thinkers.models.generation import eval_mode
from thinkers.runs.result import RunLike, open_with_task
from thinkers.tasks import SPLITS
from thinkers.tasks.base import example_groups

CALLS = ("answer", "forward", "generate", "loss", "score")
"""What a task may call of a model: in each, all thoughts are replaced anew."""

Train = list[Float[Tensor, "b n c"]]
"""The thoughts of one pass, in the order of their steps."""


def zeros(train: Train, step: int, rng: torch.Generator) -> Tensor:
    return torch.zeros_like(train[step])


def others(train: Train, step: int, rng: torch.Generator) -> Tensor:
    if len(train[step]) < 2:
        raise usage_error(
            "an example that is judged alone, so that there is no other to take thoughts from",
            "batches of at least two",
            "change the number of examples",
        )
    return train[step].roll(1, 0)


def noise(train: Train, step: int, rng: torch.Generator) -> Tensor:
    flat = train[step].flatten(0, 1)
    drawn = torch.randn(train[step].shape, generator=rng, dtype=torch.float64)
    drawn = drawn.to(train[step]) * flat.std(0, correction=0) + flat.mean(0)
    return drawn


def shuffled(train: Train, step: int, rng: torch.Generator) -> Tensor:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    if order == sorted(order):
        order.reverse()
    return train[order[step]]


WAYS: dict[str, Callable[[Train, int, torch.Generator], Tensor]] = {
    "zeros": zeros,
    "another example's": others,
    "noise": noise,
    "shuffled steps": shuffled,
}


def ablate(
    run: RunLike,
    num_steps: int | None = None,
    num_examples: int = 2000,
    split: str = "test",
    out: str | Path | None = None,
) -> Ablation:
    """What the primary metric of a run loses when its thoughts are replaced, on held-out examples.

    The intervals are of 99 %, over questions in pairs: of these weights, had other questions been
    held out.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: How many steps to think; None is what the model usually takes.
        out: Where a page goes that shows it, one HTML file.
    """
    if split not in SPLITS:
        raise usage_error(f"split {split!r}", ", ".join(SPLITS), "choose one")
    check_int("num_examples", num_examples, 2)
    model, task = open_with_task(run)
    steps = model.check_steps(num_steps)
    handed = thoughts_of(model, steps)
    if not handed:
        raise usage_error(
            f"{model.name} at {steps} step{'s' * (steps != 1)}, which hands no thought on",
            "a model with a thought between its input and its answer",
            "inspect another model, or more steps",
        )
    own = task.grade(model, split, num_examples, steps).numpy()
    questions = example_groups(task, split, num_examples, own)
    effects = []
    for way in WAYS:
        if way == "shuffled steps" and handed < 2:
            continue
        grades = task.grade(Altered(model, way), split, num_examples, steps).numpy()  # type: ignore
        better, worse = (own, grades) if task.higher_is_better else (grades, own)
        lost = difference(better, worse, questions)
        effects.append(Effect(way, float(grades.mean()), lost))
    found = Ablation(
        model.name, task.primary_metric, float(own.mean()), steps, len(own), tuple(effects)
    )
    if out is not None:
        write(out, ablation=found)
    return found


def thoughts_of(model: Model, num_steps: int) -> int:
    """How many thoughts the model hands on in one pass."""
    device = next(model.parameters()).device
    row = torch.zeros(1, 2, dtype=torch.int64, device=device)
    found = []

    def keep(thought: Tensor, step: int) -> Tensor:
        found.append(step)
        return thought

    with eval_mode(model), model.replace_thoughts(keep):
        model(row, num_steps=num_steps, prompt_lengths=torch.ones_like(row[:, 0]))
    return len(found)


class Altered:
    """A model whose thoughts are replaced in every call, by way of those that it would have."""

    def __init__(self, model: Model, way: str):
        self.model, self.way = model, way
        self.rng = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.model, name)
        return self._twice(found) if name in CALLS else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._twice(self.model)(*args, **kwargs)

    def _twice(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, made to see its thoughts and again with others in their place."""

        def made(*args: Any, **kwargs: Any) -> Any:
            trains: list[Train] = []
            place: list[tuple[int, int]] = []

            def keep(thought: Tensor, step: int) -> Tensor:
                if not place or step <= place[-1][1]:
                    trains.append([])
                place.append((len(trains) - 1, step))
                trains[-1].append(thought.detach())
                return thought

            with self.model.replace_thoughts(keep):
                call(*args, **kwargs)
            order = iter([(number, i) for number, t in enumerate(trains) for i in range(len(t))])

            def put(thought: Tensor, step: int) -> Tensor:
                number, i = next(order)
                return WAYS[self.way](trains[number], i, self.rng)

            with self.model.replace_thoughts(put):
                return call(*args, **kwargs)

        return made
