"""ablate(run): measure the loss of the primary metric when the thoughts of a model are replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
from thinkers.tasks.base import check_split, example_groups
from thinkers.user_paths import output_file

CALLS = ("answer", "forward", "generate", "loss", "score")
"""Methods of a model that a task may call; in each call all thoughts are replaced."""

Chain = list[Float[Tensor, "b n c"]]
"""The thoughts of one forward pass, in the order of their steps."""


def zeros(chain: Chain, step: int, rng: torch.Generator) -> Tensor:
    """Replace each thought by zeros."""
    return torch.zeros_like(chain[step])


def others(chain: Chain, step: int, rng: torch.Generator) -> Tensor:
    """Replace each thought by that of the example before it in the batch."""
    if len(chain[step]) < 2:
        raise usage_error(
            "a batch of one example, which has no other example to take thoughts from",
            "batches of at least two",
            "change the number of examples",
        )
    return chain[step].roll(1, 0)


def noise(chain: Chain, step: int, rng: torch.Generator) -> Tensor:
    """Draw from a normal distribution with the mean and standard deviation of each coordinate."""
    flat = chain[step].flatten(0, 1)
    drawn = torch.randn(chain[step].shape, generator=rng, dtype=torch.float64)
    drawn = drawn.to(chain[step]) * flat.std(0, correction=0) + flat.mean(0)
    return drawn


def shuffled(chain: Chain, step: int, rng: torch.Generator) -> Tensor:
    """Replace each thought by that of another step of the same example."""
    order = torch.randperm(len(chain), generator=torch.Generator().manual_seed(0)).tolist()
    if order == sorted(order):
        order.reverse()
    return chain[order[step]]


REPLACEMENTS: dict[str, Callable[[Chain, int, torch.Generator], Tensor]] = {
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
    """Measure how much the primary metric falls when the thoughts of a run are replaced.

    The 99 % intervals are over paired held-out questions: they hold for these weights and other
    questions, not for other seeds.

    Args:
        run: A run, its folder, or (model, task).
        num_steps: Thinking steps; None means those that the task is judged by, due steps or the
            configured number.
        out: Path of an HTML page to write; None writes none.

    Raises:
        UsageError: The model has no thought to replace.
    """
    check_split(split)
    check_int("num_examples", num_examples, 2)
    target = None if out is None else output_file(out)
    model, task = open_with_task(run)
    steps = model.check_steps(num_steps)
    num_thoughts = count_thoughts(model, steps)
    if not num_thoughts:
        raise usage_error(
            f"{model.name} at {steps} step{'s' * (steps != 1)}, which has no thought to replace",
            "a model with a thought between its input and its answer",
            "use another model, or more steps",
        )
    is_due = num_steps is None and task.judged_at == "due"
    judged: int | Literal["due"] = "due" if is_due else steps
    own = task.grade(model, split, num_examples, judged).numpy()
    questions = example_groups(task, split, num_examples, own)
    effects = []
    for name in REPLACEMENTS:
        if name == "shuffled steps" and num_thoughts < 2:
            continue
        grades = task.grade(ReplacedThoughts(model, name), split, num_examples, judged).numpy()  # type: ignore
        better, worse = (own, grades) if task.higher_is_better else (grades, own)
        loss = difference(better, worse, questions)
        effects.append(Effect(name, float(grades.mean()), loss))
    found = Ablation(
        model.name, task.primary_metric, float(own.mean()), judged, len(own), tuple(effects)
    )
    if target is not None:
        write(target, ablation=found)
    return found


def count_thoughts(model: Model, num_steps: int) -> int:
    """Count the thoughts of one forward pass."""
    device = next(model.parameters()).device
    row = torch.zeros(1, 2, dtype=torch.int64, device=device)
    found = []

    def keep(thought: Tensor, step: int) -> Tensor:
        found.append(step)
        return thought

    with eval_mode(model), model.replace_thoughts(keep):
        model(row, num_steps=num_steps, prompt_lengths=torch.ones_like(row[:, 0]))
    return len(found)


class ReplacedThoughts:
    """A model whose thoughts are replaced in every call.

    Args:
        replacement: A name in REPLACEMENTS.
    """

    def __init__(self, model: Model, replacement: str):
        self.model, self.replacement = model, replacement
        self.rng = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.model, name)
        return self._twice(found) if name in CALLS else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._twice(self.model)(*args, **kwargs)

    def _twice(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Call once to record the thoughts, and again with others in their place."""

        def made(*args: Any, **kwargs: Any) -> Any:
            chains: list[Chain] = []
            last_step = -1

            def keep(thought: Tensor, step: int) -> Tensor:
                nonlocal last_step
                if not chains or step <= last_step:  # one call may run several forward passes
                    chains.append([])
                last_step = step
                chains[-1].append(thought.detach())
                return thought

            with self.model.replace_thoughts(keep):
                call(*args, **kwargs)
            order = iter([(number, i) for number, t in enumerate(chains) for i in range(len(t))])

            def put(thought: Tensor, step: int) -> Tensor:
                number, i = next(order)
                return REPLACEMENTS[self.replacement](chains[number], i, self.rng)

            with self.model.replace_thoughts(put):
                return call(*args, **kwargs)

        return made
