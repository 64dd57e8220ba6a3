"""`LongTermMemory`: what a model has read, compressed into blocks on disk, and found again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from thinkers.checks import describe
from thinkers.errors import UsageError, UsageTypeError, usage_error
from thinkers.memory.blocks import Blocks, join
from thinkers.memory.compressing import compress, compress_levels
from thinkers.memory.parts import MemoryPart
from thinkers.memory.recompressing import recompressed
from thinkers.memory.rows import DTYPES, LARGEST, too_large
from thinkers.memory.sections import Section, check_topic, cut, vocabulary_digest
from thinkers.memory.sqlite import SqliteStore
from thinkers.memory.store import Fault, Found, Store, View
from thinkers.memory.views import check_blocks
from thinkers.models.memory_option import has_memory
from thinkers.runs.result import Run, RunLike, open_run
from thinkers.tasks import Task
from thinkers.user_paths import user_path

TOPIC = "default"
"""The topic of what is written without one."""


class LongTermMemory:
    """Blocks of compressed text in a store, written and read by one model.

    A store belongs to one set of weights: its blocks are noise to any other, and are refused. One
    process may write at a time, from its first write to `close`; any number may read meanwhile.
    A block that was written is durable. Latents may give away the text that they were made from.

    Args:
        store: A store of this model.
        model: A model with `memory="blocks"`; without one, nothing can be written or searched.
        task: Needed to write texts; without one, tokens are written.
    """

    def __init__(self, store: Store, model: Any = None, task: Task | None = None):
        self.store, self.model, self.task = store, model, task
        # Ids and whole groups follow from what was there when compression began.
        self._writing = RLock()
        if model is not None:
            self.check(model)
        if task is not None:
            self._check_vocabulary(task)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: RunLike,
        task: Task | None = None,
        *,
        dtype: Literal["float16", "int8"] = "float16",
    ) -> "LongTermMemory":
        """Make an empty memory in a new folder; this process may write to it until `close`.

        Args:
            model: A model with `memory="blocks"`; or a run, its folder, or (model, task).
            task: The task whose texts are written; that of the run if None.
            dtype: Type of latents on the disk; int8 takes half the space.

        Raises:
            UsageError: The folder is not empty, or the model has no memory.
            LockedError: Another process is making a memory there.
        """
        if dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {DTYPES}, got {dtype!r}")
        found, own = _model_and_task(model, task)
        settings = store_settings(found, own)
        store = SqliteStore.create(user_path(folder, "folder"), dtype=dtype, **settings)
        return cls(store, found, own)

    @classmethod
    def open(
        cls, folder: str | Path, model: RunLike | None = None, task: Task | None = None
    ) -> "LongTermMemory":
        """Open the memory in a folder.

        Args:
            model: As in `create`. Without one, the memory can be listed, read by ids, cleared,
                verified and rebuilt.

        Raises:
            UsageError: The folder is no memory, or that of another model or vocabulary.
            DamagedError: The settings of the memory are not as they were written.
            FormatError: Another version wrote it.
        """
        found, own = (None, task) if model is None else _model_and_task(model, task)
        return cls(SqliteStore(user_path(folder, "folder")), found, own)

    @classmethod
    def recompress(
        cls, folder: str | Path, model: RunLike, task: Task | None = None
    ) -> "LongTermMemory":
        """Compress the texts of a memory anew with another model, all or nothing; open the result.

        All blocks get new ids. Where the vocabulary is the same, the tokens that were kept with the
        texts are compressed; otherwise the texts are cut anew, each section by itself.

        Raises:
            UsageError: A block has no text, since `keep_text` was not set; their number is named.
            LockedError: Another process writes to the memory.
        """
        found, own = _model_and_task(model, task)
        store = SqliteStore(user_path(folder, "folder"))
        store.lock()
        try:
            settings = store_settings(found, own)
            with store.view() as view:
                meta = replace(view.meta, **settings)
                parts = recompressed(found, own, view, meta)
                store.replace(parts, **settings)
        except BaseException:
            store.close()
            raise
        return cls(store, found, own)

    # Reading --------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model whose blocks these are."""
        return self.store.meta.fingerprint

    def check(self, model: Any) -> None:
        """Raise UsageError unless this is a memory of the model, as its weights are now."""
        require_memory(model)
        found = model.memory_fingerprint()
        if found != self.fingerprint:
            raise usage_error(
                f"a memory written by the model {self.fingerprint[:16]}, and not by {found[:16]}",
                "a memory of the same weights and settings, without which its blocks are noise",
                "use the model that wrote it, or thinkers memory recompress",
            )

    def view(self) -> View:
        """Begin a snapshot, a context manager: writes and deletions meanwhile do not change it."""
        return self.store.view()

    def part(self, topics: Sequence[str] | None = None, without: Sequence[int] = ()) -> MemoryPart:
        """Return a part of the memory, for a model to read in its place.

        Args:
            topics: The topics to read; None means all.
            without: Ids of blocks to leave out.

        Raises:
            UsageError: There is no such topic, of which the message names the nearest; or an id is
                none.
        """
        part = MemoryPart(self, topics, tuple(check_blocks(without)))
        with part.view():
            return part

    def search(
        self,
        latent: Float[Tensor, "b c"] | Float[Tensor, "b l c"],
        k: int = 4,
        topics: Sequence[str] | None = None,
    ) -> Found:
        """Return the k blocks that the index scores highest for thinking latents.

        Blocks are those of the model's `read_level`, and of lower levels where a group is not
        whole. At equal scores the lower id is first; beyond the blocks that there are, ids are -1
        and scores -inf.

        Args:
            latent: Latents, of which the first asks.
            topics: Topics to search; None means all.

        Raises:
            UsageError: k is below 1, there is no such topic, no model, or latents have another size
                than its own.
            DamagedError: Keys are not as they were written.
        """
        model = self._own_model()
        if not isinstance(latent, Tensor) or not latent.is_floating_point():
            raise UsageTypeError(f"latent must be a tensor of numbers, got {describe(latent)}")
        dim = model.config.dim
        if latent.ndim not in (2, 3) or latent.shape[-1] != dim or 0 in latent.shape:
            raise UsageError(
                f"latent must be (b, {dim}) or (b, l, {dim}), of at least one row and one latent, "
                f"got {describe(latent)}"
            )
        like = next(model.parameters())
        latent = latent.to(like.device, like.dtype)
        queries = model.block_query(latent if latent.ndim == 3 else latent[:, None])
        found = self.store.search(queries.detach().float(), k, model.config.read_level, topics)
        return replace(found, scores=found.scores * model.block_scale())

    def read(self, ids: Sequence[int] | Int[Tensor, " n"]) -> Blocks:
        """Return blocks by their ids, in this order.

        Raises:
            UsageError: There is no such block.
            DamagedError: A block is not as it was written; the message names it.
        """
        return self.store.fetch(ids)

    def topics(self) -> dict[str, int]:
        """Return the number of sections of each topic, in the order in which they began."""
        return self.store.topics()

    def __len__(self) -> int:
        """Return the number of sections: of blocks of level 1."""
        return sum(self.topics().values())

    def verify(self) -> list[Fault]:
        """Return what is not as it was written; an empty list if all is. It reads every byte."""
        return self.store.verify()

    # Writing --------------------------------------------------------------------------------------

    def write(
        self,
        texts: Sequence[str] | Int[Tensor, "b t"],
        topic: str = TOPIC,
        *,
        sources: Sequence[str] | None = None,
        keep_text: bool = False,
    ) -> list[int]:
        """Compress texts into blocks of a topic; return the ids of the blocks of level 1.

        A text is cut into sections of `memory_section` tokens, each of which becomes a block. Every
        `memory_group` blocks of a topic become one of the next level. The blocks are on the disk
        when this returns; if it raises, none is.

        Args:
            texts: Texts, which need a task; or the tokens of b sections.
            sources: A name for each text, such as its file.
            keep_text: Keep the text beside the latents, for `read` and `recompress`.

        Raises:
            UsageError: There is no task for texts, no model, or another one than wrote the memory.
            DataError: A text is empty, or cannot be read by the task.
            DamagedError: The model's latents are not finite, or the memory is damaged.
            ResourceError: The disk is full; the memory is as it was.
            LockedError: Another process writes to the memory; the message names it.
        """
        size, vocab_size = self.store.meta.section, self._own_model().config.vocab_size
        topic = check_topic(topic)
        sections = cut(texts, self.task, size, vocab_size, sources)
        return self.write_sections(sections, topic, keep_text)

    def write_sections(
        self, sections: Sequence[Section], topic: str, keep_text: bool = False
    ) -> list[int]:
        """Do as `write` with texts that were cut, of a name that is a topic's."""
        model = self._own_model()
        if not sections:
            return []
        with self._writing:
            self.store.lock()
            with self.store.view() as view:
                meta = view.meta
                waiting = [view.fetch(ids) for ids in view.ungrouped(topic)]
            parts = list(compress(model, sections, topic, meta, meta.last + 1, keep_text))
            blocks = compress_levels(model, join(parts), waiting, meta)
            known = {} if self.task is None else {"vocabulary": vocabulary_digest(self.task)}
            return self.store.append(blocks, **known)[: len(sections)]

    def clear(self, topic: str | None = None) -> int:
        """Delete a topic, or all; return the number of sections that it had.

        No byte of it is left, in any file of the memory, once readers that began before have
        closed. A group of blocks is of one topic, so that nothing of another one is lost.

        Raises:
            UsageError: There is no such topic; the message names the nearest.
            LockedError: Another process writes to the memory; the message names it.
        """
        with self._writing:
            return self.store.delete(topic)

    def compact(self) -> None:
        """Give the space of what was deleted back to the disk; errors are those of `clear`."""
        self.store.compact()

    def rebuild(self) -> None:
        """Make the index anew from the keys of the blocks.

        A memory that lost its last writes is accepted as it is from then on.
        """
        self.store.rebuild()

    def close(self) -> None:
        """Let other processes write. The memory may be used further, and closed twice."""
        self.store.close()

    def __enter__(self) -> "LongTermMemory":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _own_model(self) -> Any:
        """Return the model, which must be as it was when the memory was written."""
        if self.model is None:
            raise usage_error(
                "a memory that was opened without a model",
                "a model to compress texts, and to ask the index",
                "open it by LongTermMemory.open(folder, model)",
            )
        self.check(self.model)
        return self.model

    def _check_vocabulary(self, task: Task) -> None:
        found, known = vocabulary_digest(task), self.store.meta.vocabulary
        if known not in ("", found):
            raise usage_error(
                "a task whose tokens mean something else than those of the memory",
                "the task, or the run, that the memory was written with",
                "use that one, or compress the texts anew by thinkers memory recompress",
            )


def _model_and_task(model: Any, task: Task | None) -> tuple[Any, Task | None]:
    if isinstance(model, Run | str | Path | tuple):
        model, own = open_run(model)
        task = own if task is None else task
    require_memory(model)
    return model, task


def require_memory(model: Any) -> None:
    """Raise UsageError unless a model has layers that read and write a long-term memory."""
    if not has_memory(model):
        raise usage_error(
            f"{type(model).__name__}, a model without a memory",
            "a thinker with memory blocks",
            "train one by --model.memory blocks",
        )


def store_settings(model: Any, task: Task | None) -> dict[str, Any]:
    """Return the fields of `Meta` that a model and its task determine, to create a store by.

    Raises:
        UsageError: A size is more than a store can have.
    """
    config = model.config
    found = {
        "fingerprint": model.memory_fingerprint(),
        "vocabulary": "" if task is None else vocabulary_digest(task),
        "dim": config.dim,
        "index_dim": config.index_dim,
        "latents": config.block_latents,
        "section": config.memory_section,
        "levels": config.memory_levels,
        "group": config.memory_group,
    }
    if (what := too_large(found)) is not None:
        raise usage_error(
            f"a model with {what}",
            f"at most {LARGEST:,} in a memory",
            "train a smaller one: fewer memory_levels, or a smaller memory_group",
        )
    return found
