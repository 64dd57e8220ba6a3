"""Thinker: latent vectors that attend, step by step, to the input and to their own past."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.models import thinker_flops
from thinkers.models.base import Thought
from thinkers.models.batch import (
    IGNORED,
    Batch,
    Loss,
    as_batch,
    graded_targets,
)
from thinkers.models.extra_inputs import Extra, extra_option
from thinkers.models.generation import check_call, choosable, eval_mode
from thinkers.models.halt import (
    Halt,
    HaltingCache,
    check_halt,
    check_steps_taken,
    full_steps,
    with_policy,
)
from thinkers.models.halting_model import HaltingModel
from thinkers.models.memory_option import memory_option
from thinkers.models.positions import Positions, refuse_positions
from thinkers.models.step_loss import loss_of_states
from thinkers.models.thinker_cache import ThinkerCache
from thinkers.models.thinker_config import ThinkerConfig
from thinkers.models.thinker_halting import (
    Boundaries,
    boundary_loss,
    gates_of,
)
from thinkers.models.thinker_input import (
    check_inputs,
    count_inputs,
    read_prompts,
    read_text,
    text_input,
)
from thinkers.models.thinker_live import LiveRows, live_thinking
from thinkers.models.thinker_memory import BlockMemory
from thinkers.models.thinker_memory_flops import of_documents
from thinkers.models.thinker_policy import Policy
from thinkers.models.thinker_reading import Reading
from thinkers.models.thinker_recall import (
    NO_THINKINGS,
    Thinkings,
    block_thinking,
    check_memory,
)
from thinkers.models.thinker_sizes import answer_room, check_room, prompt_sizes
from thinkers.models.thinker_tracing import read_out_attention
from thinkers.models.tools import Tool, check_tools, tools_option
from thinkers.nn.latent_noise import Disturb, random_latents, split_keys
from thinkers.nn.latent_store import LatentStore, Memory
from thinkers.nn.layers import Head, initialize, swiglu_width
from thinkers.nn.processor import Output, Probe, Process, Read
from thinkers.nn.tracing import AttentionRecord
from thinkers.ops import masks


class Thinker(BlockMemory, HaltingModel):
    """A few latent vectors that are updated over a memory, from which the output is read.

        input   = layers(x + conv(x)), x = embedded tokens and positions
        latent_(s+1) = block(latent_s, M_s), s = 0 .. n - 1
        M_0     = [input]
        M_(s+1) = [input if s < read_steps] + [the last `memory_steps` latents] + [knowledge]
        logits  = E output(queries, M_n)

    n is `num_steps`; latent_s is (b, l, c), and latent_0 is learned. The memory M_s is a set of
    vectors (b, m, c): the input, the latents after earlier steps, and learned knowledge. In the
    input, conv(x)_i = sum_j w_j * x_(i-j), j = 0 .. `mixing` - 1, within a section or the prompt,
    and layers are `num_input_layers` causal ones over all text so far (`CausalMixing`).
    block attends from the latents to M_s. output() passes one query per predicted token
    `output_steps` times through the same block, over M_n. Idea and toy model:
    https://github.com/domguia/thinker.

    Without `prompt_lengths`, a row is cut into sections of `section` tokens. At the end of each
    section, new latents think about all finished sections, and the tokens of the next section are
    predicted from their memory; those of the first are predicted from latent_0. With
    `prompt_lengths`, the latents think about the prompt, and the answer is predicted from M_n. With
    `halt`, prompts and sections take different numbers of steps: see
    `thinkers.models.thinker_halting`. A long-term memory adds blocks to M_s, s >= 1: see
    `thinkers.models.thinker_memory`. A subclass that puts an `Input` into `inputs` reads what rows
    have under its name in `Batch.extra`, after their prompts: see docs/own_input.md.
    """

    name = "thinker"
    ragged_text = False  # sections end at the same columns of all rows
    not_trained = ("policy.", "inputs.")  # by rows of tokens alone
    mask_caption = "Each position attends, through memory, to the sections finished before it."
    test_variants = (
        {"num_latents": 3, "read_steps": 1, "memory_steps": 2, "num_knowledge": 3},
        {"output": "parallel", "output_steps": 2, "self_attention": "feed_forward", "rank": 5},
        {"self_attention": "none", "step_loss": "every", "backprop_steps": 2, "section": 5},
        {"noise": 0.1, "drop": 0.1, "replace": 0.1, "add_latents": 2, "random_latents": True},
        {"mixing": 3, "num_input_layers": 1, "section": 5},
        {"halting": True, "section": 5, "read_steps": 2, "num_knowledge": 2, "num_layers": 1},
        {"policy": True, "section": 5, "memory_steps": 2, "num_knowledge": 2, "num_layers": 1},
        {"memory": "blocks", "section": 5, "mixing": 3, "memory_levels": 2, "read_level": 2}
        | {"memory_conditioned": True},
    )

    class Config(ThinkerConfig):
        """Settings of a Thinker; `num_layers` is the depth of the block."""

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
        self.calls_tools = config.output == "autoregressive"
        self.text = text_input(self.config)
        self.read = Read(self.process, self.text)
        self.inputs = nn.ModuleDict()
        embedding = self.text.embedding
        self.head = Head(embedding, config.tie_head)
        self.output = Output(self.process, embedding, config.output_steps, self.causal, self.head)
        self.latents = nn.Embedding(config.max_latents or config.num_latents, dim)
        longest = max(self.config.max_length, config.section)
        self.queries = nn.Embedding(config.max_outputs or longest, dim)
        if config.num_knowledge:
            self.knowledge = nn.Embedding(config.num_knowledge, dim)
        if config.num_probes:
            self.probe = Probe(dim, config.num_probes)
        self.disturb = Disturb(config.noise, config.drop, config.replace)
        self.make_gate()
        self.make_memory()
        if config.policy:
            self.policy = Policy(dim, config.memory == "blocks")
        initialize(self, num_residuals=3 * config.num_layers)
        nn.init.normal_(self.latents.weight)
        nn.init.normal_(self.queries.weight, std=0.5)
        self.reset_memory()
        if config.policy:
            self.policy.reset()

    @property
    def takes_extra(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.inputs)

    @property
    def halts_by(self) -> tuple[str, ...]:
        # Not by answers, of which several are written from one thought.
        return ("gate",) * self.config.halting + ("policy",) * self.config.policy

    # Thinking ---------------------------------------------------------------------------------

    def think(
        self,
        inputs: list[Float[Tensor, "b h m d"]],
        hidden: Bool[Tensor, "b m"] | None,
        steps: int,
        keep_states: bool = False,
        keys: Int[Tensor, " b"] | None = None,
        knowledge: Int[Tensor, "#b n"] | None = None,
        reading: Reading | None = None,
    ) -> tuple[list[Memory], Float[Tensor, "b k l c"]]:
        """Return memory and latents after the last step, or with `keep_states` after each.

        Args:
            inputs: Keys and values of the input, from `Process.project`.
            hidden: True where an input is padding.
            keys: One key per row, from which noise on the latents is drawn; None means no noise.
            knowledge: Knowledge slots that each row reads; None means all, (b, 0) none of them.
            reading: Reads a long-term memory at each step after the first.
        """
        config, b = self.config, inputs[0].shape[0]
        latent = self.first_latents(b, keys)
        capacity = inputs[0].shape[2] + config.num_knowledge + steps * latent.shape[1]
        store = LatentStore(self.process, capacity)
        store.write_projected(inputs, "input", hidden)
        if config.num_knowledge and knowledge is None:
            knowledge = torch.arange(config.num_knowledge, device=latent.device)[None]
        if config.num_knowledge and knowledge is not None and knowledge.shape[1]:
            known = self.process.project(self.knowledge(knowledge))
            store.write_projected([x.expand(b, -1, -1, -1) for x in known], "knowledge")
        memories, latents = [], []
        for s in range(steps):
            if self._cuts_gradient(s, steps):
                latent = latent.detach()
                store.stop_gradient()
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns(s, steps)):
                if keys is not None and self.disturb:
                    latent = self.disturb(latent, keys, s + 1, self.learned_latents())
                memory = self._memory(store, s)
                if reading is not None and s:
                    memory = reading.join(memory, latent, s, torch.arange(b, device=latent.device))
                latent = self.thought_hook(self.process(latent, memory), s)
                if config.memory_steps != 0:
                    store.write(latent)
            if keep_states or s == steps - 1:
                memories.append(self._memory(store, s + 1))
                latents.append(latent)
        return memories, torch.stack(latents, 1)

    def _memory(self, store: LatentStore, s: int) -> Memory:
        """Return M_s, the memory of step s, from which `output` reads after step s - 1."""
        if s == 0:
            return store.read(("input",))
        rereads = self.config.read_steps is None or s - 1 < self.config.read_steps
        kinds = ("input", "knowledge", "latent") if rereads else ("knowledge", "latent")
        return store.read(kinds, self.config.memory_steps)

    def learned_latents(self) -> Float[Tensor, "l c"]:
        # A look-up, since a slice of the parameter would require gradients even under no_grad.
        rows = torch.arange(self.config.num_latents, device=self.latents.weight.device)
        return self.latents(rows)

    def first_latents(self, b: int, keys: Int[Tensor, " b"] | None) -> Float[Tensor, "b l c"]:
        """Return latent_0 of each row; keys None means without noise."""
        learned, config = self.learned_latents(), self.config
        latent = learned.expand(b, -1, -1)
        if keys is not None and config.random_latents:
            latent = random_latents(learned, keys, -1, config.num_latents)
        if keys is not None and config.add_latents:
            added = random_latents(learned, keys, -2, config.add_latents)
            latent = torch.cat([latent, added], 1)
        return latent

    def _cuts_gradient(self, s: int, steps: int) -> bool:
        """Return True if the gradient stops before s: every `backprop_steps`, from the end."""
        k = self.config.backprop_steps
        return k is not None and s > 0 and (steps - s) % k == 0

    def learns(self, s: int, steps: int) -> bool:
        """Return True if the gradient of a graded answer flows through step s."""
        k = self.config.backprop_steps
        return k is None or self.config.step_loss != "last" or s >= steps - k

    # Writing ----------------------------------------------------------------------------------

    def embed(
        self, tokens: Int[Tensor, "b t"], positions: Int[Tensor, "*b t"]
    ) -> Float[Tensor, "b t c"]:
        """Embed tokens at positions in the row; padding may lie beyond the last position."""
        return self.text.embed(tokens, positions.clamp(max=self.config.max_length - 1))

    def _queries(
        self,
        offsets: Int[Tensor, " t"],
        tokens: Int[Tensor, "b t"],
        positions: Int[Tensor, "*b t"],
    ) -> Float[Tensor, "b t c"]:
        """Return the output queries that predict what follows these tokens.

        Args:
            offsets: Places in the section or the answer.
            positions: Positions of the tokens in the row.
        """
        queries = self.queries(offsets).expand(tokens.shape[0], -1, -1)
        if self.config.output == "parallel":
            return queries
        return queries + self.embed(tokens, positions)

    def initial_memory(self, b: int) -> Memory:
        """Return the learned latents as memory, from which the first section is written."""
        parts = self.process.project(self.learned_latents()[None])
        parts = [x.expand(b, -1, -1, -1) for x in parts]
        return Memory(parts[::2], parts[1::2])

    def _sectioned(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        keep_states: bool,
        keys: Int[Tensor, " b"] | None = None,
        thinking: Any = None,
    ) -> tuple[Float[Tensor, "b k t c"], Float[Tensor, "b s k l c"] | None]:
        """Return the states of all positions, and the latents of the sections if there are any.

        Position i belongs to the section of token i + 1.
        """
        (b, t), size, device = tokens.shape, self.config.section, tokens.device
        states, of_sections = [], None
        if size > 1:
            first = tokens[:, : size - 1]
            positions = torch.arange(first.shape[1], device=device)
            queries = self._queries(positions + 1, first, positions)
            state = self.output(queries, self.initial_memory(b))
            states.append(state[:, None].expand(-1, steps if keep_states else 1, -1, -1))
        if sections := t // size:
            finished = sections * size
            columns = torch.arange(finished, device=device)
            ends = torch.arange(size, finished + 1, size, device=device)
            # Gathered, since a compiler would take the strides of a slice as a rule for the length.
            inputs = read_text(self, tokens.index_select(1, columns), size)
            memories, latents = (thinking or self.think)(
                [x.repeat_interleave(sections, 0) for x in inputs],
                (columns >= ends[:, None]).repeat(b, 1),
                steps,
                keep_states,
                None if keys is None else split_keys(keys, sections),
            )
            before = F.pad(tokens, (0, size)).index_select(1, columns + size - 1)
            positions = (columns + size - 1).view(sections, size).repeat(b, 1)
            queries = self._queries(columns[:size], before.reshape(-1, size), positions)
            later = torch.stack([self.output(queries, memory) for memory in memories], 1)
            later = later.unflatten(0, (b, sections)).transpose(1, 2).flatten(2, 3)
            states.append(later)
            of_sections = latents.unflatten(0, (b, sections))
        return torch.cat(states, 2)[:, :, :t], of_sections

    def _prompted(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        sizes: tuple[int, int],
        steps: int,
        keep_states: bool,
        keys: Int[Tensor, " b"] | None = None,
        thinking: Any = None,
        extra: Extra = None,
    ) -> tuple[Float[Tensor, "b k o c"], Int[Tensor, "b o"], Float[Tensor, "b k l c"]]:
        """Return the states of the answer, their positions in the row, and the latents.

        Args:
            sizes: Width of the longest prompt; number of positions of the answer, from the last
                token of the prompt on.
        """
        (longest, room), device = sizes, tokens.device
        check_room(self.config, room)
        inputs, hidden = read_prompts(self, tokens[:, :longest], prompt_lengths, extra)
        think = thinking or self.think
        memories, latents = think(inputs, hidden, steps, keep_states, keys)
        offsets = torch.arange(room, device=device)
        positions = prompt_lengths[:, None] - 1 + offsets
        before = tokens.gather(1, positions.clamp(max=tokens.shape[1] - 1))
        offsets = offsets.clamp(max=self.queries.num_embeddings - 1)
        queries = self._queries(offsets, before, positions)
        states = torch.stack([self.output(queries, memory) for memory in memories], 1)
        return states, positions, latents

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        halt: Halt = None,
        policy: bool = False,
        memory: Any = None,
        extra: Extra = None,
    ) -> Thought:
        steps, halt = self.check_steps(num_steps), check_halt(self, with_policy(halt, policy))
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        sizes = prompt_sizes(prompt_lengths, tokens.shape[1], self.causal, lengths)
        live = None
        if halt is not None:
            live = LiveRows(self, halt, tokens, lengths, prompt_lengths)
        blocks = check_memory(self, memory, len(tokens), steps)
        check_inputs(self, extra, len(tokens), prompt_lengths)
        thinking = Thinkings.of(self, live, blocks, self.config.memory_top)
        states, of_sections, of_prompts = self._states(
            tokens, prompt_lengths, sizes, steps, keep_states, None, thinking, extra
        )
        taken = full_steps(tokens, steps) if live is None else live.steps()
        latents = of_sections if of_prompts is None else of_prompts
        found = {} if latents is None else {"latents": latents}
        found |= thinking.extra(steps, prompt_lengths is not None)
        if live is not None and (actions := live.actions()) is not None:
            found["actions"] = actions
        if self.config.num_probes:
            found["probes"] = self.probe(states if keep_states else states[:, -1])
        logits = self.output.logits(states[:, -1])
        return Thought(logits, states if keep_states else None, found, taken)

    def _states(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"] | None,
        sizes: tuple[int, int],
        steps: int,
        keep_states: bool,
        keys: Int[Tensor, " b"] | None = None,
        thinking: Thinkings = NO_THINKINGS,
        extra: Extra = None,
    ) -> tuple[
        Float[Tensor, "b k t c"],
        Float[Tensor, "b s k l c"] | None,
        Float[Tensor, "b k l c"] | None,
    ]:
        """Return the states of all positions, and the latents of sections and prompts.

        The states of prompts are those of sections; then come those of answers.
        """
        states, of_sections = self._sectioned(tokens, steps, keep_states, keys, thinking.sections)
        if prompt_lengths is None:
            return states, of_sections, None
        answers, _, of_prompts = self._prompted(
            tokens, prompt_lengths, sizes, steps, keep_states, keys, thinking.prompts, extra
        )
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        source = (columns - prompt_lengths[:, None] + 1)[:, None, :, None]
        index = source.clamp(0, answers.shape[2] - 1).expand(
            -1, states.shape[1], -1, self.config.dim
        )
        return states.where(source < 0, answers.gather(2, index)), of_sections, of_prompts

    def read_out(self, states: Float[Tensor, "b k t c"]) -> Float[Tensor, "b k t v"]:
        return self.output.logits(states)

    # Training ---------------------------------------------------------------------------------

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        """Compute the cross-entropy after the last step, or the mean of those of graded steps.

        In training, noise on the latents is drawn from `batch.keys`; without keys, from
        torch's global generator.
        """
        steps, batch = self.check_steps(num_steps), as_batch(batch, self)
        check_inputs(self, batch.extra, len(batch), batch.prompt_lengths)
        own = self.count_terms(batch)
        tokens, prompts, size = batch.tokens, batch.prompt_lengths, self.config.section
        every = self.config.halting or self.config.step_loss != "last"
        keys = self._noise_keys(batch)
        blocks = check_memory(self, self.blocks_of(batch), len(batch), steps)
        thinking = Thinkings.of(self, None, blocks, None)
        if prompts is not None and (room := answer_room(batch.targets, prompts)):
            # Only answers are graded: the states of prompts are not computed.
            states, latents, graded = self.answer_states(
                batch, room, steps, every, keys, thinking.prompts
            )
            boundaries = Boundaries(torch.zeros_like(graded.targets), 1)
            thoughts: tuple[Tensor | None, Tensor | None] = (None, latents)
        else:
            sizes = prompt_sizes(prompts, tokens.shape[1], self.causal, batch.lengths)
            states, *found = self._states(
                tokens, prompts, sizes, steps, every, keys, thinking, batch.extra
            )
            thoughts = found[0], found[1]
            graded, boundaries = batch, Boundaries.of_rows(batch, size)
        if self.config.halting:
            gates, extra = gates_of(self, *thoughts, states), self._row_keys(batch)
            loss = boundary_loss(self, states, graded, boundaries, gates, extra, own, counts or own)
        else:
            loss = loss_of_states(self, states, graded, own, (counts or own)["next_token"])
        return thinking.with_index_loss(self, loss, prompts is not None, steps, counts or own)

    def graded_logits(
        self, batch: Batch, num_steps: int | None = None
    ) -> tuple[Float[Tensor, "b u v"], Int[Tensor, "b u"]]:
        prompts, steps = batch.prompt_lengths, self.check_steps(num_steps)
        if prompts is None or not (room := answer_room(batch.targets, prompts)):
            return super().graded_logits(batch, steps)
        states, _, graded = self.answer_states(batch, room, steps, False)
        return self.read_out(states)[:, -1], graded.targets

    def answer_states(
        self,
        batch: Batch,
        room: int,
        steps: int,
        keep_states: bool,
        keys: Int[Tensor, " b"] | None = None,
        thinking: Any = None,
    ) -> tuple[Float[Tensor, "b k o c"], Float[Tensor, "b k l c"], Batch]:
        """Return the states of the answers, the latents, and the answers with their targets.

        Args:
            batch: Rows with prompts, after whose last token alone there are targets.
            room: The positions of the longest answer: see `answer_room`.
            thinking: Thinks in place of `think`, with rows that stop by themselves or a memory.
        """
        tokens, prompts, targets = batch.tokens, batch.prompt_lengths, batch.targets
        assert prompts is not None
        sizes = prompt_sizes(prompts, tokens.shape[1], self.causal)
        states, positions, latents = self._prompted(
            tokens, prompts, (sizes[0], room), steps, keep_states, keys, thinking, batch.extra
        )
        beyond = positions >= targets.shape[1]
        positions = positions.clamp(max=targets.shape[1] - 1)
        early = batch.early
        if early is not None:
            early = early.take_along_dim(positions[..., None], 1)
        answers = Batch(
            tokens.gather(1, positions),
            targets.gather(1, positions).masked_fill(beyond, IGNORED),
            due=None if batch.due is None else batch.due.gather(1, positions),
            early=early,
        )
        return states, latents, answers

    def count_terms(self, batch: Batch) -> dict[str, int]:
        counts = super().count_terms(batch)
        if self.config.halting:
            graded = Boundaries.of_rows(batch, self.config.section).are_graded(batch.targets)
            counts["halt"] = int(graded.sum())
        return counts | self.count_blocks(batch)

    def _noise_keys(self, batch: Batch) -> Int[Tensor, " b"] | None:
        config = self.config
        if not (self.disturb or config.random_latents or config.add_latents):
            return None
        return self._row_keys(batch)

    # Generation -------------------------------------------------------------------------------

    def answer(
        self,
        tokens: Int[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        max_new_tokens: int,
        num_steps: int | None = None,
        positions: Positions | None = None,
        halt: Halt = None,
        return_steps: bool = False,
        tools: Sequence[Tool] = (),
        policy: bool = False,
        memory: Any = None,
        extra: Extra = None,
    ) -> Any:
        """Generate greedily; with parallel output, predict all tokens of the answer at once."""
        refuse_positions(self, positions)
        halt = check_halt(self, with_policy(halt, policy))
        check_tools(self, tools)
        if self.config.output != "parallel" or max_new_tokens == 0:
            return super().answer(
                tokens,
                prompt_lengths,
                max_new_tokens,
                num_steps,
                halt=halt,
                return_steps=return_steps,
                **tools_option(tools),
                **memory_option(memory),
                **extra_option(extra),
            )
        rows, lengths, steps = check_call(self, tokens, max_new_tokens, num_steps, prompt_lengths)
        sizes = rows.shape[1], max_new_tokens
        live = None if halt is None else live_thinking(self, halt)
        blocks = check_memory(self, memory, len(rows), steps)
        check_inputs(self, extra, len(rows), lengths)
        with eval_mode(self):
            think = block_thinking(self, live, blocks, self.config.memory_top)
            states, _, _ = self._prompted(rows, lengths, sizes, steps, False, None, think, extra)
            answer = choosable(self.output.logits(states[:, -1])).argmax(-1)
        if not return_steps:
            return answer
        taken = full_steps(lengths, steps) if live is None else live.taken
        return answer, taken[:, None].expand(answer.shape)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
        *,
        halt: Halt = None,
        memory: Any = None,
        extra: Extra = None,
    ) -> tuple[Float[Tensor, "b v"], ThinkerCache | HaltingCache]:
        live = None if halt is None else live_thinking(self, halt)
        blocks = check_memory(self, memory, len(tokens), num_steps)
        check_inputs(self, extra, len(tokens), lengths if prompted else None)
        thinking = block_thinking(self, live, blocks, self.config.memory_top)
        cache = ThinkerCache(self, lengths, num_steps, prompted, capacity, live, thinking)
        (b, t), size = tokens.shape, self.config.section
        if prompted:
            check_room(self.config, capacity - t)
            cache.think(self, *read_prompts(self, tokens, lengths, extra))
            positions = lengths[:, None] - 1
        else:
            # Without prompt lengths all rows have t tokens.
            finished = t // size * size
            if finished:
                cache.read(self, tokens[:, :finished])
            cache.pending = tokens[:, finished:]
            first = max(0, finished - 1)
            positions = torch.arange(first, t, device=tokens.device).expand(b, -1)
        logits = self._write(tokens.gather(1, positions), positions, cache)
        if halt is None:
            return logits, cache
        return logits, HaltingCache(cache, num_steps, halt, cache.taken)

    def extend(
        self, tokens: Int[Tensor, " b"], cache: ThinkerCache | HaltingCache
    ) -> Float[Tensor, "b v"]:
        kept = cache.kept if isinstance(cache, HaltingCache) else cache
        positions = kept.lengths[:, None]
        kept.append(self, tokens)
        cache.taken = kept.taken
        return self._write(tokens[:, None], positions, kept)

    def _write(
        self, tokens: Int[Tensor, "b n"], positions: Int[Tensor, "b n"], cache: ThinkerCache
    ) -> Float[Tensor, "b v"]:
        """Return the logits after these tokens of the section that is being written."""
        offsets = torch.arange(tokens.shape[1], device=tokens.device) + cache.offset
        queries = self._queries(offsets, tokens, positions)
        rotary = cache.advance(tokens.shape[1])
        return self.output.logits(self.output(queries, cache.memory, rotary, cache.written)[:, -1])

    def flops(
        self,
        batch_size: int,
        length: int,
        num_steps: int | None = None,
        training: bool = False,
        *,
        steps: Int[Tensor, "b t"] | None = None,
    ) -> int:
        """Return the operations without prompts; in training, those of the configured loss."""
        num = self.check_steps(num_steps)
        if steps is not None:
            check_steps_taken(steps, (batch_size, length), num)
            return thinker_flops.live_sectioned(self, steps)
        return thinker_flops.sectioned(self, batch_size, length, num, training)

    def need_flops(self, batch_size: int, length: int, num_steps: int) -> int:
        return 0  # found from the states that are graded

    def answer_flops(self, batch_size: int, length: int) -> int:
        return 2 * batch_size * length * self.config.dim * self.config.vocab_size

    def batch_flops(
        self,
        batch: Batch,
        num_steps: int | None = None,
        training: bool = False,
        *,
        steps: Int[Tensor, "b t"] | None = None,
    ) -> int:
        """Return the operations of these rows; rows with prompts are read prompt by prompt."""
        prompts, num = batch.prompt_lengths, self.check_steps(num_steps)
        read = of_documents(self, batch, num, training)
        room = 0 if prompts is None else answer_room(graded_targets(batch), prompts)
        if prompts is None or not room:
            return read + super().batch_flops(batch, num_steps, training, steps=steps)
        longest = int(prompts.max())
        if steps is not None:
            check_steps_taken(steps, (len(batch), batch.tokens.shape[1]), num)
            taken = steps.gather(1, prompts[:, None] - 1)[:, 0]
            return read + thinker_flops.live_prompted(self, taken, longest, room)
        others, embedded = count_inputs(self, batch.extra)
        read += embedded * (3 if training else 1)
        sizes = longest, room, num, training, others
        return read + thinker_flops.prompted(self, len(batch), *sizes)

    # Tracing ----------------------------------------------------------------------------------

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        # Position i predicts token i + 1, and belongs to the section of that token.
        finished = masks.table(masks.finished_sections(self.config.section), length + 1)
        return finished[0, 1:, :length]

    def attention(
        self, record: AttentionRecord, length: int, num_steps: int, prompt_length: int | None = None
    ) -> dict[str, Float[Tensor, "k t _"]]:
        """Return the weights of the output queries on tokens, knowledge and the latents by step."""
        return read_out_attention(self.config, record, length, num_steps, prompt_length)
