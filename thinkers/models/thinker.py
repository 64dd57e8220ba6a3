"""Thinker: latents as the state of a processor, one block as the processor, memory of its past."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_int
from thinkers.models import base
from thinkers.models.base import IGNORED, Batch, Loss, Model, Thought, as_batch
from thinkers.models.generation import check_call, eval_mode
from thinkers.models.thinker_cache import ThinkerCache
from thinkers.nn.latent_noise import Disturb, random_latents
from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.layers import initialize, swiglu_width
from thinkers.nn.processor import (
    FixedTextInput,
    Output,
    Probe,
    Process,
    Read,
    SelfAttention,
    TextInput,
)
from thinkers.nn.tracing import AttentionRecord
from thinkers.ops import masks
from thinkers.prng import mix_tensor


class Thinker(Model):
    """latent <- block(latent, M_s) for s = 0 .. num_steps - 1; answers are read out of M_{s+1}.

    M_0 is the input alone. M_{s+1} is the input (if s < read_steps), the last `memory_steps`
    latents, the new one included, and the knowledge slots. The read-out sends queries through the
    same block. The idea and its toy model: https://github.com/domguia/thinker.

    Without `prompt_lengths`, a row is cut into sections. At the end of each the latents, fresh,
    think about all that was finished, and the next section is written from that memory; the first
    is written from the initial latents alone. With `prompt_lengths` the end of the prompt is such
    a boundary, and the whole answer is written from its memory.
    """

    name = "thinker"
    mask_caption = "Each position reads, through memory, the sections that were finished before it."
    test_variants = (
        {"num_latents": 3, "read_steps": 1, "memory_steps": 2, "num_knowledge": 3},
        {"output": "parallel", "output_steps": 2, "self_attention": "feed_forward", "rank": 5},
        {"self_attention": "none", "step_loss": "every", "backprop_steps": 2, "section": 5},
        {"noise": 0.1, "drop": 0.1, "replace": 0.1, "add_latents": 2, "random_latents": True},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """`num_layers` is the depth of the block."""

        variant: Literal["modern", "published"] = "modern"
        """published: no norm on memory, stored input positions, and output queries that all read
        each other: they answer together, so that nothing can be generated token by token."""

        num_latents: int = 8
        section: int = 16
        """Tokens between two boundaries at which the latents think."""
        read_steps: int | None = None
        """How many steps after the first read the input again; None is all."""
        memory_steps: int | None = None
        """How many of the latest latents are remembered; None is all. With 0 nothing that was
        thought is read, so there must be input to read or knowledge."""
        num_knowledge: int = 0
        """Learned vectors that every step but the first can read."""
        output: Literal["autoregressive", "parallel"] = "autoregressive"
        """Whether an output query carries the token before it."""
        output_steps: int = 1
        """How often the output queries go through the block."""
        num_probes: int = 0
        """Scalars read off every output state, in `extra["probes"]`."""
        self_attention: SelfAttention = "plain"
        rank: int | None = None
        """Rank of the attention projections; None is full."""
        hidden: int | None = None
        """Width of the feed-forwards; None is 8/3 of dim."""
        max_latents: int | None = None
        """Rows of the table of learned latents; None is num_latents."""
        max_inputs: int | None = None
        """Rows of the table of input positions; None is max_length."""
        max_outputs: int | None = None
        """Rows of the table of output queries; None is max_length, or section if that is more."""
        step_loss: Literal["last", "every"] = "last"
        """Whether the answer after every step is graded, or the last alone."""
        step_weights: tuple[float, ...] = ()
        """Weights of the steps in that loss; the last is repeated; () is all equal."""
        backprop_steps: int | None = None
        """Gradients flow through this many steps at most; None is all."""
        random_latents: bool = False
        """In training, start from random latents of the learned ones' mean and deviation."""
        add_latents: int = 0
        """In training, so many random latents join the others."""
        noise: float = 0.0
        """In training, the deviation of the noise on latents between steps."""
        drop: float = 0.0
        """In training, the probability that a latent is emptied between steps."""
        replace: float = 0.0
        """In training, the probability that a latent is replaced by noise between steps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("num_latents", "section", "output_steps"):
                check_int(name, getattr(self, name), 1)
            for name in ("num_knowledge", "num_probes", "add_latents"):
                check_int(name, getattr(self, name), 0)
            for name in ("rank", "hidden", "backprop_steps"):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 1)
            for name in ("read_steps", "memory_steps"):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), 0)
            rereads = self.read_steps is None or self.read_steps >= (self.max_steps or 0)
            if self.memory_steps == 0 and not (rereads or self.num_knowledge):
                raise ValueError(
                    "memory_steps must be at least 1 where read_steps ends before max_steps and "
                    "there is no knowledge, got 0"
                )
            for name in ("drop", "replace"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name} must be in 0 .. 1, got {getattr(self, name)}")
            if not 0 <= self.noise < float("inf"):
                raise ValueError(f"noise must be at least 0 and finite, got {self.noise}")
            for name, least in (("max_latents", self.num_latents), ("max_inputs", 1)):
                if getattr(self, name) is not None:
                    check_int(name, getattr(self, name), least)
            if self.max_outputs is not None:
                check_int("max_outputs", self.max_outputs, self.section)
            check_choice("variant", self.variant, ("modern", "published"))
            if self.variant == "published" and self.output != "parallel":
                raise ValueError(f"output must be parallel where published, got {self.output!r}")
            check_choice("output", self.output, ("autoregressive", "parallel"))
            check_choice("step_loss", self.step_loss, ("last", "every"))
            check_choice("self_attention", self.self_attention, ("plain", "feed_forward", "none"))
            object.__setattr__(self, "step_weights", tuple(self.step_weights))
            if any(not 0 <= w < float("inf") for w in self.step_weights) or (
                self.step_weights and not self.step_weights[-1]
            ):
                raise ValueError(
                    "step_weights must be at least 0 and finite, the last above 0, "
                    f"got {self.step_weights}"
                )

    def __init__(self, config: Config):
        super().__init__(config)
        dim, hidden = config.dim, config.hidden or swiglu_width(config.dim)
        self.process = Process(
            dim,
            config.num_heads,
            hidden,
            config.num_layers,
            rank=config.rank,
            self_attention=config.self_attention,
            normed=config.variant == "modern",
        )
        self.causal = config.variant == "modern"
        kind = TextInput if self.causal else FixedTextInput
        self.text = kind(self.config.vocab_size, config.max_inputs or self.config.max_length, dim)
        self.read = Read(self.process, self.text)
        self.output = Output(
            self.process, self.text.embedding, config.output_steps, causal=self.causal
        )
        self.latents = nn.Embedding(config.max_latents or config.num_latents, dim)
        longest = max(self.config.max_length, config.section)
        self.queries = nn.Embedding(config.max_outputs or longest, dim)
        if config.num_knowledge:
            self.knowledge = nn.Embedding(config.num_knowledge, dim)
        if config.num_probes:
            self.probe = Probe(dim, config.num_probes)
        self.disturb = Disturb(config.noise, config.drop, config.replace)
        initialize(self, num_residuals=3 * config.num_layers)
        nn.init.normal_(self.latents.weight)
        nn.init.normal_(self.queries.weight, std=0.5)

    # Thinking ---------------------------------------------------------------------------------

    def think(
        self,
        inputs: list[Float[Tensor, "b h m d"]],
        hidden: Bool[Tensor, "b m"] | None,
        steps: int,
        keep: bool = False,
        keys: Int[Tensor, " b"] | None = None,
        knowledge: Int[Tensor, "b n"] | None = None,
    ) -> tuple[list[Memory], Float[Tensor, "b k l c"]]:
        """The memory after the last step, or after each, with the latents.

        Args:
            inputs: The projected input, as `Process.project` gives it.
            hidden: True where an input is padding.
            keys: Disturb the latents, each row by its key; None leaves them alone.
            knowledge: Which knowledge slots each row can read; None is all, (b, 0) is none.
        """
        config, b = self.config, inputs[0].shape[0]
        latent = self._first_latents(b, keys)
        room = inputs[0].shape[2] + config.num_knowledge + steps * latent.shape[1]
        store = LatentStore(self.process, room)
        store.write_projected(inputs, "input", hidden)
        memories, latents = [], []
        if config.num_knowledge:
            slots = torch.arange(config.num_knowledge, device=latent.device)[None]
            slots = slots if knowledge is None else knowledge
            if slots.shape[1]:
                known = self.process.project(self.knowledge(slots))
                store.write_projected([x.expand(b, -1, -1, -1) for x in known], "knowledge")
        for s in range(steps):
            if self._stops(s, steps):
                latent = latent.detach()
                store.stop_gradient()
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns(s, steps)):
                if keys is not None and self.disturb:
                    latent = self.disturb(latent, keys, s + 1, self._learned_latents())
                latent = self.thought_hook(self.process(latent, self._memory(store, s)), s)
                if config.memory_steps != 0:
                    store.write(latent)
            if keep or s == steps - 1:
                memories.append(self._memory(store, s + 1))
                latents.append(latent)
        return memories, torch.stack(latents, 1)

    def _memory(self, store: LatentStore, s: int) -> Memory:
        """M_s: what step s reads, and what is read out after step s - 1."""
        if s == 0:
            return store.read(("input",))
        again = self.config.read_steps is None or s - 1 < self.config.read_steps
        kinds = ("input", "knowledge", "latent") if again else ("knowledge", "latent")
        return store.read(kinds, self.config.memory_steps)

    def _learned_latents(self) -> Float[Tensor, "l c"]:
        # by a look-up: a bare parameter would claim a gradient even under no_grad
        return self.latents(
            torch.arange(self.config.num_latents, device=self.latents.weight.device)
        )

    def _first_latents(self, b: int, keys: Int[Tensor, " b"] | None) -> Float[Tensor, "b l c"]:
        learned, config = self._learned_latents(), self.config
        latent = learned.expand(b, -1, -1)
        if keys is not None and config.random_latents:
            latent = random_latents(learned, keys, -1, config.num_latents)
        if keys is not None and config.add_latents:
            latent = torch.cat([latent, random_latents(learned, keys, -2, config.add_latents)], 1)
        return latent

    def _stops(self, s: int, steps: int) -> bool:
        """Whether the gradient is cut before step s, counted so that the last stretch is whole."""
        k = self.config.backprop_steps
        return k is not None and s > 0 and (steps - s) % k == 0

    def _learns(self, s: int, steps: int) -> bool:
        """Whether any graded answer's gradient passes through step s."""
        k = self.config.backprop_steps
        return k is None or self.config.step_loss == "every" or s >= steps - k

    # Writing ----------------------------------------------------------------------------------

    def _ask(
        self,
        offsets: Int[Tensor, " t"],
        tokens: Int[Tensor, "b t"],
        positions: Int[Tensor, "*b t"],
    ) -> Float[Tensor, "b t c"]:
        """Queries for what follows these tokens: places in their section, and the tokens."""
        queries = self.queries(offsets).expand(len(tokens), -1, -1)
        if self.config.output == "parallel":
            return queries
        return queries + self.text(tokens, positions)

    def initial_memory(self, b: int) -> Memory:
        """The learned latents: what the first section is written from."""
        parts = [
            x.expand(b, -1, -1, -1) for x in self.process.project(self._learned_latents()[None])
        ]
        return Memory(parts[::2], parts[1::2])

    def _sectioned(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        keep: bool,
        keys: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k t c"], dict[str, Tensor]]:
        """States of every position; position i is read in the section of token i + 1."""
        (b, t), size, device = tokens.shape, self.config.section, tokens.device
        offsets = torch.arange(size, device=device)
        states, extra = [], {}
        if size > 1:
            first = tokens[:, : size - 1]
            places = torch.arange(first.shape[1], device=device)
            seen = places.clamp(max=self.config.max_length - 1)
            state = self.output(self._ask(places + 1, first, seen), self.initial_memory(b))
            states.append(state[:, None].expand(-1, steps if keep else 1, -1, -1))
        if sections := t // size:
            finished = sections * size
            ends = torch.arange(size, finished + 1, size, device=device)
            hidden = torch.arange(finished, device=device) >= ends[:, None]
            seen = torch.arange(finished, device=device).clamp(max=self.config.max_length - 1)
            parts = self.process.project(self.text(tokens[:, :finished], seen))
            parts = [x[:, None].expand(-1, sections, -1, -1, -1).flatten(0, 1) for x in parts]
            rows = None if keys is None else boundary_keys(keys, sections)
            memories, latents = self.think(parts, hidden.repeat(b, 1), steps, keep, rows)
            places = torch.arange(size - 1, size - 1 + finished, device=device)
            carried = F.pad(tokens, (0, size))[:, places].reshape(b * sections, size)
            places = places.clamp(max=self.config.max_length - 1).view(sections, size)
            asked = self._ask(offsets, carried, places.repeat(b, 1))
            later = torch.stack([self.output(asked, m) for m in memories], 1)
            later = later.unflatten(0, (b, sections)).transpose(1, 2).flatten(2, 3)
            states.append(later)
            extra["latents"] = latents.unflatten(0, (b, sections))
        return torch.cat(states, 2)[:, :, :t], extra

    def _prompted(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        room: int,
        steps: int,
        keep: bool,
        keys: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k o c"], Int[Tensor, "b o"], Float[Tensor, "b k l c"]]:
        """States of `room` positions from the prompt's last on, those positions, the latents."""
        most = self.queries.num_embeddings
        if self.config.max_outputs is not None and room > most:
            raise ValueError(f"an answer must have at most {most} tokens (max_outputs), got {room}")
        device = tokens.device
        prompts = tokens[:, : int(prompt_lengths.max())]
        hidden = torch.arange(prompts.shape[1], device=device) >= prompt_lengths[:, None]
        parts = self.process.project(self.text(prompts))
        memories, latents = self.think(parts, hidden, steps, keep, keys)
        offsets = torch.arange(room, device=device)
        places = prompt_lengths[:, None] - 1 + offsets
        carried = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        seen = places.clamp(max=self.config.max_length - 1)
        asked = self._ask(offsets.clamp(max=most - 1), carried, seen)
        states = torch.stack([self.output(asked, m) for m in memories], 1)
        return states, places, latents

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
    ) -> Thought:
        steps = self.check_steps(num_steps)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        states, extra = self._states(tokens, prompt_lengths, steps, keep_states)
        if self.config.num_probes:
            extra["probes"] = self.probe(states if keep_states else states[:, -1])
        logits = self.output.logits(states[:, -1])
        return Thought(logits, states if keep_states else None, extra)

    def _states(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"] | None,
        steps: int,
        keep: bool,
        keys: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k t c"], dict[str, Tensor]]:
        """The prompt's positions by sections, the answer's from the boundary at its start."""
        states, extra = self._sectioned(tokens, steps, keep, keys)
        if prompt_lengths is None:
            return states, extra
        t = tokens.shape[1]
        room = t - int(prompt_lengths.min()) + 1
        answers, places, latents = self._prompted(tokens, prompt_lengths, room, steps, keep, keys)
        source = torch.arange(t, device=tokens.device) - prompt_lengths[:, None] + 1
        index = source.clamp(min=0)[:, None, :, None].expand(-1, states.shape[1], -1, self.dim)
        answered = (source >= 0)[:, None, :, None]
        return states.where(~answered, answers.gather(2, index)), {"latents": latents}

    @property
    def dim(self) -> int:
        """Width of the latents."""
        return self.config.dim

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self.output.logits(states)

    # Looking inside ---------------------------------------------------------------------------

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        # position i is read in the section of token i + 1
        finished = masks.table(masks.finished_sections(self.config.section), length + 1)
        return finished[0, 1:, :length]

    def attention(
        self, watch: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> dict[str, Float[Tensor, "k t n"]]:
        """What the queries read of memory: the words, the knowledge, the latents of each step."""
        config, size = self.config, self.config.section
        sections = length // size
        if prompt_length is None and not sections:
            return {}
        per_step = config.output_steps * config.num_layers
        calls = watch.named("memory")[-num_steps * per_step :]
        start = size - 1 if prompt_length is None else prompt_length - 1
        words = sections * size if prompt_length is None else prompt_length
        like = calls[0]
        found = {
            "words": like.new_zeros(num_steps, length, length),
            "knowledge": like.new_zeros(num_steps, length, config.num_knowledge),
            "latents by step": like.new_zeros(num_steps, length, num_steps),
        }
        for s in range(num_steps):
            weights = torch.stack(calls[s * per_step : (s + 1) * per_step]).mean(0)
            weights = weights.flatten(0, 1)[: length - start]
            rows = slice(start, start + len(weights))
            again = config.read_steps is None or s < config.read_steps
            past = s + 1 if config.memory_steps is None else min(s + 1, config.memory_steps)
            parts = weights.split(
                [again * words, config.num_knowledge, past * config.num_latents], 1
            )
            found["words"][s, rows, : again * words] = parts[0]
            found["knowledge"][s, rows] = parts[1]
            by_step = parts[2].unflatten(1, (past, config.num_latents)).sum(2)
            found["latents by step"][s, rows, s + 1 - past : s + 1] = by_step
        return {name: x for name, x in found.items() if x.shape[2]}

    # Learning ---------------------------------------------------------------------------------

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """Cross-entropy of the answer after the last step, or of those after each, weighted.

        In training the latents are disturbed as configured, from `batch.keys`; rows without keys
        draw theirs from torch's global generator.
        """
        steps, batch = self.check_steps(num_steps), as_batch(batch, self)
        tokens = self.check_tokens(batch.tokens, batch.lengths, batch.prompt_lengths)
        targets = base.graded_targets(batch)
        keep = self.config.step_loss == "every"
        keys = self._keys(batch) if self.training else None
        prompts = batch.prompt_lengths
        if prompts is not None and (room := answer_room(targets, prompts)):
            states, places, _ = self._prompted(tokens, prompts, room, steps, keep, keys)
            beyond = places >= targets.shape[1]
            places = places.clamp(max=targets.shape[1] - 1)
            targets = targets.gather(1, places).masked_fill(beyond, IGNORED)
        else:
            states, _ = self._states(tokens, prompts, steps, keep, keys)
        weights = self._step_weights(states.shape[1])
        own = self.counts(batch)
        count = (counts or own)["next_token"]
        total = torch.zeros((), device=tokens.device)
        for i, weight in enumerate(weights):
            if weight:
                logits = self.output.logits(states[:, i])
                total = total + weight * base.next_token_loss(logits, targets, count)
        correct = base.correct_rows(logits, targets)
        return Loss(total, {"next_token": total.detach()}, own, correct)

    def _step_weights(self, steps: int) -> list[float]:
        """Of each graded step, adding up to 1."""
        given = self.config.step_weights or (1.0,)
        weights = [given[min(i, len(given) - 1)] for i in range(steps)]
        return [w / sum(weights) for w in weights]

    def _keys(self, batch: Batch) -> Int[Tensor, " b"] | None:
        config = self.config
        if not (self.disturb or config.random_latents or config.add_latents):
            return None
        if batch.keys is not None:
            return batch.keys
        return torch.randint(2**62, (len(batch),)).to(batch.tokens.device)

    # Generating -------------------------------------------------------------------------------

    def answer(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        max_new_tokens: int,
        num_steps: int | None = None,
    ) -> Int[Tensor, "b n"]:
        """Greedy generation; where queries carry no tokens, all of them at once."""
        if self.config.output != "parallel" or max_new_tokens == 0:
            return super().answer(tokens, prompt_lengths, max_new_tokens, num_steps)
        rows, lengths, steps = check_call(self, tokens, max_new_tokens, num_steps, prompt_lengths)
        with eval_mode(self):
            states, _, _ = self._prompted(rows, lengths, max_new_tokens, steps, keep=False)
            return self.output.logits(states[:, -1]).argmax(-1)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
    ) -> tuple[Float[Tensor, "b v"], ThinkerCache]:
        cache = ThinkerCache(self, lengths, num_steps, prompted, capacity)
        t, size = tokens.shape[1], self.config.section
        start = lengths[:, None] - 1
        if prompted:
            hidden = torch.arange(t, device=tokens.device) >= lengths[:, None]
            inputs = self.process.project(self.text(tokens))
            cache.remember(self.think(inputs, hidden, num_steps)[0][-1])
        else:
            finished = t // size * size
            if finished:
                cache.read(self, tokens[:, :finished])
            cache.pending = tokens[:, finished:]
            start = start.new_full(start.shape, max(0, finished - 1))
        positions = start + torch.arange(1 if prompted else t - int(start[0]), device=start.device)
        return self._write(tokens.gather(1, positions), positions, cache), cache

    def extend(self, tokens: Int[Tensor, " b"], cache: ThinkerCache) -> Float[Tensor, "b v"]:
        positions = cache.lengths[:, None]
        cache.append(self, tokens)
        return self._write(tokens[:, None], positions, cache)

    def _write(
        self, tokens: Int[Tensor, "b n"], positions: Int[Tensor, "b n"], cache: ThinkerCache
    ) -> Float[Tensor, "b v"]:
        """The logits after these tokens of the section that is being written."""
        n = tokens.shape[1]
        offsets = torch.arange(cache.offset, cache.offset + n, device=tokens.device)
        asked = self._ask(offsets, tokens, positions)
        if cache.offset == cache.begun:
            turns = None
            cache.written.lengths = cache.written.lengths + n
        else:
            turns = cache.written.grow()
        cache.offset += n
        return self.output.logits(self.output(asked, cache.memory, turns, cache.written)[:, -1])

    def flops(
        self, batch_size: int, length: int, num_steps: int | None = None, training: bool = False
    ) -> int:
        """Of the form without prompts; in training, of the loss as it is configured."""
        steps, process, size = self.check_steps(num_steps), self.process, self.config.section
        sections, first = length // size, min(length, size - 1)
        learned = self.config.num_latents
        begun = process.project_flops(learned)
        begun += self.config.output_steps * process.flops(batch_size, first, learned)
        total = 3 * begun if training else begun
        if sections:
            rows, read = batch_size * sections, sections * size
            total += self._thinking_flops(rows, read, batch_size * read, size, steps, training)
        return total + self._head_flops(batch_size * length, steps, training)

    def batch_flops(
        self, batch: Batch, num_steps: int | None = None, training: bool = False
    ) -> int:
        """With prompts, of the prompt-then-answer form, which is what such rows are read in."""
        prompts, rows = batch.prompt_lengths, len(batch)
        room = 0 if prompts is None else answer_room(base.graded_targets(batch), prompts)
        if prompts is None or not room:
            return super().batch_flops(batch, num_steps, training)
        steps, read = self.check_steps(num_steps), int(prompts.max())
        thinking = self._thinking_flops(rows, read, rows * read, room, steps, training)
        return thinking + self._head_flops(rows * room, steps, training)

    def _thinking_flops(
        self, rows: int, read: int, projected: int, queries: int, steps: int, training: bool
    ) -> int:
        """Of thinking in each row about the words it can read, then writing from the memory."""
        config, process = self.config, self.process
        latents = config.num_latents + (config.add_latents if training else 0)

        def memory(s: int) -> int:
            """Vectors in M_s."""
            if s == 0:
                return read
            again = config.read_steps is None or s - 1 < config.read_steps
            past = s if config.memory_steps is None else min(s, config.memory_steps)
            return again * read + config.num_knowledge + past * latents

        thought = 0
        for s in range(steps):
            step = process.flops(rows, latents, memory(s))
            if config.memory_steps != 0:
                step += process.project_flops(rows * latents)
            thought += 3 * step if training and self._learns(s, steps) else step
        once = process.project_flops(projected + config.num_knowledge)
        for s in self._written(steps, training):
            once += config.output_steps * process.flops(rows, queries, memory(s + 1))
        return thought + (3 * once if training else once)

    def _head_flops(self, positions: int, steps: int, training: bool) -> int:
        config = self.config
        head = config.dim * (config.vocab_size + config.num_probes * (not training))
        once = 2 * positions * head * len(self._written(steps, training))
        return 3 * once if training else once

    def _written(self, steps: int, training: bool) -> range:
        """The steps after which an answer is written."""
        every = training and self.config.step_loss == "every"
        return range(steps) if every else range(steps - 1, steps)


def answer_room(targets: Int[Tensor, "b t"], prompt_lengths: Int[Tensor, " b"]) -> int:
    """How many positions from the prompt's last on are graded; 0 if others are graded too."""
    offsets = torch.arange(targets.shape[1], device=targets.device) - prompt_lengths[:, None] + 1
    graded = targets != IGNORED
    if (graded & (offsets < 0)).any():
        return 0
    return max(1, int((offsets + 1).where(graded, 0).max()))


def boundary_keys(keys: Int[Tensor, " b"], sections: int) -> Int[Tensor, " r"]:
    """A key for each boundary of each row."""
    numbers = torch.arange(sections, device=keys.device)
    return mix_tensor(keys[:, None] + mix_tensor(numbers)).flatten()


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError if `value` is none of these."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
