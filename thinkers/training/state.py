"""TrainState: everything that changes in training, and so the content of a checkpoint.

It holds no state of random generators: batches, thinking steps and dropout are functions of the
seed and the update, so that a restored state continues bit for bit.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from thinkers import models
from thinkers.checks import first_not_finite
from thinkers.config.conflicts import conflicts, training_conflicts
from thinkers.config.experiment import PLANNED, Config, resolve_sizes, task_of
from thinkers.distillation.guide import load_guide
from thinkers.errors import DamagedError, NonFiniteError, UsageError, join_errors, usage_error
from thinkers.files import is_folder
from thinkers.models.base import Model
from thinkers.models.weights_file import check_shapes, shapes_of
from thinkers.policies.rollout import keys_of, question_room
from thinkers.problems import Collector
from thinkers.runs.checkpoint import Checkpoint
from thinkers.runs.result import load, weights_digest
from thinkers.strict_json import Schema, check_schema
from thinkers.tasks import Task
from thinkers.training import optim, sharding
from thinkers.user_paths import user_path

SCHEMA: Schema = {
    "minutes": (float, int),
    "flops": int,
    "best": (float, int, NoneType),
    "task": dict,
    "config": dict,
}
"""The values of a checkpoint beside its tensors."""


@dataclass
class TrainState:
    """The state of a training after `update` updates.

    Args:
        config: The configuration, with the sizes of the model resolved.
        average: The exponential moving average (EMA) of the weights, if the settings ask for one.
        minutes: Wall-clock minutes of training, over all resumes; scoring in between included.
        flops: Floating-point operations of all updates.
        best: The best score so far on the validation split; higher is better.
        guide: The model that guides this one, if the settings name one; it does not change.
    """

    config: Config
    model: Model
    average: Model | None
    optimizers: list[torch.optim.Optimizer]
    task: Task
    update: int = 0
    minutes: float = 0.0
    flops: int = 0
    best: float | None = None
    guide: Model | None = None
    parameters: list[torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())

    @classmethod
    def new(
        cls, config: Config, task: Task, model: Model, is_sharded: bool = False
    ) -> "TrainState":
        """Return the state before the first update; precision and device of the model are set."""
        settings = config.training
        average = copy.deepcopy(model) if settings.ema is not None else None
        if is_sharded:
            for one in (model,) if average is None else (model, average):
                sharding.shard(one)
        config = replace(config, model=model.config)
        policy_lr = None if config.reinforce is None else config.reinforce.lr
        optimizers = optim.build(model, settings, policy_lr)
        guide = None if config.grow is None else load_guide(config.grow, task, model)
        return cls(config, model, average, optimizers, task, guide=guide)

    @property
    def result(self) -> Model:
        """The model to score and to keep: the average, if there is one; all ranks ask together."""
        return sharding.whole(self.model if self.average is None else self.average)

    def state_dict(self) -> Checkpoint:
        """Return the content of a checkpoint.

        Raises:
            NonFiniteError: A tensor is infinite or not a number, so the checkpoint would be
            useless.
        """
        tensors = {kind: model.state_dict() for kind, model in self._models().items()}
        tensors["optimizer"] = optim.state_dict(self.optimizers, self.model)
        tensors = {
            kind: {name: sharding.gathered(x) for name, x in some.items()}
            for kind, some in tensors.items()
        }
        for kind, some in tensors.items():
            if (name := first_not_finite(some)) is not None:
                raise NonFiniteError(
                    f"update {self.update}: {name} of {kind} is not finite; nothing is saved, and "
                    f"earlier saves are intact"
                )
        values = {
            "minutes": self.minutes,
            "flops": self.flops,
            "best": self.best,
            "task": self.task.state_dict(),
            "config": self.config.to_dict(),
        }
        return Checkpoint(self.update, tensors, values)

    def _models(self) -> dict[str, Model]:
        """Return the model, and its average if there is one, by their names in a checkpoint."""
        average = {} if self.average is None else {"ema": self.average}
        return {"weights": self.model, **average}

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            DamagedError: The checkpoint was made with other settings, or lacks a part.
        """
        values = checkpoint.state
        check_schema(values, SCHEMA, f"the state of update {checkpoint.update}")
        changed = self.config.changes(Config.from_dict(values["config"]))
        for name in changed.keys() - set(PLANNED):
            raise DamagedError(f"config.json of the run has another {name} than its checkpoints")
        for kind, model in self._models().items():
            if kind not in checkpoint.tensors:
                raise DamagedError(f"the checkpoint of update {checkpoint.update} lacks {kind}")
            found = checkpoint.tensors[kind]
            where = f"{kind} of update {checkpoint.update}"
            check_shapes(shapes_of(found), shapes_of(model.state_dict()), where)
            sharding.load_weights(model, found)
        optim.load_state_dict(self.optimizers, self.model, dict(checkpoint.tensors["optimizer"]))
        self.task.load_state_dict(values["task"])
        self.update = checkpoint.update
        self.minutes, self.flops, self.best = values["minutes"], values["flops"], values["best"]


def build_on(
    device: torch.device, config: Config, initialize: bool, run: Path | None = None
) -> tuple[Task, Model]:
    """Build the task and the model on `device`, and check that they can be trained together.

    Args:
        initialize: Load `training.init_from`, if it is set; not needed if a checkpoint follows.
        run: The run that is resumed.

    Raises:
        UsageError: The settings do not fit each other.
    """
    settings = config.training
    # The initial weights are a function of the seed: models are built on the CPU, with the numbers
    # of this generator.
    torch.default_generator.manual_seed(settings.seed)
    task = task_of(config, run)
    problems = Collector()
    with problems:
        sized = resolve_sizes(config.model, task)
    if problems.found:
        raise join_errors(conflicts(config, task))
    model = models.from_config(sized).to(device)
    problems.found += training_conflicts(config, task, model, settings.batch_size)
    problems.raise_all()
    check_questions(config, task)
    if initialize and settings.init_from is not None:
        load_initial_weights(model, settings.init_from)
    return task, model


def check_questions(config: Config, task: Task) -> None:
    """Raise a UsageError unless a batch can train the policy, if the settings ask for one."""
    if config.reinforce is None:
        return
    batch = task.batch(0, config.training.batch_size)
    question_room(batch)
    keys_of(batch)


def initial_weights(folder: str | None, record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the record of a run keeps of the weights in `folder`, with which it begins.

    Raises:
        UsageError: It began with others: whoever trained them has trained them further.
    """
    digest = None if folder is None else weights_digest(folder)
    if digest is None:
        return {}
    if record.get("initial_weights", digest) != digest:
        raise usage_error(
            f"{folder}, whose weights have changed since the run began with them",
            "the same weights: without them the run would be another one",
            "put them back, or train a new run from these",
        )
    return {"initial_weights": digest}


def load_initial_weights(model: Model, folder: str) -> None:
    """Load the weights of a model folder, or of a run, into `model`.

    Raises:
        UsageError: There is no such folder, or its weights have other names or shapes.
    """
    if not is_folder(user_path(folder, "training.init_from")):
        raise usage_error(
            f"--training.init_from {folder}",
            "the folder that Model.save wrote, or that of a run",
            "change --training.init_from",
        )
    given = load(folder).state_dict()
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | given.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (wanted, given)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"init_from must hold the weights of this model: {name} must have shape "
                f"{shapes[0]}, got {shapes[1]} in {folder}"
            )
    model.load_state_dict(given)
