"""ThoughtsFormer: each position appends a chain of thoughts and predicts from the last one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.models import thoughtsformer_flops
from thinkers.models.base import Thought
from thinkers.models.batch import Batch, Loss, as_batch, real_positions
from thinkers.models.halt import Halt, HaltingCache, check_halt, full_steps
from thinkers.models.halting_model import HaltingModel
from thinkers.models.step_loss import StepLossConfig, loss_of_states
from thinkers.models.thought_cache import ChainCache, GenerationCache
from thinkers.models.thoughtsformer_block import PublishedBlock, drop
from thinkers.models.thoughtsformer_halting import later_live, run_live
from thinkers.nn.block import Block, Table
from thinkers.nn.layers import Head, Rotary, initialize, sinusoidal
from thinkers.ops import masks
from thinkers.prng import uniform


class ThoughtsFormer(HaltingModel):
    """Transformer in which each position has a chain of thoughts, and predicts from the last one.

        t_(i,0) = E[token_i] + position_i; t_(i,s+1) = f(t_(i,s) + code_s), s = 0 .. n - 1
        logits_i = head(t_(i,n))

    n is `num_steps`; a thought t_(i,s) and the code of a step are vectors (c,). f is a stack of
    layers, the same at every step. At step s, position i attends to the base elements (step 0) of
    all positions j <= i and to its own thoughts t_(i,1) .. t_(i,s). No base element attends to a
    thought, so its keys and values are computed once, and a step computes one element per
    position. With causal=False, every element attends to all elements that exist at its step. With
    `halt`, chains end at different steps: see `thinkers.models.halting_model`.

    Design: E. Bicker, https://github.com/EmmettBicker/ThoughtsFormer. The modern variant replaces
    position_i by rotary positions and a norm of the embedding, and ties the head to E.
    """

    name = "thoughtsformer"
    # Not the attention between them, which writes into chains: each step would be other code.
    compiled_methods = ("before_attention", "after_attention")
    mask_caption = (
        "Each token is followed by its chain of thoughts, which attends to tokens and itself."
    )
    test_variants = (
        {"variant": "published", "num_layers": 1},
        {"variant": "published", "hidden": 48},
        {"causal": False, "num_layers": 1},
        {"causal": False},
        {"thoughts": "words"},
        {"step_loss": "wait", "wait_token": 1},
        {"halting": True, "num_layers": 1},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(StepLossConfig):
        """Settings; `num_layers` is the depth of f, 1 in the published model."""

        variant: Literal["published", "modern"] = "modern"
        """published: post-norm, ReLU, biases, learned positions, untied head. modern: pre-norm and
        a norm at the end of a step (both root-mean-square), SwiGLU, no biases, rotary positions,
        head tied to the embedding."""
        causal: bool = True
        """False: no attention mask, for classification and for questions about a whole text."""
        thoughts: Literal["latent", "words"] = "latent"
        """words: each thought is replaced by the embedding of the word that it predicts (in
        training drawn by the straight-through Gumbel-softmax), so that thoughts can be read."""
        word_temperature: float = 1.0
        """Temperature of the softmax through which gradients reach the choice of a word."""
        num_classes: int | None = None
        """Outputs of the published head; None means vocab_size."""
        hidden: int | None = None
        """Hidden size of the feed-forward; None means dim if published, else 8/3 of dim."""
        dropout: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.variant == "published":
                self.refuse_unused(("tie_head",), "variant is published")
            if not isinstance(self.causal, bool):
                raise UsageError(f"causal must be True or False, got {self.causal!r}")
            if self.halting and not self.causal:
                raise UsageError(
                    "causal must be True with halting: without a mask every thought is read by all "
                    f"positions, of which none can stop alone, got {self.causal}"
                )
            if not 0 < self.word_temperature < float("inf"):
                raise UsageError(
                    f"word_temperature must be above 0 and finite, got {self.word_temperature}"
                )
            if self.thoughts == "latent":
                self.refuse_unused(("word_temperature",), "thoughts is latent")
            if self.hidden is not None:
                check_int("hidden", self.hidden, 1)
            if self.num_classes is not None:
                check_int("num_classes", self.num_classes, 1, self.vocab_size, "vocab_size")
                if self.variant != "published" or self.thoughts != "latent":
                    raise UsageError(
                        "num_classes must be None unless variant='published' and "
                        f"thoughts='latent', got {self.num_classes}"
                    )
            if not 0 <= self.dropout < 1:
                raise UsageError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def __init__(self, config: Config):
        super().__init__(config)
        self.causal, self.dropout = config.causal, config.dropout
        self.embedding = nn.Embedding(self.config.vocab_size, config.dim)
        self.codes = nn.Embedding(config.num_steps, config.dim)
        if config.variant == "published":
            self.positions = nn.Embedding(self.config.max_length, config.dim)
            self.head: Any = nn.Linear(config.dim, config.num_classes or self.config.vocab_size)
        else:
            self.rotary = Rotary(config.dim // config.num_heads)
            self.norm = nn.RMSNorm(config.dim, eps=1e-6)
            self.head = Head(self.embedding, config.tie_head)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.num_layers))
        self.make_gate()
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        initialize(self, num_residuals=2 * self.config.num_layers)
        steps = torch.arange(self.config.num_steps)
        self.codes.weight.copy_(sinusoidal(steps, self.config.dim, self.codes.weight.dtype))
        if self.config.variant == "published":
            # Unit variance, comparable to the sinusoidal codes that are added.
            nn.init.normal_(self.embedding.weight)
            nn.init.normal_(self.positions.weight)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
        halt: Halt = None,
    ) -> Thought:
        steps, halt = self.check_steps(num_steps), check_halt(self, halt)
        tokens = self.check_tokens(tokens, lengths, prompt_lengths)
        if halt is None:
            states = self.run(tokens, steps, padding(tokens, lengths), keep_states=keep_states)
            taken = full_steps(tokens, steps)
        else:
            real = real_positions(tokens, lengths)
            states, taken = run_live(self, tokens, real, steps, halt, keep_states)
        return Thought(self.read_out(states[:, -1]), states if keep_states else None, steps=taken)

    def loss(
        self,
        batch: Batch | Int[Tensor, "b t"],
        *,
        num_steps: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Loss:
        batch, steps = as_batch(batch, self), self.check_steps(num_steps)
        own = self.count_terms(batch)
        keys = batch.keys if self.training else None
        hidden = padding(batch.tokens, batch.lengths)
        every = self.config.halting or self.config.step_loss != "last"
        states = self.run(batch.tokens, steps, hidden, keys, keep_states=every)
        if self.config.halting:
            # The thoughts of a token do not depend on the number of others.
            return self.halting_loss(batch, steps, counts, lambda taken: (states, states))
        count = (counts or own)["next_token"]
        return loss_of_states(self, states, batch, own, count)

    def run(
        self,
        tokens: Int[Tensor, "b t"],
        steps: int,
        hidden: Bool[Tensor, "b t"] | None = None,
        keys: Int[Tensor, " b"] | None = None,
        keep_states: bool = False,
    ) -> Float[Tensor, "b k t c"]:
        """Return the state after the last step, or with `keep_states` after each.

        Args:
            hidden: True where a token is padding, anywhere in a row.
            keys: One key per row, from which the words of its thoughts are drawn; None takes the
                likeliest words.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        thought = self.place(self.embedding(tokens), positions)
        table = self.table(positions, thought.dtype)
        recomputes = not self.causal and len(self.blocks) > 1
        chains = ChainCache(len(self.blocks), steps, self.causal, hidden)
        states: list[Tensor] = []
        elements: list[Tensor] = []
        for step in range(steps):
            if recomputes:
                elements.append(self.coded(thought, step))
                state = self._step_on_all(elements, positions, hidden)
            else:
                x = self.coded(thought, step)
                state = self.run_step(x, partial(chains.attend, step), table)
            if keep_states or step == steps - 1:
                states.append(state)
            if step < steps - 1:
                thought = self._next_thought(state, positions, step, keys)
        return torch.stack(states, 1)

    def place(
        self, x: Float[Tensor, "b t c"], positions: Int[Tensor, "*b t"]
    ) -> Float[Tensor, "b t c"]:
        """Add positions to word embeddings, or normalise them where positions are rotary."""
        if self.config.variant == "published":
            # Padding may lie beyond the last position; its elements are never read.
            x = x + self.positions(positions.clamp(max=self.config.max_length - 1))
        else:
            x = F.rms_norm(x, (self.config.dim,), eps=1e-6)
        return drop(x, self)

    def table(self, positions: Int[Tensor, "*b t"], dtype: torch.dtype) -> Table:
        """Return the rotations of these positions; None where positions are in the embeddings."""
        if self.config.variant == "published":
            return None
        return self.rotary.table(positions, dtype)

    def coded(self, thought: Float[Tensor, "b t c"], step: int) -> Float[Tensor, "b t c"]:
        """Add the code of a step: learned, or sinusoidal beyond the steps that were trained."""
        if step < self.config.num_steps:
            return thought + self.codes.weight[step]
        number = torch.tensor([step], device=thought.device)
        return thought + sinusoidal(number, self.config.dim, thought.dtype)

    def run_step(
        self, x: Float[Tensor, "b t c"], attend: Callable[..., Tensor], table: Table
    ) -> Float[Tensor, "b t c"]:
        """Return the state after a step; `attend` takes the layer before queries, keys, values."""
        for layer, block in enumerate(self.blocks):
            x = block(x, table, partial(attend, layer))
        return self.normed(x)

    def normed(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return the state that a step ends with."""
        return x if self.config.variant == "published" else self.norm(x)

    def _step_on_all(
        self,
        elements: list[Tensor],
        positions: Int[Tensor, " t"],
        hidden: Bool[Tensor, "b t"] | None,
    ) -> Float[Tensor, "b t c"]:
        """Compute the next thoughts, recomputing all elements so far in every layer.

        Without a mask, the elements of deeper layers depend on the latest thoughts.
        """
        number, t = len(elements), len(positions)
        table = self.table(positions.repeat(number), elements[0].dtype)
        hidden = None if hidden is None else hidden.repeat(1, number)
        whole = ChainCache(len(self.blocks), 1, False, hidden)
        x = torch.cat(elements, 1)
        return self.run_step(x, partial(whole.attend, 0), table)[:, -t:]

    def _next_thought(
        self,
        state: Float[Tensor, "b t c"],
        positions: Int[Tensor, "*b t"],
        step: int,
        keys: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Return the input of the next step: the state, or the word that it predicts."""
        if self.config.thoughts == "words":
            state = self.words(state, positions, step, keys)
        return self.thought_hook(state, step)

    def words(
        self,
        state: Float[Tensor, "b t c"],
        positions: Int[Tensor, "*b t"],
        step: int,
        keys: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Return the embeddings, at these positions, of the words that states predict.

        A word is drawn from softmax(logits) with the key of its row, and without keys the likeliest
        one is taken. Its gradient is that of a softmax: the straight-through Gumbel-softmax (Jang
        et al. 2016, https://arxiv.org/abs/1611.01144).
        """
        scores = self.read_out(state)
        if keys is not None:
            # The arg-max of scores plus Gumbel noise, -log(-log(u)), is a draw from the softmax.
            # float64, since values of u close to 1 decide the draw.
            drawn = uniform(keys, step, tuple(scores.shape[1:]), torch.float64)
            tiny = torch.finfo(torch.float64).tiny
            scores = scores - (-drawn.clamp(min=tiny).log()).log().to(scores.dtype)
        words = self.embedding(scores.argmax(-1))
        if torch.is_grad_enabled():
            weights = (scores / self.config.word_temperature).softmax(-1)
            soft = weights @ self.embedding.weight.detach()
            words = words + (soft - soft.detach())
        return self.place(words, positions)

    def read_out(self, states: Float[Tensor, "*b c"]) -> Float[Tensor, "*b v"]:
        if self.config.variant == "published":
            return self.head(states)
        return self.head(states, self.embedding)

    def mask(self, length: int, num_steps: int | None = None) -> Bool[Tensor, "t s"]:
        steps = self.check_steps(num_steps)
        chains = masks.table(masks.thought_chains(steps - 1), length * steps)[0]
        return chains if self.causal else torch.ones_like(chains)

    def prefill(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        num_steps: int,
        prompted: bool,
        capacity: int,
        *,
        halt: Halt = None,
    ) -> tuple[Float[Tensor, "b v"], GenerationCache | HaltingCache]:
        cache = GenerationCache(self.config, num_steps, lengths, capacity, self.embedding.weight)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        states = self._first_step(tokens, positions, cache.read)
        newest = states[torch.arange(len(tokens)), lengths - 1][:, None]
        if halt is None:
            return self._later_steps(newest, cache), cache
        live = HaltingCache(cache, num_steps, halt, torch.ones_like(lengths))
        return later_live(self, newest, live), live

    def extend(
        self, tokens: Int[Tensor, " b"], cache: GenerationCache | HaltingCache
    ) -> Float[Tensor, "b v"]:
        kept = cache.kept if isinstance(cache, HaltingCache) else cache
        state = self._first_step(tokens[:, None], kept.grow(), partial(kept.attend, 0))
        if isinstance(cache, HaltingCache):
            return later_live(self, state, cache)
        return self._later_steps(state, cache)

    def _first_step(
        self,
        tokens: Int[Tensor, "b t"],
        positions: Int[Tensor, "*b t"],
        attend: Callable[..., Tensor],
    ) -> Float[Tensor, "b t c"]:
        """Compute the states after the first step."""
        x = self.place(self.embedding(tokens), positions)
        return self.run_step(self.coded(x, 0), attend, self.table(positions, x.dtype))

    def _later_steps(
        self, state: Float[Tensor, "b 1 c"], cache: GenerationCache
    ) -> Float[Tensor, "b v"]:
        """Take the remaining steps of each row's last position; return its logits."""
        positions = cache.lengths[:, None] - 1
        table = self.table(positions, state.dtype)
        for step in range(1, cache.num_steps):
            x = self.coded(self._next_thought(state, positions, step - 1), step)
            state = self.run_step(x, partial(cache.attend, step), table)
        return self.read_out(state[:, 0])

    def flops(
        self,
        batch_size: int,
        length: int,
        num_steps: int | None = None,
        training: bool = False,
        *,
        steps: Int[Tensor, "b t"] | None = None,
        halt: Halt = None,
    ) -> int:
        num = self.check_steps(num_steps)
        if steps is None:
            return thoughtsformer_flops.of_all(self, batch_size, length, num, training)
        return thoughtsformer_flops.of_live(self, steps, (batch_size, length), num, halt)

    def answer_flops(self, batch_size: int, length: int) -> int:
        answers = self.config.num_classes or self.config.vocab_size
        return 2 * batch_size * length * self.config.dim * answers

    def need_flops(self, batch_size: int, length: int, num_steps: int) -> int:
        return num_steps * self.answer_flops(batch_size, length)


def padding(
    tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None
) -> Bool[Tensor, "b t"] | None:
    """Return True where a row has ended; None where no row has padding."""
    if lengths is None:
        return None
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]


def make_block(config: ThoughtsFormer.Config) -> PublishedBlock | Block:
    """Build one layer of this variant."""
    if config.variant == "published":
        return PublishedBlock(config)
    return Block(config.dim, config.num_heads, config.hidden, dropout=config.dropout)
