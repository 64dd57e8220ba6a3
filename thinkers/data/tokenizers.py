"""Tokenizers of text: bytes, characters, or byte pairs learned from the text.

Every token stands for a fixed sequence of bytes, so each tokenizer is invertible, and losses in
bits per byte can be compared between them. Its state is plain JSON, which a run keeps.
"""

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt32

from thinkers.errors import DamagedError, UsageError
from thinkers.optional import require

KINDS = ("byte", "character", "bpe")
CHUNK_CHARACTERS = 1 << 16
"""Characters of a chunk; merging byte pairs takes many times the memory of its text."""
LONGEST_WORD = 1024
"""Bytes after which a word is divided: the time of the library to learn pairs grows faster than the
square of a word's length, and a word of 100 KB takes half a minute."""
CHUNKS_PER_CALL = 4
"""Chunks that the library encodes in parallel."""


class UnknownCharacter(ValueError):
    """A character that the tokenizer has no token for, and its index in the text."""

    def __init__(self, character: str, index: int):
        self.character, self.index = character, index
        super().__init__(f"{character!r} at character {index} has no token")


class Tokenizer(ABC):
    """Map between text and tokens.

    Args:
        token_bytes: The bytes that each token stands for.
    """

    kind: ClassVar[str]

    def __init__(self, token_bytes: Sequence[bytes]):
        self.token_bytes = tuple(token_bytes)

    def __len__(self) -> int:
        return len(self.token_bytes)

    @abstractmethod
    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        """Return the tokens of `text`; raise UnknownCharacter if one has none."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the JSON value from which `tokenizer_from_state` rebuilds this tokenizer."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`, with U+FFFD where their bytes are not UTF-8."""
        return b"".join(self.token_bytes[token] for token in tokens).decode("utf-8", "replace")

    def safe_cut(self, text: str) -> int:
        """Return the last index at which `text` may be cut without changing a token."""
        return len(text)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " v"]:
        """Number of bytes of each token."""
        return np.array([len(x) for x in self.token_bytes], np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the state."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()


class ByteTokenizer(Tokenizer):
    """Bytes as tokens: token i is byte i."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([i]) for i in range(256)])

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        return np.frombuffer(text.encode(), np.uint8)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind}


class CharacterTokenizer(Tokenizer):
    """Characters of a text as tokens, in the order of Unicode."""

    kind = "character"

    def __init__(self, characters: str):
        super().__init__([x.encode() for x in characters])
        self.characters = characters
        codes = np.array([ord(x) for x in characters])
        # Token by code point; the last entry, -1, stands for all code points above the largest.
        self._tokens = np.full(int(codes.max()) + 2, -1, np.int32)
        self._tokens[codes] = np.arange(len(codes))

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        tokens = self._tokens[np.minimum(_code_points(text), len(self._tokens) - 1)]
        if len(tokens) and tokens.min() < 0:
            index = int((tokens < 0).argmax())
            raise UnknownCharacter(text[index], index)
        return tokens

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


def distinct_characters(texts: Iterable[str]) -> str:
    """Return all characters that occur in `texts`, sorted."""
    occurs = np.zeros(sys.maxunicode + 1, bool)
    for text in texts:
        occurs[_code_points(text)] = True
    return "".join(map(chr, occurs.nonzero()[0]))


def _code_points(text: str) -> UInt32[np.ndarray, " t"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


class BPETokenizer(Tokenizer):
    """Byte-pair encoding within words (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).

    The library `tokenizers` (extra `text`) trains and merges. No token crosses the words of its
    pre-tokenizer, nor a multiple of LONGEST_WORD bytes within a word.
    """

    kind = "bpe"

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        to_byte = {letter: byte for byte, letter in enumerate(byte_to_unicode())}
        names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        super().__init__([bytes(to_byte[letter] for letter in name) for name in names])

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "BPETokenizer":
        """Learn merges from `texts` up to `size` tokens, of which 256 are the bytes."""
        tokenizers = require("tokenizers", "text", "byte-pair encoding")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        words = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = words.Sequence(
            [words.ByteLevel(add_prefix_space=False), words.FixedLength(LONGEST_WORD)]
        )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, initial_alphabet=byte_to_unicode()
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        parts = []
        while text:
            short = len(text) <= CHUNK_CHARACTERS
            cut = len(text) if short else self.safe_cut(text[:CHUNK_CHARACTERS])
            parts.append(text[:cut])
            text = text[cut:]
        found = [np.zeros(0, np.int64)]
        for first in range(0, len(parts), CHUNKS_PER_CALL):
            encoded = self.tokenizer.encode_batch_fast(parts[first : first + CHUNKS_PER_CALL])
            found += [np.array(x.ids, np.int64) for x in encoded]
        return np.concatenate(found)

    def safe_cut(self, text: str) -> int:
        """Return the last index after a line break and before a word, else the text's end."""
        # Merges never cross the words of the pre-tokenizer, and a line break followed by a letter
        # always ends one. A line break before more white space may not, since white space can form
        # one word.
        place = len(text)
        while (place := text.rfind("\n", 0, place)) >= 0:
            if place + 1 < len(text) and not text[place + 1].isspace():
                return place + 1
        return len(text)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}


def byte_to_unicode() -> list[str]:
    """Return the printable character that the library writes for each byte, as GPT-2 does.

    A byte that is printable in Latin-1 stands for itself; the others are numbered from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b if b in printable else 256 + others.index(b)) for b in range(256)]


def tokenizer_from_state(state: Mapping[str, Any], where: str) -> Tokenizer:
    """Build the tokenizer that `Tokenizer.state` described.

    Args:
        where: The file that the state was read from, for errors.

    Raises:
        DamagedError: The state describes no tokenizer.
    """
    try:
        if state["kind"] == "byte":
            return ByteTokenizer()
        if state["kind"] == "character":
            return CharacterTokenizer(state["characters"])
        if state["kind"] == "bpe":
            tokenizers = require("tokenizers", "text", "byte-pair encoding")
            return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(state["tokenizer"])))
    except UsageError:
        raise
    except Exception as error:  # the library `tokenizers` raises nothing narrower
        raise DamagedError(f"{where} holds no tokenizer: {error}") from None
    raise DamagedError(f"{where} holds no tokenizer: its kind is {state['kind']!r}")
