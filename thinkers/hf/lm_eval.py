"""Runs in the lm-evaluation-harness: the scores of its tasks at several numbers of steps."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thinkers.checks import check_int
from thinkers.errors import UsageError, nearest, usage_error
from thinkers.hf.modeling import from_model
from thinkers.hf.tokenizer import set_generation, tokenizer_of
from thinkers.models.halt import Halt, check_halt
from thinkers.optional import require
from thinkers.process_state import keep_process_state, quiet_loggers
from thinkers.runs.result import RunLike, open_with_task
from thinkers.user_paths import user_path

require("lm_eval", "eval", "the harness")

import lm_eval  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

SEEDS = (0, 1234)
"""Seeds of the harness: of Python's random stream, and of all others."""
RESAMPLES = 1000
"""Bootstrap samples for the standard errors of metrics that are no means."""


class ThinkersLM(HFLM):
    """The harness's own class for models of Hugging Face, which thinks in every call.

    Args:
        copy: A `ThinkersForCausalLM`.
    """

    def __init__(self, copy: Any, tokenizer: Any, batch_size: int = 16):
        self.num_steps: int | None = None
        self.halt: Halt = None
        if tokenizer.pad_token is None:
            # The harness would add a token that the model lacks; padding is masked, whatever it is.
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        self.has_start = tokenizer.bos_token not in (None, tokenizer.eos_token)
        super().__init__(
            pretrained=copy,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=copy.model.config.max_length,
        )

    def thinking(self) -> dict[str, Any]:
        """Return the arguments of calls of the model and of `generate`."""
        steps = {"num_thinking_steps": self.num_steps}
        return steps if self.halt is None else steps | {"halt": self.halt}

    @property
    def prefix_token_id(self) -> int:
        """The token before a text whose first token is scored.

        Raises:
            UsageError: No text begins with a token that the model has learned to begin from.
        """
        if not self.has_start:
            raise usage_error(
                "a task of the harness with an empty context",
                "a context: the model has learned no start token, and predicts no first token",
                "choose a task with contexts",
            )
        return self.tokenizer.bos_token_id

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a task that names no number: the harness's own, or half of a row."""
        return min(super().max_gen_toks, self.max_length // 2)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **given: Any,
    ) -> list[int]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        try:
            tokens = self.tokenizer.encode(string, **options)
        except Exception:  # the library raises no narrower error for text without a token
            raise usage_error(
                f"the text {string[:60]!r} of the harness, parts of which have no token",
                "text in the vocabulary of the run",
                "train on text that has it, or with --task.vocabulary byte",
            ) from None
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        # Without an end token there is no text at which the harness would stop besides its own.
        return None if tokens is None else super().tok_decode(tokens, skip_special_tokens)

    def _model_call(
        self, inps: Int[Tensor, "b t"], attn_mask: Any = None, labels: Any = None
    ) -> Float[Tensor, "b t v"]:
        with torch.no_grad():
            return self.model(inps, **self.thinking()).logits

    def _model_generate(
        self, context: Int[Tensor, "b t"], max_length: int, stop: list[str], **named: Any
    ) -> Int[Tensor, "b t"]:
        can_be_written = [text for text in stop if self._has_tokens(text)]
        return super()._model_generate(
            context, max_length, can_be_written, **named, **self.thinking()
        )

    def _has_tokens(self, text: str) -> bool:
        try:
            return bool(self.tok_encode(text, add_special_tokens=False))
        except UsageError:
            return False


def evaluate(
    run: RunLike,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    num_steps: Sequence[int] | int | None = None,
    *,
    halt: Halt = None,
    num_examples: int | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Score a run on tasks of the harness: one row for each number of steps.

    A row is {"num_steps": k, "scores": {task: {metric: value}}}, metrics as the harness names them
    ("acc", or "exact_match,FILTER"), with their standard errors ("acc_stderr").

    Args:
        tasks: Names of tasks or groups.
        include_path: A folder with the YAML files of tasks; None means the harness's own tasks,
            whose data it downloads.
        num_steps: None means all in `model.step_counts`.
        halt: Let tokens halt before `num_steps`: see `thinkers.models.halt`.
        num_examples: The most documents of a task; None means all.

    Raises:
        UsageError: There is no such task, or the tokens of the run have no tokenizer.
    """
    model, own = open_with_task(run)
    halt = check_halt(model, halt)
    asked = [num_steps] if isinstance(num_steps, int) else num_steps
    found = (model.check_steps(k) for k in (model.step_counts if asked is None else asked))
    counts = list(dict.fromkeys(found))  # a number that is given twice is one row
    if num_examples is not None:
        check_int("num_examples", num_examples, 1)
    tokenizer = tokenizer_of(own)
    copy = from_model(model)
    set_generation(copy, own, tokenizer)
    rows = []
    # It warns that the model was not loaded by itself.
    quiet = quiet_loggers("lm_eval", level=logging.ERROR)
    with keep_process_state(), _kept_streams(), quiet:
        loaded = load_tasks(tasks, include_path)
        harness = ThinkersLM(copy, tokenizer, batch_size)
        harness.halt = halt
        for harness.num_steps in counts:
            _seed()
            found = lm_eval.evaluate(
                lm=harness,
                task_dict=loaded,
                limit=num_examples,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
            )
            scores = {task: metrics(values) for task, values in found["results"].items()}
            rows.append({"num_steps": harness.num_steps, "scores": scores})
            if halt is not None:
                rows[-1]["halt"] = halt
    return rows


def load_tasks(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """Load tasks from a folder, or without one those of the harness.

    Raises:
        UsageError: There is no such folder, or it has no such task.
    """
    if not tasks or not all(tasks):
        raise usage_error(
            f"tasks {list(tasks)} of the harness, " + ("one without a name" if tasks else "none"),
            "names of tasks; --harness A B on the command line",
            "lm_eval ls tasks lists its own; --include_path names a folder of others",
        )
    folder = None if include_path is None else user_path(include_path, "include_path")
    if folder is not None and not folder.is_dir():
        raise usage_error(
            f"include_path {include_path}, which is no folder",
            "a folder with the YAML files of tasks",
            "change it",
        )
    path = None if folder is None else str(folder)
    # Its own tasks are thousands of files, which take seconds to index.
    manager = TaskManager(include_path=path, include_defaults=folder is None)
    for name in tasks:
        if name not in manager.all_tasks:
            raise usage_error(
                f"unknown task {name!r} of the harness",
                nearest(name, manager.all_tasks) if manager.all_tasks else f"a task in {path}",
                "lm_eval ls tasks lists its own; --include_path names a folder of others",
            )
    loaded = manager.load(list(tasks))
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS[-1])
    return loaded


def _seed() -> None:
    """Set the random streams to the harness's own seeds."""
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[1])


def metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a task's results; "acc,none" is named acc."""
    found = {}
    for name, value in values.items():
        if isinstance(value, int | float) and "," in name:
            found[name.removesuffix(",none")] = float(value)
    return found


@contextmanager
def _kept_streams() -> Iterator[None]:
    """Give the random streams of Python and numpy back, which the harness sets."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
