"""Cache of a Thinker: the memory that it writes from, and the tokens not yet read."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thinkers.models.thinker_halting import LiveThinking
from thinkers.models.thinker_input import read_text
from thinkers.models.thinker_recall import BlockThinking
from thinkers.nn.causal_mixing import TextCache
from thinkers.nn.kv_cache import KeyValueCache
from thinkers.nn.latent_store import Memory


class ThinkerCache:
    """Memory of finished sections, queries of the current section, and its tokens.

    Args:
        lengths: Real tokens of each row.
        prompted: Write the whole answer from the memory of the prompt, without sections.
        capacity: Largest number of tokens of a row.
        live: Thinks with rows that halt; None means that all take `num_steps`.
        thinking: Thinks, with rows that halt or a long-term memory; None means `think`.
    """

    def __init__(
        self,
        model: Any,
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
        live: LiveThinking | None = None,
        thinking: BlockThinking | LiveThinking | None = None,
    ):
        config = model.config
        self.lengths, self.num_steps, self.live = lengths, num_steps, live
        self.thinking = thinking
        self.taken = torch.zeros_like(lengths)
        self.section = None if prompted else config.section
        self.slots = config.output_steps * config.num_layers
        self.room = capacity if prompted else config.section
        self.heads, self.head_dim = config.num_heads, config.dim // config.num_heads
        self.inputs: list[Tensor] = []
        self.text = TextCache()
        self.pending = lengths.new_zeros(len(lengths), 0)
        # Query 0 of the first section would predict the first token, which is always given.
        self.begin(model.initial_memory(len(lengths)), offset=1)

    def begin(self, memory: Memory, offset: int = 0) -> None:
        """Begin a section predicted from this memory; `offset` is the index of its first query."""
        self.memory, self.first, self.offset = memory, offset, offset
        start = torch.zeros_like(self.lengths)
        like = memory.keys[0]
        self.written = KeyValueCache(self.slots, start, self.room, self.heads, self.head_dim, like)

    def advance(self, n: int) -> Int[Tensor, "b 1"] | None:
        """Take the next `n` queries of the section; return their rotary positions.

        None means 0, 1, 2, .., for the first queries of a section; later queries come one by one.
        """
        begins = self.offset == self.first
        self.offset += n
        if not begins:
            return self.written.grow()
        self.written.lengths = self.written.lengths + n
        return None

    def append(self, model: Any, tokens: Int[Tensor, " b"]) -> None:
        """Append one token per row; at the end of a section, think about all finished sections."""
        self.lengths = self.lengths + 1
        if self.section is None:
            return
        self.pending = torch.cat([self.pending, tokens[:, None]], 1)
        if self.pending.shape[1] == self.section:
            self.read(model, self.pending)
            self.pending = self.pending[:, :0]

    def read(self, model: Any, tokens: Int[Tensor, "b m"]) -> None:
        """Add finished sections to the input, and think."""
        past = self.inputs[0].shape[2] if self.inputs else 0
        parts = read_text(model, tokens, self.section, past, self.text)
        if self.inputs:
            parts = [torch.cat(pair, 2) for pair in zip(self.inputs, parts, strict=True)]
        self.inputs = parts
        self.think(model, parts, None)

    def think(
        self,
        model: Any,
        inputs: list[Float[Tensor, "b h m d"]],
        hidden: Bool[Tensor, "b m"] | None,
    ) -> None:
        """Think about all that was read, and begin a section."""
        think = self.thinking or model.think
        self.begin(think(inputs, hidden, self.num_steps)[0][-1])
        if self.live is not None:
            self.taken = self.live.taken

    def select(self, rows: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.memory, self.inputs = self.memory.select(rows), [x[rows] for x in self.inputs]
        self.lengths, self.pending = self.lengths[rows], self.pending[rows]
        self.taken = self.taken[rows]
        self.text.select(rows)
        if isinstance(self.thinking, BlockThinking):
            self.thinking.select(rows)
        self.written.select(rows)
