"""Next-token prediction on a text: a UTF-8 file, a folder of them, or a data set."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import NOT_CAUSAL, check_int
from thinkers.data.sources import (
    Source,
    absolute_path,
    data_error,
    find_source,
    recorded_source,
)
from thinkers.data.token_cache import TRAIN_SHARE, TokenizedText, tokenize, tokenizer_for
from thinkers.data.tokenizers import Tokenizer, UnknownCharacter, tokenizer_from_state
from thinkers.errors import DataError, UsageError, usage_error
from thinkers.models.batch import Batch
from thinkers.models.generation import eval_mode
from thinkers.models.halt import Halt, halt_option
from thinkers.models.tools import Tool
from thinkers.prng import GOLDEN, mix, row_keys
from thinkers.strict_json import Schema
from thinkers.tasks.base import SPLITS, Task, check_batch, check_split
from thinkers.tasks.due import Steps, check_steps_of_task
from thinkers.tasks.graded_rows import GradedRows
from thinkers.tasks.tools import calculator_of_text, writes_calls
from thinkers.tasks.vocabulary_file import VOCABULARY_FILE, load_vocabulary, save_vocabulary

SCORING_TOKENS = 4096
"""Tokens of one batch when a model is scored."""
SOURCES = ("path", "valid_path", "test_path")
"""Settings that name texts."""
MIN_VOCAB_SIZE = {"byte": 256, "character": 1, "bpe": 256}
"""The fewest tokens of each kind of tokenizer, over all texts."""


class Text(Task):
    """Predict the next token of a text, at every position of windows of `context` tokens.

    Training windows begin anywhere in the training part. The text is split by position, as in
    nanoGPT (https://github.com/karpathy/nanoGPT): the last tenth of its bytes is held out, and is
    both valid and test, unless files are given for them. The score is the mean cross-entropy
    (`loss`, nats per token) over windows of the split that do not overlap; `bits_per_byte` is the
    same in a unit that does not depend on the tokenizer.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        path: str = ""
        """A UTF-8 file, a folder of them, or hf:NAME or hf:NAME:CONFIGURATION of huggingface.co.
        Paths are stored as absolute paths, so that a run finds its text from every folder."""
        valid_path: str = ""
        """A text for the valid split; all of `path` is then trained on."""
        test_path: str = ""
        """A text for the test split; empty for the valid split."""
        vocabulary: Literal["byte", "character", "bpe"] = "byte"
        """Tokens: bytes, characters of the text, or byte pairs learned from its training part."""
        bpe_size: int = 1024
        """The most tokens of a bpe vocabulary."""
        context: int = 256
        """Tokens in a row."""
        bad_bytes: Literal["error", "replace", "skip"] = "error"
        """Treatment of bytes that are not UTF-8."""
        max_bytes: int | None = None
        """Size at which a data set of huggingface.co is cut off."""

        def __post_init__(self) -> None:
            for name in SOURCES:
                path = absolute_path(getattr(self, name), f"--task.{name}")
                object.__setattr__(self, name, path)
            for name in ("vocabulary", "bad_bytes"):
                known = get_args(Text.Config.__annotations__[name])
                if (value := getattr(self, name)) not in known:
                    raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")
            check_int("context", self.context, 2)
            check_int("bpe_size", self.bpe_size, 256)
            if self.max_bytes is not None:
                check_int("max_bytes", self.max_bytes, 1)

    config: Config
    primary_metric = "loss"
    higher_is_better = False

    def __init__(
        self,
        config: Any = None,
        seed: int = 0,
        run: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ):
        """Read the text, and tokenize it unless the cache holds its tokens.

        Without a path there is no text: only `max_length` and the least `vocab_size` are known,
        which is enough to list and to print a recipe.

        Args:
            run: The state in vocabulary.json of a run: its tokenizer is used, and the text is read
                only when batches are needed.
            folder: The folder of that run.
        """
        super().__init__(config, seed)
        self.max_length = self.config.context
        self._run, self._folder = run, folder
        self._allowed: frozenset[str] = frozenset()
        self._tokens: dict[str, Integer[np.ndarray, " n"]] = {}
        self.tokenizer: Tokenizer | None = None
        if run is not None:
            self.tokenizer = tokenizer_from_state(run["vocabulary"], VOCABULARY_FILE)
            if self.tokenizer.kind != self.config.vocabulary:
                raise usage_error(
                    f"--task.vocabulary {self.config.vocabulary}",
                    f"{self.tokenizer.kind}, that of the run",
                    "leave it out; a run keeps its vocabulary",
                )
        elif self.config.path:
            self.tokenizer = tokenizer_for(
                self._source("path"),
                self.config.vocabulary,
                self.config.bpe_size,
                self.config.bad_bytes,
                share=1.0 if self.config.valid_path else TRAIN_SHARE,
            )
            for split in SPLITS:
                self.tokens(split)  # a missing or too short text fails here, not in training
        fewest = MIN_VOCAB_SIZE[self.config.vocabulary]
        self.vocab_size = len(self.tokenizer) if self.tokenizer is not None else fewest
        if self.tokenizer is not None and writes_calls(self.tokenizer):
            self.tools = ("calculator",)

    # the text

    def tokens(self, split: str) -> Integer[np.ndarray, " n"]:
        """Return all tokens of a split, in the order of the text."""
        check_split(split)
        if split not in self._tokens:
            self._tokens[split] = self._read_split(split)
        return self._tokens[split]

    def _read_split(self, split: str) -> Integer[np.ndarray, " n"]:
        config = self.config
        name = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
        if split == "test" and not config.test_path:
            name = "valid_path"
        path = getattr(config, name) if split != "train" else ""
        if path:
            found = self._tokenize(name).tokens
        else:
            text = self._training_text()
            cut = len(text.tokens) if config.valid_path else text.num_train
            found = text.tokens[:cut] if split == "train" else text.tokens[cut:]
        if len(found) <= config.context:
            raise data_error(
                path or config.path,
                f"{len(found)} tokens for {split}",
                f"at least {config.context + 1}, one more than --task.context",
                "take a longer text, or a shorter --task.context",
            )
        return found

    def has_own_test(self) -> bool:
        return not np.array_equal(self.tokens("valid"), self.tokens("test"))

    def _training_text(self) -> TokenizedText:
        if not self.config.path:
            raise _no_text()
        found = self._tokenize("path")
        if self._run is not None and self._run["texts"]["path"]["sha256"] != found.digest:
            raise self._text_changed("put it back; --task.test_path FILE scores on another text")
        return found

    def _tokenize(self, name: str) -> TokenizedText:
        assert self.tokenizer is not None
        return tokenize(self._source(name), self.tokenizer, self.config.bad_bytes)

    def _source(self, name: str) -> Source:
        """Return the text that a setting of SOURCES names."""
        path, limit = getattr(self.config, name), self.config.max_bytes
        if self._run is None or self._folder is None or name in self._allowed:
            return find_source(path, limit)
        return recorded_source(path, self._run["texts"].get(name), self._folder, limit)

    def allow_sources(self, settings: Collection[str]) -> None:
        self._allowed = frozenset(settings)

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Return windows that begin anywhere in the split, a function of (seed, update, row)."""
        stream = check_batch(update, batch_size, split)
        text, length = self.tokens(split), self.config.context
        keys = row_keys(self.seed, stream, np.array([update]), batch_size)[0]
        starts = mix(keys + GOLDEN) % np.uint64(len(text) - length)
        rows = self._windows(text, starts.astype(np.int64))
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return Batch(tokens, targets, keys=torch.from_numpy(keys.view(np.int64)))

    def _windows(
        self, tokens: Integer[np.ndarray, " n"], starts: Int64[np.ndarray, " b"]
    ) -> Int[Tensor, "b t"]:
        """Return rows of `context` tokens and their last target, beginning at `starts`."""
        columns = np.arange(self.config.context + 1)
        return torch.from_numpy(tokens[starts[:, None] + columns].astype(np.int64))

    # scores

    def progress(self, batch: Batch, values: Mapping[str, float]) -> dict[str, float]:
        """Return the share of predicted tokens, and the loss in bits per byte of the batch's text.

        The share of rows that were predicted as a whole would be 0: a row is a window of text.
        """
        assert self.tokenizer is not None
        num_bytes = self.tokenizer.lengths[batch.targets.numpy()].sum()
        bits = values["next_token"] / math.log(2) * batch.targets.numel() / float(num_bytes)
        shown = ("token_accuracy",) if "token_accuracy" in values else ()
        return {name: values[name] for name in shown} | {"bits_per_byte": bits}

    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
    ) -> dict[str, float]:
        """Return nats per token (`loss`) and `bits_per_byte`.

        An example is a window; windows do not overlap. If the split has more than `num_examples`,
        that many are taken at equal distances.
        """
        nats, num_bytes = [], 0
        for rows, losses in self._losses(model, split, num_examples, num_steps, halt):
            nats.append(losses)
            num_bytes += int(self.tokenizer.lengths[rows[:, 1:].numpy()].sum())  # type: ignore
        found = torch.cat(nats)
        bits = found.sum().item() / math.log(2) / num_bytes
        return {"loss": found.mean().item() / self.config.context, "bits_per_byte": bits}

    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: Steps = None,
        halt: Halt = None,
    ) -> Float[Tensor, " n"]:
        """Return the nats per token of each window."""
        found = self._losses(model, split, num_examples, num_steps, halt)
        return torch.cat([nats for _, nats in found]) / self.config.context

    def graded_rows(
        self, model: Any, split: str, num_examples: int, num_steps: Steps, halt: Halt = None
    ) -> Iterator[GradedRows]:
        for rows, nats in self._losses(model, split, num_examples, num_steps, halt):
            lengths = torch.full_like(rows[:, 0], self.config.context)
            yield GradedRows(rows[:, :-1], lengths, None, nats / self.config.context)

    def _losses(
        self, model: Any, split: str, num_examples: int, num_steps: Steps, halt: Halt
    ) -> Iterator[tuple[Int64[Tensor, "n t"], Float64[Tensor, " n"]]]:
        """Yield windows, each with its target at the end, and their summed losses in nats."""
        self.check(model)
        check_int("num_examples", num_examples, 1)
        check_steps_of_task(num_steps, self.max_due)
        tokens, length = self.tokens(split), self.config.context
        count = (len(tokens) - 1) // length
        shown = min(count, num_examples)
        starts = np.arange(shown) * count // shown * length
        device = next(model.parameters()).device
        assert self.tokenizer is not None
        with eval_mode(model):
            for chosen in np.array_split(starts, math.ceil(shown * length / SCORING_TOKENS)):
                rows = self._windows(tokens, chosen)
                given, options = rows[:, :-1].to(device), halt_option(halt)
                logits = model(given, num_steps=num_steps, **options).logits
                # The rounding of a softmax of 16-bit logits exceeds the differences between models.
                logits = logits.float() if logits.dtype.itemsize < 4 else logits
                losses = F.cross_entropy(logits.mT, rows[:, 1:].to(device), reduction="none")
                yield rows, losses.double().sum(1).cpu()

    def make_tool(self, name: str, keys: Int[Tensor, " b"] | None) -> Tool:
        assert self.tokenizer is not None
        return calculator_of_text(self.tokenizer)

    def check(self, model: Any) -> None:
        if not model.causal:
            raise UsageError(NOT_CAUSAL.format(what="predicting a text"))

    # text and tokens

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`.

        Raises:
            UsageError: naming the first character that has no token.
        """
        if self.tokenizer is None:
            raise _no_text()
        try:
            text.encode()  # lone surrogates, as from a command line that is not UTF-8, fail here
            return self.tokenizer.encode(text).tolist()
        except UnicodeEncodeError as error:
            what = f"{error.object[error.start]!r} at character {error.start}"
            raise usage_error(
                f"{what}, which is not a Unicode character", "text in UTF-8", "remove it"
            ) from None
        except UnknownCharacter as error:
            shown = "".join(x.decode() for x in self.tokenizer.token_bytes[:100])
            raise usage_error(
                str(error), f"characters of the text: {shown!r}", "replace it"
            ) from None

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """Return the text of `tokens`, with U+FFFD where their bytes are not UTF-8."""
        if self.tokenizer is None:
            raise _no_text()
        return self.tokenizer.decode(int(token) for token in tokens)

    # runs

    def save_to_run(self, folder: Path) -> None:
        """Write vocabulary.json: the tokenizer, and the digests of the texts.

        Raises:
            DataError: The run began with another text.
        """
        assert self.tokenizer is not None
        given = [name for name in SOURCES if getattr(self.config, name)]
        texts = {name: self._source(name).record() for name in given}
        state = {"texts": texts, "vocabulary": self.tokenizer.state()}
        save_vocabulary(folder, state, self._text_changed("put it back, or train a new run"))

    @classmethod
    def from_run(cls, config: Any, seed: int, folder: Path) -> "Text":
        schema: Schema = {"texts": dict, "vocabulary": dict}
        return cls(config, seed, load_vocabulary(folder, schema), folder)

    def _text_changed(self, fix: str) -> DataError:
        return data_error(
            self.config.path,
            "has changed since the run began",
            "the text that the run was trained on",
            fix,
        )


def _no_text() -> UsageError:
    return usage_error("no text", "a file, a folder or hf:NAME", "set --task.path FILE")
