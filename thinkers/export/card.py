"""The model card of an export: README.md with the equations, code to load it, scores and limits."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from thinkers.errors import ThinkersError
from thinkers.evaluation.generate import steps_for
from thinkers.hf.modeling_file import STANDALONE
from thinkers.models.base import Model
from thinkers.models.memory_option import has_memory
from thinkers.tasks import Task
from thinkers.tasks.state_task import StateTask
from thinkers.tasks.text import Text
from thinkers.version import __version__

NEW_TOKENS = 50
"""New tokens of the example of a model of text."""


@dataclass(frozen=True)
class Description:
    """The parts that a card is written from.

    Args:
        name: The name of the folder.
        lacks: Sentences about what the export lacks.
    """

    model: Model
    task: Task | None
    tokenizer: Any
    scores: dict[str, float]
    name: str
    lacks: list[str] = field(default_factory=list)

    @property
    def example(self) -> str:
        """A prompt that the tokenizer and the task read."""
        if self.task is None:
            return ""
        if isinstance(self.task, Text):
            return text_example(self.task)
        batch = self.task.batch(0, 1, "test")
        end = None if batch.prompt_lengths is None else int(batch.prompt_lengths[0])
        return self.task.decode(batch.tokens[0, :end])


def text_example(task: Text) -> str:
    """Return the beginning of a text in the vocabulary of a task."""
    for text in ("The ", "the ", " "):
        try:
            task.encode(text)
        except ThinkersError:
            continue
        return text
    return task.decode([0])


def text(found: Description) -> str:
    """Return the card."""
    name = found.model.name
    about = "" if found.task is None else f" on {type(found.task).__name__.lower()}"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags: [thinkers, {name}]\n---",
        f"# {name}{about}",
        description(found.model),
        f"Written by the library thinkers {__version__}.",
        "## Load\n\n" + loading(found),
        "## Generate\n\n" + generating(found),
        "## Scores\n\n" + scores(found),
        "## Limits\n\n" + "\n".join(f"- {note[0].upper()}{note[1:]}." for note in limits(found)),
        "## Settings\n\n" + settings(found.model),
    ]
    return "\n\n".join(parts) + "\n"


def description(model: Model) -> str:
    """Return the docstring of a model: its equations and their source."""
    return inspect.cleandoc(type(model).__doc__ or "").partition("\nArgs:")[0].strip()


def notes(found: Description) -> list[str]:
    """Return what the folder lacks, and what it needs where it is loaded."""
    if found.model.name in STANDALONE:
        return list(found.lacks)
    return [*found.lacks, 'loading needs the library: pip install "thinkers[hf]"']


def code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def loading(found: Description) -> str:
    """Return the code that loads the model and its tokenizer."""
    alone = found.model.name in STANDALONE
    classes = ["AutoModelForCausalLM"] + ["AutoTokenizer"] * (found.tokenizer is not None)
    trust = ", trust_remote_code=True" if alone else ""
    lines = [f"from transformers import {', '.join(classes)}", ""]
    if not alone:
        lines[1:1] = ["", "import thinkers.hf"]
    lines += [
        f"folder = {found.name!r}  # this folder, or its name on the Hub",
        f"model = AutoModelForCausalLM.from_pretrained(folder{trust})",
    ]
    if found.tokenizer is not None:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})")
    if alone:
        return code(*lines) + (
            "\n\nThe class is `modeling_thinkers.py` of this folder, which needs torch and "
            "transformers alone. After\n`import thinkers.hf` it is that of the library, without "
            "`trust_remote_code`."
        )
    return code(*lines) + '\n\nThe class is in the library: `pip install "thinkers[hf]"`.'


def generating(found: Description) -> str:
    """Return the code that generates, and how its steps are chosen."""
    model, task, lines = found.model, found.task, []
    number = model.config.num_steps
    if task is not None:
        number = steps_for(model, task.read_prompt(found.example), None) or number
    steps = f", num_thinking_steps={number}" * model.config.takes_steps
    tokens = task.encode(found.example) if task is not None else [0]
    longest = NEW_TOKENS if task is None else task.max_answer_length() or NEW_TOKENS
    new = min(longest, model.config.max_length - len(tokens))
    options = f"{steps}, max_new_tokens={new}"
    if found.tokenizer is not None:
        lines.append(f'prompt = tokenizer({found.example!r}, return_tensors="pt")')
        read = "tokenizer.decode({}, skip_special_tokens=True)"
    else:
        lines += ["import torch", ""]
        lines.append(f'prompt = {{"input_ids": torch.tensor([{tokens}])}}')
        read = "{}.tolist()"
    if reads_positions(task):
        lines.append(f"logits = model(**prompt{steps}).logits")
        after = f"logits[0, {task.num_leading}:].argmax(-1)"  # type: ignore[union-attr]
        lines.append(f"print({read.format(after)})  # the answer at each input")
    elif not model.causal:
        lines.append(f"logits = model(**prompt{steps}).logits")
        lines.append(f"print({read.format('logits[0, -1:].argmax(-1)')})  # the answer")
    else:
        lines.append(f"out = model.generate(**prompt{options})")
        lines.append(f"print({read.format('out[0]')})")
    return code(*lines) + "\n\n" + step_text(model)


def reads_positions(task: Task | None) -> bool:
    """Return True if answers are read at the positions of inputs, by one pass."""
    return isinstance(task, StateTask) and type(task).responses is StateTask.responses


def step_text(model: Model) -> str:
    """Return the numbers of steps that a call may ask for."""
    config, rules = model.config, []
    if not config.takes_steps:
        return "The model takes one step: `num_thinking_steps` is None or 1."
    if "gate" in model.halts_by:
        rules.append("`halt=0.5` lets a token stop once its gate is above it")
    if "answered" in model.halts_by:
        rules.append('`halt="answered"` at its first answer')
    halting = f" {', '.join(rules)}." if rules else ""
    return (
        f"`num_thinking_steps` is in {config.least_steps} .. {config.max_steps}, and "
        f"{config.num_steps} unless a call says otherwise.{halting} Prompts\nof different lengths "
        "are padded on the left, with their `attention_mask`."
    )


def scores(found: Description) -> str:
    """Return the scores of the run as a table."""
    if not found.scores:
        return "Not measured."
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in found.scores.items())
    steps = found.model.config.num_steps
    at = getattr(found.task, "judged_at", None) or f"{steps} step{'s' * (steps != 1)}"
    return f"Of held-out examples, at {at}:\n\n| metric | value |\n|---|---|\n{rows}"


def limits(found: Description) -> list[str]:
    """Return what the folder cannot do that the library can."""
    model, task, config = found.model, found.task, found.model.config
    listed = [
        f"a row has at most {config.max_length} tokens, prompt and new ones together",
        "assisted decoding, static or quantised caches, `inputs_embeds` and `position_ids` are "
        "refused",
        *notes(found),
    ]
    if found.tokenizer is not None and found.tokenizer.pad_token is None:
        listed.append(
            "the vocabulary has no token for padding: for prompts of different lengths set "
            "`tokenizer.pad_token` to any\n  token, whose padding the `attention_mask` hides"
        )
    if model.name == "thinker":
        listed.append(
            "`generate` writes from the end of the prompt; whole rows, with `labels` too, are read "
            f"section by section\n  ({config.section} tokens)"
        )
    if has_memory(model):
        listed.append("its long-term memory is neither read nor written here")
    if "policy" in model.halts_by:
        listed.append("its policy is not asked: every token takes all steps")
    if "gate" in model.halts_by and model.name in STANDALONE:
        listed.append("with `halt`, `modeling_thinkers.py` saves no arithmetic; the library does")
    if task is not None and task.tools:
        listed.append(f"tools are not called: {', '.join(task.tools)}")
    if reads_positions(task):
        listed.append("answers are read by one pass, not generated")
    if task is not None and task.read_prompt(found.example).num_steps is not None:
        listed.append("`num_thinking_steps` is given by the call, although the prompt names it")
    return listed


def settings(model: Model) -> str:
    """Return the settings of a model as a table."""
    rows = sorted(model.config_dict()["config"].items())
    return "| setting | value |\n|---|---|\n" + "\n".join(f"| {x} | {y} |" for x, y in rows)
