"""export(run, out): a run as a folder of Hugging Face, with its tokenizer and a model card."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thinkers.errors import DataError, UsageError
from thinkers.export import card
from thinkers.export.checks import refuse_coupled
from thinkers.export.folder import check_folder, write_folder
from thinkers.files import exists, read_file
from thinkers.json_files import LARGEST_JSON, read_json
from thinkers.models.base import Model, settings_digest
from thinkers.models.weights_file import pack
from thinkers.runs.result import Run, RunLike, open_run
from thinkers.tasks import Task
from thinkers.training.reproduce import read_metrics
from thinkers.user_paths import user_path

NAMES = frozenset(
    ("config.json", "generation_config.json", "model.safetensors", "modeling_thinkers.py")
    + ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "README.md")
)
"""Files that an export may have."""


@dataclass(frozen=True)
class Exported:
    """A folder of Hugging Face.

    Args:
        notes: Sentences about what it lacks, and what it needs where it is loaded.
    """

    folder: Path
    model: Model
    notes: list[str] = field(default_factory=list)


def export(run: RunLike, out: str | Path) -> Exported:
    """Write the model of a run, its tokenizer and a card to a folder of Hugging Face.

    An earlier export of this name is replaced as a whole.

    Raises:
        UsageError: transformers is missing, the folder holds other things, or the model cannot
            work there: the positions of its task are not those of the tokens.
        ResourceError: The disk is full; what was there stays.
    """
    from thinkers.hf import from_model
    from thinkers.hf.modeling_file import AUTO_MAP, FILE, modeling_file
    from thinkers.hf.tokenizer import set_generation

    folder = check_folder(out, NAMES, is_export)
    model, task = open_run(run)
    refuse_coupled(task)
    copy = from_model(model).to("cpu")
    copy.config.auto_map, copy.config.architectures = dict(AUTO_MAP), [type(copy).__name__]
    tokenizer, notes = find_tokenizer(task)
    set_generation(copy, task, tokenizer)
    if tokenizer is not None:
        tokenizer.model_max_length = model.config.max_length
    description = card.Description(model, task, tokenizer, scores_of(run), folder.name, notes)
    settings = copy.config.settings
    files = {
        "config.json": copy.config.to_json_string().encode(),
        "generation_config.json": copy.generation_config.to_json_string().encode(),
        "model.safetensors": pack(copy.state_dict(), settings_digest(model.name, settings)),
        FILE: modeling_file(model.name).encode(),
        **tokenizer_files(tokenizer),
        "README.md": card.text(description).encode(),
    }
    write_folder(folder, files, NAMES)
    return Exported(folder, model, card.notes(description))


def is_export(folder: Path) -> bool:
    """Return True if a folder holds the configuration of an export."""
    try:
        return read_json(folder / "config.json", {}, UsageError).get("model_type") == "thinkers"
    except (OSError, UsageError):
        return False


def find_tokenizer(task: Task | None) -> tuple[Any, list[str]]:
    """Return the tokenizer of a task, None if it has none, and the reason why."""
    from thinkers.hf.tokenizer import tokenizer_of

    if task is None:
        return None, ["no tokenizer: the task of a model outside a run is not known"]
    try:
        return tokenizer_of(task), []
    except (UsageError, DataError) as error:
        reason = str(error).partition("\n")[0].removeprefix("found: ")
        return None, [f"no tokenizer: {reason}; task.encode gives the ids"]


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Return the files of a tokenizer by name."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        return {path.name: read_file(path, LARGEST_JSON) for path in sorted(Path(place).iterdir())}


def scores_of(run: RunLike) -> dict[str, float]:
    """Return the scores of a run on the test split; none where it has not been evaluated."""
    if isinstance(run, Run):
        return dict(run.scores)
    if not isinstance(run, str | Path):
        return {}
    folder = user_path(run, "run")
    home = folder if exists(folder / "metrics.jsonl") else folder.absolute().parent
    if not exists(home / "metrics.jsonl"):
        return {}
    tested = [line["test"] for line in read_metrics(home) if "test" in line]
    return tested[-1] if tested else {}
