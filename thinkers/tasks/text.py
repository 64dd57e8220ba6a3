"""Predict the next token of a text: any UTF-8 file, a folder of them, or a data set."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import NOT_CAUSAL, check_int
from thinkers.data.sources import data_error, find
from thinkers.data.token_cache import TRAIN_SHARE, Prepared, prepare, tokenizer_for
from thinkers.data.tokenizers import Tokenizer, UnknownCharacter, from_state
from thinkers.errors import DamagedError, DataError, UsageError, usage_error
from thinkers.files import to_json, write_file
from thinkers.models.base import Batch
from thinkers.models.generation import eval_mode
from thinkers.prng import GOLDEN, mix, row_keys
from thinkers.tasks.base import SPLITS, Task, check_batch, check_split

KEPT = "vocabulary.json"
SCORING_TOKENS = 4096
"""Tokens that a model judges at once."""


class Text(Task):
    """Predicts the next token of a text.

    A row is a window of `context` tokens, drawn anywhere in the training part, and every position
    is graded. Text is split by position, as nanoGPT (https://github.com/karpathy/nanoGPT) does:
    the last tenth is held out, and is what valid and test are, unless they are given.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        path: str = ""
        """A UTF-8 file, a folder of them, or hf:NAME or hf:NAME:CONFIGURATION of huggingface.co."""
        valid_path: str = ""
        """A text for the valid split; all of `path` is then to train on."""
        test_path: str = ""
        """A text for the test split; else it is the valid split."""
        vocabulary: Literal["byte", "character", "bpe"] = "byte"
        """Bytes, the characters of the text, or byte pairs learned from its training part."""
        bpe_size: int = 1024
        """The most tokens of a bpe vocabulary."""
        context: int = 256
        """Tokens in a row."""
        bad_bytes: Literal["error", "replace", "skip"] = "error"
        """What is done about bytes that are not UTF-8."""
        max_bytes: int | None = None
        """Where a data set of huggingface.co is cut off."""

        def __post_init__(self) -> None:
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

    def __init__(self, config: Any = None, seed: int = 0, run: Mapping[str, Any] | None = None):
        """Without a path, all that is known is how large a model would be at least.

        Args:
            run: What `save_to_run` wrote: texts are then read when they are needed, with its
                vocabulary.
        """
        super().__init__(config, seed)
        self.max_length = self.config.context
        self._run = run
        self._parts: dict[str, Integer[np.ndarray, " n"]] = {}
        self.tokenizer: Tokenizer | None = None
        if run is not None:
            self.tokenizer = from_state(run["vocabulary"], KEPT)
            if self.tokenizer.kind != self.config.vocabulary:
                found = f"--task.vocabulary {self.config.vocabulary}"
                todo = "leave it out; a run keeps its vocabulary"
                raise usage_error(found, f"{self.tokenizer.kind}, that of the run", todo)
        elif self.config.path:
            source = find(self.config.path, self.config.max_bytes)
            share = 1.0 if self.config.valid_path else TRAIN_SHARE
            self.tokenizer = tokenizer_for(
                source,
                self.config.vocabulary,
                self.config.bpe_size,
                self.config.bad_bytes,
                share,
            )
            for split in SPLITS:
                self.tokens(split)
        fewest = {"byte": 256, "character": 1, "bpe": 256}[self.config.vocabulary]
        self.vocab_size = len(self.tokenizer) if self.tokenizer is not None else fewest

    # the text

    def tokens(self, split: str) -> Integer[np.ndarray, " n"]:
        """All tokens of a split, one after the other."""
        check_split(split)
        if split not in self._parts:
            self._parts[split] = self._part(split)
        return self._parts[split]

    def _part(self, split: str) -> Integer[np.ndarray, " n"]:
        config = self.config
        path = {"train": "", "valid": config.valid_path, "test": config.test_path}[split]
        path = path or (config.valid_path if split == "test" else "")
        if path:
            found = self._prepared(path).tokens
        else:
            text = self._training_text()
            cut = len(text.tokens) if config.valid_path else text.boundary
            found = text.tokens[:cut] if split == "train" else text.tokens[cut:]
        if len(found) <= config.context:
            raise data_error(
                path or config.path,
                f"{len(found)} tokens to {'train on' if split == 'train' else 'be judged on'}",
                f"at least {config.context + 1}, one more than --task.context",
                "take a longer text, or a shorter --task.context",
            )
        return found

    def _training_text(self) -> Prepared:
        if not self.config.path:
            raise usage_error("no text", "a file, a folder or hf:NAME", "set --task.path FILE")
        found = self._prepared(self.config.path)
        if self._run is not None and self._run["text"] not in (None, found.digest):
            raise data_error(
                self.config.path,
                "has changed since the run began",
                "the text that the run was trained on",
                "put it back; --task.test_path FILE judges on another text",
            )
        return found

    def _prepared(self, path: str) -> Prepared:
        assert self.tokenizer is not None
        source = find(path, self.config.max_bytes)
        return prepare(source, self.tokenizer, self.config.bad_bytes)

    # batches

    def batch(self, update: int, batch_size: int, split: str = "train") -> Batch:
        """Windows drawn anywhere in the split; row by row a function of (seed, update, row)."""
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
        """Rows of one token more than `context` from these places."""
        columns = np.arange(self.config.context + 1)
        return torch.from_numpy(tokens[starts[:, None] + columns].astype(np.int64))

    # judging

    def score(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> dict[str, float]:
        """Nats per token, and bits per byte, by which vocabularies compare.

        An example is a window; they do not overlap. All windows of the split are judged, or, if
        there are more than `num_examples`, so many at equal distances.
        """
        nats, sizes = self._judge(model, split, num_examples, num_steps)
        bits = nats.sum().item() / math.log(2) / float(sizes.sum())
        return {"loss": nats.mean().item() / self.config.context, "bits_per_byte": bits}

    def grade(
        self,
        model: nn.Module,
        split: str = "test",
        num_examples: int = 2000,
        num_steps: int | None = None,
    ) -> Float[Tensor, " n"]:
        """Nats per token of each window."""
        return self._judge(model, split, num_examples, num_steps)[0] / self.config.context

    def _judge(
        self, model: Any, split: str, num_examples: int, num_steps: int | None
    ) -> tuple[Float64[Tensor, " n"], Int64[np.ndarray, " n"]]:
        """The nats of each window, and its number of bytes."""
        self.check(model)
        check_int("num_examples", num_examples, 1)
        tokens, length = self.tokens(split), self.config.context
        count = (len(tokens) - 1) // length
        shown = min(count, num_examples)
        starts = np.arange(shown) * count // shown * length
        device = next(model.parameters()).device
        assert self.tokenizer is not None
        nats, sizes = [], []
        with eval_mode(model):
            for chosen in np.array_split(starts, math.ceil(shown * length / SCORING_TOKENS)):
                rows = self._windows(tokens, chosen)
                logits = model(rows[:, :-1].to(device), num_steps=num_steps).logits
                logits = logits.float() if logits.dtype.itemsize < 4 else logits
                targets = rows[:, 1:].to(device)
                losses = F.cross_entropy(logits.mT, targets, reduction="none")
                nats.append(losses.double().sum(1).cpu())
                sizes.append(self.tokenizer.lengths[rows[:, 1:].numpy()].sum(1))
        return torch.cat(nats), np.concatenate(sizes)

    def check(self, model: Any) -> None:
        if not model.causal:
            raise UsageError(NOT_CAUSAL.format(what="predicting a text"))

    # text and tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; UsageError naming a character that has none."""
        if self.tokenizer is None:
            raise usage_error("no text", "a file, a folder or hf:NAME", "set --task.path FILE")
        try:
            text.encode()
            return self.tokenizer.encode(text).tolist()
        except UnicodeEncodeError as error:
            what = f"{error.object[error.start]!r} at character {error.start}"
            raise usage_error(
                f"{what}, which is half a letter", "text in UTF-8", "write it"
            ) from None
        except UnknownCharacter as error:
            shown = "".join(piece.decode() for piece in self.tokenizer.pieces[:100])
            raise usage_error(
                str(error), f"characters of the text: {shown!r}", "write others"
            ) from None

    def decode(self, tokens: Iterable[int] | Int[Tensor, " t"]) -> str:
        """The text of `tokens`."""
        if self.tokenizer is None:
            raise usage_error("no text", "a file, a folder or hf:NAME", "set --task.path FILE")
        return self.tokenizer.decode(int(token) for token in tokens)

    # runs

    def save_to_run(self, folder: Path) -> None:
        """Write vocabulary.json: with it a run can be used where its text is no more.

        Raises:
            DataError: The run was begun with another text.
        """
        assert self.tokenizer is not None
        state = {"text": self._training_text().digest, "vocabulary": self.tokenizer.state()}
        if not (folder / KEPT).exists():
            write_file(folder / KEPT, to_json(state))
        elif _read(folder / KEPT) != state:
            raise data_error(
                self.config.path,
                "has changed since the run began",
                "the text that the run was trained on",
                "put it back, or train anew",
            )

    @classmethod
    def from_run(cls, config: Any, seed: int, folder: Path) -> "Text":
        kept = _read(folder / KEPT)
        return cls(config, seed, kept)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if not {"text", "vocabulary"} <= found.keys():
            raise ValueError("no vocabulary")
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing, so that nobody knows what the tokens stand for"
        ) from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{file} has changed since it was written: {error}") from None
    return found
