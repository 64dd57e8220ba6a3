"""The tokens of a task as a tokenizer of Hugging Face: the same ids and the same text."""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from thinkers.data.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer, byte_to_unicode
from thinkers.errors import UsageError, usage_error
from thinkers.tasks import Task
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.text import Text

CHECKED_ROWS = 256
"""Held-out examples whose prompts and rows must have the task's ids and text."""
NO_TEXT_BYTE = 0xFF
"""A byte that no text in UTF-8 has: its token ends and pads texts."""
END_OF_TEXT = "<|endoftext|>"
SPECIAL = {"bos": "<start>", "eos": "<end>", "pad": "<pad>"}
"""Names of the tokens of a task that have no text of their own."""


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a task, which pads on the left.

    It adds the start token, as `task.encode` does. The tokens for the start, the end and padding
    are those of the task; where a vocabulary has none, the tokenizer has none.

    Raises:
        UsageError: A token of the task has not the same text everywhere, so that no tokenizer of
            Hugging Face gives its ids.
    """
    if isinstance(task, Text) and task.tokenizer is not None:
        return _of_text(task.tokenizer)
    rows = list(_rows(task))
    names, special = _names(task, rows)
    for made in _candidates(names):
        found = _wrapped(made, task.start_token, special)
        if _agrees(found, task, rows):
            return found
    raise usage_error(
        f"the tokens of {type(task).__name__}, whose text depends on those beside them",
        "a text of its own for each token: numbers that are read least significant digit first "
        "have none",
        "encode prompts by task.encode, and decode answers by task.decode",
    )


def _of_text(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a text: of characters, bytes or byte pairs."""
    if isinstance(tokenizer, CharacterTokenizer):
        made = _word_level({x: i for i, x in enumerate(tokenizer.characters)})
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
        return _wrapped(made, None, {})
    letter = byte_to_unicode()[NO_TEXT_BYTE]
    if isinstance(tokenizer, BPETokenizer):
        state = json.loads(tokenizer.tokenizer.to_str())
        vocabulary = state["model"]["vocab"]
        vocabulary[END_OF_TEXT] = vocabulary.pop(letter)
        made = tokenizers.Tokenizer.from_str(json.dumps(state))
    else:
        letters = {x: i for i, x in enumerate(byte_to_unicode())}
        letters[END_OF_TEXT] = letters.pop(letter)
        made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    named = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return _wrapped(made, None, named)


def _wrapped(made: Any, start: int | None, special: dict[str, str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with these special tokens, the start token before every text."""
    if start is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{special['bos_token']} $A",
            pair=f"{special['bos_token']} $A $B",
            special_tokens=[(special["bos_token"], start)],
        )
    tokens = {name: AddedToken(x, special=True, normalized=False) for name, x in special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        # By default Hugging Face would ask the model for token_type_ids, and read the names of
        # special tokens in a text as these tokens.
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        **tokens,
    )


def _word_level(vocabulary: dict[str, int]) -> Any:
    """Return a tokenizer that raises an error at a text that has no token."""
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))


def special_ids(task: Task) -> dict[str, int]:
    """Return the tokens of a task that have no text of their own, by role: bos, eos, pad."""
    given = {"bos": task.start_token, "pad": getattr(task, "pad_token", None)}
    if isinstance(task, AnswerTask) and task.max_answer_length() > 1:
        given["eos"] = task.end_token
    found = {role: token for role, token in given.items() if token is not None}
    return {x: token for x, token in found.items() if x == "bos" or not task.decode([token])}


def set_generation(copy: Any, task: Task | None, tokenizer: Any) -> None:
    """Set how `generate` of a model works unless a call says otherwise: as `thinkers.answer` does.

    Args:
        copy: The `ThinkersForCausalLM` of a model.
        tokenizer: Its tokenizer; None if it has none.
    """
    config, model = copy.generation_config, copy.model
    if model.config.takes_steps:
        config.num_thinking_steps = model.config.num_steps
    if tokenizer is not None:
        config.pad_token_id = tokenizer.pad_token_id
    if task is None:
        return
    for role, token in special_ids(task).items():
        setattr(config, f"{role}_token_id", token)
    if task.num_output_tokens < model.config.vocab_size:
        config.suppress_tokens = list(range(task.num_output_tokens, model.config.vocab_size))


def _names(task: Task, rows: list[list[int]]) -> tuple[list[str], dict[str, str]]:
    """Return the name of each token, its text where it has one, and those of special tokens."""
    roles = {token: SPECIAL[role] for role, token in special_ids(task).items()}
    names: list[str] = []
    seen = {token for row in rows for token in row}
    for token in range(task.vocab_size):
        text = task.decode([token])
        is_own = token not in roles and _reads_as(task, text, token, token in seen)
        names.append(text if is_own and text not in names else roles.get(token, f"<{token}>"))
    return names, {f"{role}_token": SPECIAL[role] for role in special_ids(task)}


def _reads_as(task: Task, text: str, token: int, otherwise: bool) -> bool:
    """Return True if the task reads this text as this token.

    Args:
        otherwise: The result for a task that reads only longer texts.
    """
    try:
        return bool(text) and task.without_start(task.encode(text)) == [token]
    except UsageError:
        return otherwise


def _candidates(names: list[str]) -> Iterator[Any]:
    """Yield tokenizers of these names: of characters, of words, of words and marks."""
    fused, lower = decoders.Fuse(), normalizers.Lowercase()
    marks = "[.?,]"

    def split(*patterns: tuple[str, str]) -> Any:
        parts = [pre_tokenizers.Split(Regex(x), behavior) for x, behavior in patterns]
        return pre_tokenizers.Sequence(parts)

    def joined(spaced: str, *replaced: tuple[Any, str]) -> Any:
        """Join by a space before each token that begins so, and replace parts of the result."""
        parts = [decoders.Replace(Regex(f"^{spaced}"), " "), fused, decoders.Strip(" ", 1, 0)]
        return decoders.Sequence([*parts, *(decoders.Replace(*x) for x in replaced)])

    # A name in a text is cut, so that it is no word of the vocabulary.
    name = (r"<(?=\w+>)", "isolated")
    words = split((r"\s+", "removed"), (marks, "isolated"), name)
    ways: list[tuple[Any, Any, Any]] = [
        (split((r"[0-9]+:|[\s\S]", "isolated")), fused, None),
        (split((r"\s+", "removed"), name), joined(""), None),
        (words, joined(f"(?!{marks})"), lower),
        (words, joined(f"(?!{marks})", (", ", ",")), lower),
        (
            split((",", "removed"), ("[0-9]+|[|/=]", "isolated"), name),
            joined("", (Regex("(?<=[0-9]) (?=[0-9])"), ","), (" ", "")),
            None,
        ),
    ]
    for pre_tokenizer, decoder, normalizer in ways:
        made = _word_level({name: token for token, name in enumerate(names)})
        made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
        if normalizer is not None:
            made.normalizer = normalizer
        yield made


def _agrees(found: PreTrainedTokenizerFast, task: Task, rows: list[list[int]]) -> bool:
    """Return True if a tokenizer gives the ids and the text of the task on held-out examples."""
    seen = 0
    for row in rows:
        text = task.decode(row)
        try:
            right = task.encode(text)
        except UsageError:  # the text of a whole row need not be one that the task reads
            continue
        try:
            ids = found(text)["input_ids"]
        except Exception:  # the library raises no narrower error for a word without a token
            return False
        if ids != right or found.decode(ids, skip_special_tokens=True) != task.decode(right):
            return False
        seen += 1
    return seen > 0


def _rows(task: Task) -> Iterator[list[int]]:
    """Yield the prompts, the rows and the sections of held-out examples, without padding."""
    batch = task.batch(0, CHECKED_ROWS, "test")
    parts = [(batch.tokens, batch.prompt_lengths), (batch.tokens, batch.lengths)]
    if batch.sections is not None and batch.section_lengths is not None:
        parts.append((batch.sections.flatten(0, 1), batch.section_lengths.flatten()))
    for rows, ends in parts:
        if ends is not None:
            for row, end in zip(rows.tolist(), ends.tolist(), strict=True):
                yield row[:end]
