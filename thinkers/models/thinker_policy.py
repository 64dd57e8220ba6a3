"""Policy of a Thinker: each boundary chooses, after every step, the block that runs next.

    z_s     = mean of latent_s + its last vector
    pi_s    = softmax(W z_s + b), over the blocks that are allowed at s
    READ      latent_(s+1) = block(latent_s, [input])
    PROCESS   latent_(s+1) = block(latent_s, M_s)
    REFLECT   latent_(s+1) = block(latent_s, [the last `memory_steps` latents])
    RECALL    latent_(s+1) = block(latent_s, [blocks of R_s] + [the last `memory_steps` latents])
    OUTPUT    logits       = E output(queries, M_s)
    right_s = sigmoid(v z_s + c), an estimate that the answer would be right now, for training

M_s is [input if s <= `read_steps`] + [the last `memory_steps` latents] + [knowledge]. R_s are the
blocks of a long-term memory that the index finds from latent_s, as in
`thinkers.models.thinker_memory`; here RECALL alone reads them, and without a policy every step
after the first. RECALL needs a memory in which the row has a block.

A block of one step is a mask over one memory, [input | knowledge | latents | blocks], so that the
rows of a batch choose differently in one call. Step 0 is PROCESS, which equals READ there. The
likeliest block is taken, the first at ties; in training they are drawn. OUTPUT follows the last
step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thinkers.models.thinker_halting import LiveThinking, RowMemory
from thinkers.nn.latent_store import Memory
from thinkers.nn.processor import Probe

BLOCKS = ("read", "process", "reflect", "recall", "output")
READ, PROCESS, REFLECT, RECALL, OUTPUT = range(len(BLOCKS))
NONE = -1
"""Filler of `extra["actions"]` where no block ran: after OUTPUT."""
FIRST_BIASES = {PROCESS: 2.0, OUTPUT: -1.0}
"""Biases before training, others are 0: most blocks are PROCESS, as when the model was trained
without a policy, and thinking is tried before answering at once is learned."""
FIRST_RECALL = 4.0
"""That of RECALL in models with a memory, which all their steps read when they were trained."""

Choose = Callable[[Float[Tensor, "r 5"], int, Int[Tensor, " r"]], Int[Tensor, " r"]]
"""From scores of blocks (-inf where one is not allowed), step and rows to the chosen blocks."""


class Policy(nn.Module):
    """Scores of the blocks, and of whether the answer would be right now, from a latent state.

    Args:
        recalls: True for the policy of a model with a long-term memory.
    """

    def __init__(self, dim: int, recalls: bool):
        super().__init__()
        self.recalls = recalls
        self.blocks = Probe(dim, len(BLOCKS))
        self.right = Probe(dim)

    def reset(self) -> None:
        """Set the weights before training: scores that no state changes, by `FIRST_BIASES`."""
        with torch.no_grad():
            self.blocks.linear.weight.zero_()
            self.blocks.linear.bias.zero_()
            for block, bias in FIRST_BIASES.items():
                self.blocks.linear.bias[block] = bias
            if self.recalls:
                self.blocks.linear.bias[RECALL] = FIRST_RECALL


def state_of(latent: Float[Tensor, "b l c"]) -> Float[Tensor, "b c"]:
    """Return z, the input of the policy."""
    return latent.mean(1) + latent[:, -1]


def allowed_blocks(config: Any, step: int, has_blocks: Bool[Tensor, " r"]) -> Bool[Tensor, "r 5"]:
    """Return for each row and block whether it may run at a step, counted from 0, before the last.

    Args:
        has_blocks: True for rows whose long-term memory has a block.
    """
    later = step > 0
    allowed = torch.tensor(
        [later, True, later and config.memory_steps != 0, later, later], device=has_blocks.device
    )
    allowed = allowed.repeat(len(has_blocks), 1)
    allowed[:, RECALL] &= has_blocks
    return allowed


def likeliest(
    scores: Float[Tensor, "r 5"], step: int, rows: Int[Tensor, " r"]
) -> Int[Tensor, " r"]:
    """Choose the block of the highest score, the first at ties."""
    places = torch.arange(scores.shape[1], device=scores.device)
    # Scores that are not numbers are equal to none: such a row answers.
    return places.where(scores == scores.amax(1, keepdim=True), OUTPUT).amin(1)


@dataclass(frozen=True)
class Decision:
    """The blocks that live rows chose at one step.

    Args:
        step: Steps taken before the decision, from 1.
        rows: Indices of the rows in the batch.
        states: z of these rows.
        allowed: The blocks that they could choose.
        chosen: The blocks that they chose.
    """

    step: int
    rows: Int[Tensor, " r"]
    states: Float[Tensor, "r c"]
    allowed: Bool[Tensor, "r 5"]
    chosen: Int[Tensor, " r"]


class PolicyThinking(LiveThinking):
    """`Thinker.think` with rows that choose their blocks; `actions` (b, k) has those of each step.

    Args:
        choose: Takes a block for each row; see `Choose`.
    """

    def __init__(
        self, model: Any, thinks: Bool[Tensor, " b"] | None = None, choose: Choose = likeliest
    ):
        super().__init__(model, "policy", thinks)
        self.choose = choose
        self.decisions: list[Decision] = []
        self.actions = torch.zeros(0, 0, dtype=torch.int64)

    def begin(self, rows: Int[Tensor, " r"], b: int, steps: int, reading: Any) -> None:
        self.decisions, self.steps = [], steps
        none = torch.zeros(b, dtype=torch.bool, device=rows.device)
        self.has_blocks = none if reading is None else reading.has_blocks()
        self.actions = torch.full((b, steps), NONE, device=rows.device)
        self.actions[rows, 0] = PROCESS
        self.now = self.actions[rows, 0]

    def memory(
        self,
        own: RowMemory,
        step: int,
        latent: Float[Tensor, "r l c"],
        rows: Int[Tensor, " r"],
        reading: Any,
    ) -> Memory:
        if not step:
            return own.before(0)
        memory, recalls = chosen_memory(own, step, self.now), self.now == RECALL
        return reading.join(memory, latent, step, rows, recalls) if recalls.any() else memory

    def goes_on(
        self, latent: Float[Tensor, "r l c"], step: int, rows: Int[Tensor, " r"]
    ) -> Bool[Tensor, " r"]:
        if step == self.steps:
            return torch.zeros_like(rows, dtype=torch.bool)
        states = state_of(latent)
        allowed = allowed_blocks(self.model.config, step, self.has_blocks[rows])
        scores = self.model.policy.blocks(states).masked_fill(~allowed, -torch.inf)
        chosen = self.choose(scores.detach(), step, rows)
        self.decisions.append(Decision(step, rows, states, allowed, chosen))
        self.actions[rows, step] = chosen
        goes_on = chosen != OUTPUT
        self.now = chosen[goes_on]
        return goes_on


def chosen_memory(own: RowMemory, step: int, actions: Int[Tensor, " b"]) -> Memory:
    """Return what each row reads in a step after the first, by the block that it chose, but for the
    blocks of a long-term memory."""
    config = own.config
    reads, processes = actions == READ, actions == PROCESS
    rereads = config.read_steps is None or step <= config.read_steps
    first = 0 if config.memory_steps is None else max(0, step - config.memory_steps)
    pieces = [(own.inputs, reads | processes if rereads else reads)]
    if own.knowledge:
        pieces.append((own.knowledge, processes))
    pieces += [(parts, ~reads) for parts in own.latents[first:step]]
    seen = [rows[:, None].expand(-1, parts[0].shape[2]) for parts, rows in pieces]
    if own.hidden is not None:
        seen[0] = seen[0] & ~own.hidden
    joined = [torch.cat(same, 2) for same in zip(*(parts for parts, _ in pieces), strict=True)]
    visible = torch.cat(seen, 1)
    mask = joined[0].new_zeros(visible.shape).masked_fill(~visible, -torch.inf)
    return Memory(joined[::2], joined[1::2], mask[:, None, None])
