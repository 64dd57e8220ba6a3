"""Language models of the library `thinkers`, for Hugging Face: decoder and looped in one file.

This file needs torch and transformers alone. The weights, logits and tokens are those of the
library, bit for bit.

    decoder   h = blocks(E[tokens]); logits = W norm(h)
    looped    e = prelude(E[tokens]); s_0 = e; s_k = norm(core(inject(s_(k-1), e))), k = 1 .. n
              logits = W norm(coda(s_n))
    block     x <- x + Attention(norm(x)); x <- x + SwiGLU(norm(x))

n is `num_thinking_steps` of a call; W is the embedding E, or a matrix of its own. Attention is
causal with rotary positions, norm is the root-mean-square norm, and there are no biases.
"""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from thinkers.hf.rows import IGNORED
from thinkers.hf.wrapper import Wrapper

GONE = -(2**62)
"""Position of a column that is padding."""
ROOM = 32
"""Tokens after which the keys that have left a window are dropped."""


class Block(nn.Module):
    """Attention, then SwiGLU, each on the normed stream and added to it."""

    def __init__(self, s):
        super().__init__()
        dim, self.head_dim, self.dropout = s.dim, s.dim // s.num_heads, getattr(s, "dropout", 0.0)
        groups = getattr(s, "num_kv_heads", None) or s.num_heads
        hidden = s.hidden or 8 * max(1, round(dim / 3))
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.heads = nn.ModuleDict(
            {
                "query": nn.Linear(dim, dim, bias=False),
                "key_value": nn.Linear(dim, 2 * groups * self.head_dim, bias=False),
                "output": nn.Linear(dim, dim, bias=False),
            }
        )
        self.feed_forward_norm = nn.RMSNorm(dim, eps=1e-6)
        self.feed_forward = nn.ModuleDict(
            {
                "gate_up": nn.Linear(dim, 2 * hidden, bias=False),
                "down": nn.Linear(hidden, dim, bias=False),
            }
        )

    def forward(self, x, table, keys, slot):
        p = self.dropout if self.training else 0.0
        n = self.attention_norm(x)
        q = self.heads.query(n).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = self.heads.key_value(n).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        k, v, mask = keys.keep(slot, k, v)
        grouped = k.shape[1] < q.shape[1]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None, enable_gqa=grouped
        )
        merged = self.heads.output(attended.transpose(1, 2).flatten(2))
        x = x + F.dropout(merged, p, self.training)
        gate, up = self.feed_forward.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.feed_forward.down(F.silu(gate) * up), p, self.training)


def run(blocks, x, table, keys, slot):
    """Pass x (b, t, c) through blocks; block i keeps its keys at `slot` + i."""
    for i, block in enumerate(blocks):
        x = block(x, table, keys, slot + i)
    return x


def rotary_table(positions, head_dim, base, like):
    """Return cosines and sines of positions times base^(-2i/d) (Su et al. 2021)."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = (1.0 / base**exponents).to(like.device, wide)
    angles = positions[..., None].to(wide) * frequencies
    angles = torch.cat([angles, angles], -1).unsqueeze(-3)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x, table):
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin


def step_code(step, dim, like):
    """Return sines and cosines of the number of a step (Vaswani et al. 2017)."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    half, number = (dim + 1) // 2, torch.arange(step, step + 1, device=like.device)
    frequencies = 10000.0 ** (-torch.arange(half, device=like.device, dtype=wide) / half)
    angles = number[:, None].to(wide) * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :dim].to(like.dtype)


class Keys:
    """Keys and values of the tokens so far, one slot for each layer of each step.

    Rows are padded on the right. Later tokens come one by one, each in the next column of all rows.

    Args:
        lengths: Real tokens of each row, which are kept for later ones; None keeps nothing.
        window: The farthest position that a token attends to; None means all before it.
        core: Layers of a step.
    """

    def __init__(self, lengths, window, core=0):
        self.lengths, self.window, self.core = lengths, window, core
        self.data, self.new, self.live = {}, {}, None
        self.positions = None

    def place(self, t, like):
        """Return the positions of t new tokens, and set the mask that is added to their scores."""
        self.new = {}
        if self.positions is None:
            at = torch.arange(t, device=like.device)
            near = (at[:, None] - at).abs() <= (self.window or t)
            self.mask = None if self.window is None else hide(~near.tril(), like)
            if self.lengths is not None:
                self.positions, self.room = at.where(at < self.lengths[:, None], GONE), t + ROOM
            return at
        at = self.lengths[:, None]
        if self.window is not None and self.positions.shape[1] == self.room:
            self.drop(at - 1 - self.window)
        self.lengths, self.positions = self.lengths + 1, torch.cat([self.positions, at], 1)
        seen = self.positions > GONE
        if self.window is not None:
            seen = (self.positions - at).abs() <= self.window
        self.mask = hide(~seen, like)[:, None, None]
        return at

    def keep(self, slot, k, v):
        """Store new keys and values at a slot; return all there, and the mask.

        Tokens that have halted, which are not in `live`, keep the keys of the step before.
        """
        if self.live is not None:
            before, live = self.new[slot - self.core], self.live[:, None, :, None]
            k, v = k.where(live, before[0]), v.where(live, before[1])
        self.new[slot] = k, v
        if self.lengths is None:
            return k, v, self.mask
        if slot in self.data:
            k, v = (torch.cat(pair, 2) for pair in zip(self.data[slot], (k, v), strict=True))
        self.data[slot] = k, v
        return k, v, self.mask

    def drop(self, oldest):
        """Drop the columns whose position is below `oldest` (b, 1) in all rows."""
        kept = self.positions >= oldest
        count = int(kept.sum(1).max())
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        self.positions, self.room = self.positions.where(kept, GONE).gather(1, order), count + ROOM
        for slot, pair in self.data.items():
            self.data[slot] = tuple(x.take_along_dim(order[:, None, :, None], 2) for x in pair)

    def select(self, rows):
        """Keep only these rows."""
        self.lengths, self.positions = self.lengths[rows], self.positions[rows]
        self.data = {slot: (k[rows], v[rows]) for slot, (k, v) in self.data.items()}


def hide(hidden, like):
    """Return -inf where hidden, else 0."""
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill(hidden, -torch.inf)


class Causal(nn.Module):
    """The calls that `ThinkersForCausalLM` makes of a model.

    A subclass defines `states(tokens, steps, keys, halt, every)`: outputs (b, k, t, c) after the
    last step, or with `every` after each.
    """

    causal = True

    def __init__(self, settings):
        super().__init__()
        self.config = s = SimpleNamespace(**settings)
        self.embedding = nn.Embedding(s.vocab_size, s.dim)
        self.norm = nn.RMSNorm(s.dim, eps=1e-6)
        self.head = nn.Module()
        own = None if s.tie_head else nn.Parameter(torch.empty(s.vocab_size, s.dim))
        self.head.register_parameter("weight", own)

    def read_out(self, states):
        own = self.head.weight
        return F.linear(self.norm(states), self.embedding.weight if own is None else own)

    def keys(self, lengths=None):
        return Keys(lengths, self.config.window, self.config.num_layers)

    def table(self, positions, x):
        s = self.config
        return rotary_table(positions, s.dim // s.num_heads, s.rotary_base, x)

    def forward(self, tokens, *, num_steps, lengths=None, prompt_lengths=None, keep_states=False,
                halt=None):  # fmt: skip
        states = self.states(tokens, num_steps, self.keys(), halt, keep_states)
        return SimpleNamespace(logits=self.read_out(states[:, -1]), states=states)

    def prefill(self, tokens, lengths, num_steps, prompted, capacity, halt=None):
        keys = self.keys(lengths)
        x = self.states(tokens, num_steps, keys, halt, False)[:, -1]
        rows = torch.arange(len(tokens), device=tokens.device)
        keys.call = num_steps, halt
        return self.read_out(x[rows, lengths - 1]), keys

    def extend(self, tokens, keys):
        num_steps, halt = keys.call
        return self.read_out(self.states(tokens[:, None], num_steps, keys, halt, False)[:, -1, 0])

    def check_steps(self, num_steps):
        n = self.config.num_steps if num_steps is None else num_steps
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= self.config.max_steps:
            raise ValueError(
                f"num_steps must be an integer in 1 .. {self.config.max_steps}, got {n!r}"
            )
        return n

    def check_tokens(self, tokens, lengths=None, prompt_lengths=None):
        """Replace padding by 0, and check the longest row and the ids."""
        longest = tokens.shape[1]
        if lengths is not None:
            longest = int(lengths.max())
            real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
            tokens = tokens.where(real, 0)
        if longest > self.config.max_length:
            raise ValueError(f"a row must have at most {self.config.max_length}, got {longest}")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise ValueError(f"tokens must be in 0 .. {self.config.vocab_size - 1}")
        return tokens


class Decoder(Causal):
    """h = blocks(E[tokens]); logits = W norm(h)."""

    def __init__(self, settings):
        super().__init__(settings)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.num_layers))

    def states(self, tokens, steps, keys, halt, every):
        x = F.dropout(self.embedding(tokens), self.config.dropout, self.training)
        table = self.table(keys.place(tokens.shape[1], x), x)
        return run(self.blocks, x, table, keys, 0)[:, None]


class Looped(Causal):
    """e = prelude(E[tokens]); s_0 = e; s_k = norm(core(inject(s_(k-1), e))); W norm(coda(s_n)).

    With `halt`, a token keeps its state and its keys from the first step on whose gate
    sigmoid(w . s + b) is above it; here this saves no arithmetic, in the library it does.
    """

    def __init__(self, settings):
        super().__init__(settings)
        s = self.config
        self.prelude, self.core, self.coda = (
            nn.ModuleList(Block(s) for _ in range(count))
            for count in (s.num_prelude_layers, s.num_layers, s.num_coda_layers)
        )
        if s.injection == "concat":
            self.inject = nn.Linear(2 * s.dim, s.dim, bias=False)
        self.core_norm = nn.RMSNorm(s.dim, eps=1e-6)
        if s.halting:
            self.gate = nn.Linear(s.dim, 1)

    def injected(self, s, e, step):
        if self.config.injection == "concat":
            s = self.inject(torch.cat([s, e], -1))
        elif self.config.injection == "add":
            s = s + e
        return s + step_code(step, s.shape[-1], s) if self.config.time_code else s

    def is_done(self, s, halt):
        if halt == "answered":
            return self.read_out(s).argmax(-1) != self.config.wait_token
        return self.gate(s)[..., 0].sigmoid() > halt

    def states(self, tokens, steps, keys, halt, every):
        x = self.embedding(tokens)
        table = self.table(keys.place(tokens.shape[1], x), x)
        s = e = run(self.prelude, x, table, keys, 0)
        live, slot, states = torch.ones_like(tokens, dtype=torch.bool), len(self.prelude), []
        learned = self.config.backprop_steps or steps
        for step in range(steps):
            keys.live = live if halt is not None and step else None
            with torch.set_grad_enabled(torch.is_grad_enabled() and step >= steps - learned):
                new = run(self.core, self.injected(s, e, step), table, keys, slot)
                s = self.core_norm(new) if keys.live is None else (
                    self.core_norm(new).where(live[..., None], s)
                )  # fmt: skip
            keys.live, slot = None, slot + len(self.core)
            if halt is not None:
                live = live & ~self.is_done(s, halt)
            if every or step == steps - 1:
                states.append(run(self.coda, s, table, keys, slot))
        return torch.stack(states, 1)


def initialize(model, depth):
    """Draw the weights of a model that is trained from scratch: normal, of 1/sqrt(fan-in)."""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            is_last = name.endswith(("output", "down"))  # of a branch that is added to the stream
            inputs = part.in_features * (2 * depth if is_last else 1)
            nn.init.normal_(part.weight, std=inputs**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for weight in (model.embedding.weight, model.head.weight):
        if weight is not None:
            nn.init.normal_(weight, std=0.02)


class ThinkersForCausalLM(Wrapper):
    """A decoder or a looped transformer."""

    def build(self, config):
        model = {"decoder": Decoder, "looped": Looped}[config.model](config.settings)
        initialize(model, sum(isinstance(part, Block) for part in model.modules()))
        return model

    def check_halt(self, halt):
        s, halt = self.model.config, super().check_halt(halt)
        can_halt = getattr(s, "halting", False)
        if halt == "answered":
            can_halt = getattr(s, "step_loss", "last") == "wait" and not s.num_coda_layers
        elif isinstance(halt, bool) or not isinstance(halt, int | float) or not 0 <= halt <= 1:
            raise self.error(f"halt {halt!r}", "a number in 0 .. 1, or answered", "change it")
        if not can_halt:
            raise self.error(
                f"halt {halt} for a model that has not learned it",
                "looped with halting, or for answered with step_loss wait and without a coda",
                "leave halt out",
            )
        return halt

    def loss(self, rows, targets, steps):
        """Return the mean cross-entropy after the last step, or after all, as it was trained."""
        s = self.model.config
        if getattr(s, "halting", False):
            raise self.error(
                "labels for a model that learns when to halt",
                "the library, which trains its gate too",
                'pip install "thinkers[hf]"',
            )
        every = getattr(s, "step_loss", "last") != "last"
        states = self.model.states(rows.tokens, steps, self.model.keys(), None, every)
        logits = self.model.read_out(states)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        count, wide = max(1, int((targets != IGNORED).sum())), logits.shape[1]
        targets = targets[:, None].expand(-1, wide, -1).flatten()
        if not every:
            return F.cross_entropy(logits.flatten(0, 2), targets, reduction="sum") / count
        losses = F.cross_entropy(logits.flatten(0, 2), targets, reduction="none")
        return (losses * (1.0 / wide)).sum() / count
