"""The tokens of texts: bytes, characters, or byte pairs learned from the text; all can be undone.

Every token stands for some bytes. What a vocabulary is made of can be written as JSON, so that a
run keeps it.
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
AT_ONCE = 1 << 16
"""Characters that byte pairs are found in at once; what is found takes much more memory."""
TOGETHER = 4
"""Such stretches that threads share."""


class UnknownCharacter(ValueError):
    """A character without a token, and its index in the text."""

    def __init__(self, character: str, index: int):
        self.character, self.index = character, index
        super().__init__(f"{character!r} at character {index} has no token")


class Tokenizer(ABC):
    """What tokens there are.

    Args:
        pieces: The bytes that each token stands for.
    """

    kind: ClassVar[str]

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = tuple(pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        """The tokens of `text`; UnknownCharacter if it has none."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `from_state` makes the same vocabulary of, as JSON."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, with U+FFFD where they are not UTF-8."""
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")

    def cut(self, text: str) -> int:
        """The last place where `text` may be cut without changing a token."""
        return len(text)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " v"]:
        """The number of bytes of each token."""
        return np.array([len(piece) for piece in self.pieces], np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it is made of."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()


class Bytes(Tokenizer):
    """Token i is byte i."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([i]) for i in range(256)])

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        return np.frombuffer(text.encode(), np.uint8)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Characters(Tokenizer):
    """The characters of a text, in the order of Unicode."""

    kind = "character"

    def __init__(self, characters: str):
        super().__init__([x.encode() for x in characters])
        self.characters = characters
        codes = np.array([ord(x) for x in characters])
        self._tokens = np.full(int(codes.max()) + 2, -1, np.int32)
        self._tokens[codes] = np.arange(len(codes))

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        tokens = self._tokens[np.minimum(_codes(text), len(self._tokens) - 1)]
        if len(tokens) and tokens.min() < 0:
            index = int((tokens < 0).argmax())
            raise UnknownCharacter(text[index], index)
        return tokens

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


def characters_of(texts: Iterable[str]) -> str:
    """All characters that occur, sorted."""
    occurs = np.zeros(sys.maxunicode + 1, bool)
    for text in texts:
        occurs[_codes(text)] = True
    return "".join(map(chr, occurs.nonzero()[0]))


def _codes(text: str) -> UInt32[np.ndarray, " t"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


class BPETokenizer(Tokenizer):
    """Bytes, and the most frequent pairs of tokens joined again and again (Sennrich et al. 2016,
    https://arxiv.org/abs/1508.07909), within words, by the library `tokenizers`."""

    kind = "bpe"

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        to_byte = {letter: byte for byte, letter in enumerate(byte_letters())}
        names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        super().__init__([bytes(to_byte[letter] for letter in name) for name in names])

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "BPETokenizer":
        """The pairs of a text, up to `size` tokens in all."""
        tokenizers = require("tokenizers", "text", "a byte-pair vocabulary")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, initial_alphabet=byte_letters()
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> Int64[np.ndarray, " t"]:
        parts = []
        while text:
            cut = len(text) if len(text) <= AT_ONCE else self.cut(text[:AT_ONCE])
            parts.append(text[:cut])
            text = text[cut:]
        found = [np.zeros(0, np.int64)]
        for first in range(0, len(parts), TOGETHER):
            encoded = self.tokenizer.encode_batch_fast(parts[first : first + TOGETHER])
            found += [np.array(x.ids, np.int64) for x in encoded]
        return np.concatenate(found)

    def cut(self, text: str) -> int:
        """Behind a line break and before a word; anywhere, in a text that has no such place."""
        place = len(text)
        while (place := text.rfind("\n", 0, place)) >= 0:
            if place + 1 < len(text) and not text[place + 1].isspace():
                return place + 1
        return len(text)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}


def byte_letters() -> list[str]:
    """The printable letter that the library writes for each byte: itself, or one from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(b if b in shown else 256 + others.index(b)) for b in range(256)]


def from_state(state: Mapping[str, Any], where: str) -> Tokenizer:
    """The vocabulary that `Vocabulary.state` described; DamagedError naming `where` if none is."""
    try:
        if state["kind"] == "byte":
            return Bytes()
        if state["kind"] == "character":
            return Characters(state["characters"])
        if state["kind"] == "bpe":
            tokenizers = require("tokenizers", "text", "a byte-pair vocabulary")
            return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(state["tokenizer"])))
    except UsageError:
        raise
    except Exception as error:  # the library of byte pairs raises nothing narrower
        raise DamagedError(f"{where} holds no vocabulary: {error}") from None
    raise DamagedError(f"{where} holds no vocabulary: its kind is {state['kind']!r}")
