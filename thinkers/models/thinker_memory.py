"""Long-term memory of a Thinker: text is compressed into blocks, which thinking finds again.

    block    = compress(section)                          m latents, of a text that was read before
               compress([section; block before it])       with `memory_conditioned`, in one text
    R_s      = all blocks, or the `memory_top` of the highest scores at step s, s >= 1
    M_s      = [input] + [blocks of R_s] + [latents] + [knowledge]
    logits   = E output(queries, M_n without blocks)
    loss     = cross-entropy + index_weight * (index loss, mean of the steps 1 .. n - 1)

M_0 is the input alone: the first query of the index needs the question in the latents. The answer
is read out of what was thought. If it could be read out of the blocks, it would be: training finds
the values that occur in them then, and never learns which of them was asked for. The equations of
compression and index are in `thinkers.nn.compression` and `thinkers.nn.block_index`; how blocks are
read, in `thinkers.models.thinker_reading`.
"""

import hashlib
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_lengths, check_shape, describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.models import documents
from thinkers.models.batch import Batch
from thinkers.models.document_blocks import BlockList, DocumentBlocks, as_documents, raise_level
from thinkers.models.generation import eval_mode
from thinkers.models.memory_option import check_takes_memory
from thinkers.models.sections_in_order import in_order
from thinkers.nn.block_index import BlockIndex
from thinkers.nn.compression import Compressor, hash_tokens, replayed
from thinkers.nn.latent_noise import random_latents
from thinkers.prng import mix_tensor
from thinkers.strict_json import to_json

REPLAYED_SECTIONS = 64
"""In training, documents of more sections keep no graph of their compression: see `replayed`."""
STREAM = -3
"""Random stream of the latents of a block; -1 and -2 are those of thinking latents."""
WEIGHTS = ("text.", "process.", "latents.", "compressor.", "index.")
"""Beginnings of the names of weights that blocks and their keys depend on."""
SETTINGS = (
    *("vocab_size", "dim", "num_heads", "num_layers", "hidden", "rank", "self_attention"),
    *("variant", "mixing", "num_input_layers", "num_latents", "memory_section", "block_latents"),
    *("compress_steps", "memory_conditioned", "memory_levels", "memory_group", "index_dim"),
)
"""Settings that they depend on."""


class BlockMemory:
    """The part of a Thinker that compresses text, and looks for what it compressed."""

    compressor: Compressor
    index: BlockIndex

    def make_memory(self) -> None:
        """Build the layers of `memory` blocks; none without."""
        config = self._model.config
        if config.memory == "blocks":
            sizes = config.block_latents, config.compress_steps
            levels = config.memory_levels, config.memory_group
            self.compressor = Compressor(config.dim, *sizes, *levels)
            self.index = BlockIndex(config.dim, config.index_dim)

    def reset_memory(self) -> None:
        """Draw the first weights of what compresses text; nothing without `memory` blocks."""
        if self._model.config.memory != "blocks":
            return
        self.compressor.reset()
        # As large as latents: with 0.02, words add next to nothing to the learned latents that read
        # them, and some seeds had learned to find two sections' facts hundreds of updates later.
        text = self._model.text
        for table in (text.embedding, text.position):
            nn.init.normal_(table.weight, std=self._model.config.dim**-0.5)

    @property
    def _model(self) -> Any:
        """The Thinker that this is a part of, with the layers that other classes give it."""
        return self

    # Blocks of a batch --------------------------------------------------------------------------

    def blocks_of(self, batch: Batch) -> DocumentBlocks | None:
        """Compress the sections of a batch into what `forward` takes as `memory`; None without.

        Blocks are those of `document_levels`, or of `read_level`, and of lower levels where no
        group is whole. Gradients reach the compression.
        """
        fields = {name: getattr(batch, name) for name in documents.SHAPES}
        sections = documents.checked(fields, len(batch), self._model)
        if sections is None:
            return None
        assert batch.section_lengths is not None and batch.document is not None
        present = batch.section_lengths > 0
        document, place = present.nonzero(as_tuple=True)
        inputs = [sections[present], batch.section_lengths[present]]
        inputs.append(hash_tokens(*inputs))
        if batch.document_keys is not None:
            inputs[2] = mix_tensor(inputs[2] + batch.document_keys[document])
        replays = torch.is_grad_enabled() and present.shape[1] > REPLAYED_SECTIONS
        compress = self._replayed_sections if replays else self.compress_sections
        if self._model.config.memory_conditioned:
            latents = in_order(compress, inputs, (present.cumsum(1) - 1)[present])
        else:
            latents = compress(*inputs)
        blocks = BlockList(latents, document, torch.stack([place, place + 1], 1))
        lists, levels = [], self.levels_read(batch)
        for level in range(2, self._model.config.read_level + 1):
            merge = self._merge(level)
            blocks, left = raise_level(blocks, self.compressor.group, merge, levels >= level)
            lists.append(left)
        found = as_documents([blocks, *reversed(lists)], len(present), self.index.keys)
        return replace(found, document=batch.document)

    def levels_read(self, batch: Batch) -> Int[Tensor, " d"]:
        """Return the level up to which the blocks of each document are read."""
        if batch.document_levels is not None:
            return batch.document_levels
        assert batch.sections is not None
        return torch.full_like(batch.sections[:, 0, 0], self._model.config.read_level)

    def count_blocks(self, batch: Batch) -> dict[str, int]:
        """Count the terms of the index's loss: the rows that have blocks to read."""
        if batch.sections is None:
            return {}
        assert batch.section_lengths is not None and batch.document is not None
        return {"index": int((batch.section_lengths > 0).any(1)[batch.document].sum())}

    def _merge(self, level: int) -> Any:
        return lambda children: self.compressor.merge(self._model.process, children, level)

    def compress_sections(
        self,
        tokens: Int[Tensor, "n s"],
        lengths: Int[Tensor, " n"],
        keys: Int[Tensor, " n"],
        before: Float[Tensor, "n m c"] | None = None,
    ) -> Float[Tensor, "n m c"]:
        """Compress sections, padded on the right, each by itself.

        Args:
            keys: Random keys, from which the random latents are drawn.
            before: The blocks of the sections before them, which are read too and get no gradient.
        """
        model = self._model
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = columns >= lengths[:, None]
        # Padding may lie beyond the last position.
        places = columns.clamp(max=model.config.memory_section - 1)
        parts = model.read.project(tokens.masked_fill(hidden, 0), places, None, None)
        if before is not None:
            known = model.process.project(before.detach())
            parts = [torch.cat(pair, 2) for pair in zip(parts, known, strict=True)]
            hidden = F.pad(hidden, (0, before.shape[1]), value=False)
        number = self.compressor.num_latents - 1
        random = random_latents(model.learned_latents(), keys, STREAM, number)
        return self.compressor(model.process, parts, hidden, random)

    def _replayed_sections(self, *inputs: Tensor) -> Float[Tensor, "n m c"]:
        weights = [p for p in self._model.parameters() if p.requires_grad]
        return replayed(self.compress_sections, inputs, weights, REPLAYED_SECTIONS)

    # Blocks of a store --------------------------------------------------------------------------

    def compress(
        self,
        sections: Int[Tensor, "n s"],
        lengths: Int[Tensor, " n"] | None = None,
        before: Float[Tensor, "n m c"] | None = None,
    ) -> Float[Tensor, "n m c"]:
        """Compress sections for a store: without gradient, and the same text to the same block.

        Args:
            lengths: Number of each section's real tokens, from 1; None means all.
            before: With `memory_conditioned`, the blocks of the sections before these in their
                texts; None for first sections.

        Raises:
            UsageError: The model has no memory, or does not read blocks with sections, or a section
                is not one of its tokens.
        """
        self._needs_memory()
        n, width = check_shape("sections", sections)
        if lengths is None:
            lengths = torch.full_like(sections[:, 0], width)
        check_lengths("lengths", lengths, n, width)
        fields = {"sections": sections[None], "section_lengths": lengths[None]}
        fields["document"] = torch.zeros_like(lengths[:1])
        documents.checked(fields | dict.fromkeys(documents.OPTIONAL), 1, self._model)
        with eval_mode(self):
            keys = hash_tokens(sections, lengths)
            return self.compress_sections(sections, lengths, keys, self._checked_before(before, n))

    def _checked_before(self, before: Any, n: int) -> Float[Tensor, "n m c"] | None:
        if before is None:
            return None
        config = self._model.config
        if not config.memory_conditioned:
            raise usage_error(
                "blocks before sections, for a model that compresses each by itself",
                "thinker trained with memory_conditioned (--model.memory_conditioned true)",
                "leave before out, or train such a model",
            )
        if not isinstance(before, Tensor) or not before.is_floating_point():
            raise UsageTypeError(f"before must be a tensor of numbers, got {describe(before)}")
        shape = [n, config.block_latents, config.dim]
        if list(before.shape) != shape:
            raise UsageError(f"before must have shape {shape}, got {list(before.shape)}")
        return before

    def compress_level(
        self, children: Float[Tensor, "n g k c"], level: int
    ) -> Float[Tensor, "n m c"]:
        """Compress whole groups of blocks into blocks of `level`, from 2, without gradient.

        Raises:
            UsageError: The model has no memory.
        """
        self._needs_memory()
        with eval_mode(self):
            return self._merge(level)(children)

    def block_keys(self, latents: Float[Tensor, "n m c"]) -> Float[Tensor, "n m e"]:
        """Return the keys of blocks in the index, of unit length, without gradient.

        Raises:
            UsageError: The model has no memory.
        """
        self._needs_memory()
        with eval_mode(self):
            return self.index.keys(latents)

    def block_query(self, latent: Float[Tensor, "b l c"]) -> Float[Tensor, "b e"]:
        """Return the query of the index from the first of these latents, of unit length, without
        gradient.

        Raises:
            UsageError: The model has no memory.
        """
        self._needs_memory()
        with eval_mode(self):
            return self.index.queries(latent)

    def block_scale(self) -> float:
        """Return tau, by which matches of query and key are multiplied to scores."""
        self._needs_memory()
        return float(self.index.scale().detach())

    def memory_fingerprint(self) -> str:
        """Return the SHA-256 of the weights and settings that blocks and their keys depend on.

        Blocks of other weights would be read as if they were of these, without an error.
        """
        self._needs_memory()
        settings = asdict(self._model.config)
        digest = hashlib.sha256(to_json({name: settings[name] for name in SETTINGS}))
        for name, weight in sorted(self._model.state_dict().items()):
            if name.startswith(WEIGHTS):
                digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                # Bytes, since numpy has no bfloat16.
                digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _needs_memory(self) -> None:
        """Raise UsageError if this model has no layers of a memory."""
        check_takes_memory(self, memory=self)
