"""Settings of a Thinker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thinkers.checks import added, check_int
from thinkers.errors import UsageError
from thinkers.models.step_loss import StepLossConfig
from thinkers.nn.processor import SelfAttention

MEMORY_SETTINGS = (
    *("memory_section", "block_latents", "compress_steps", "memory_conditioned", "memory_levels"),
    *("memory_group", "read_level", "memory_top", "index_dim", "index_weight"),
)


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig(StepLossConfig):
    """Settings of a Thinker; `num_layers` is the depth of the block."""

    variant: Literal["modern", "published"] = "modern"
    """published: no norm on memory, stored input positions, and output queries that attend to
    each other in both directions, so that nothing can be generated token by token."""

    num_latents: int = 8
    section: int = 16
    """Tokens of a section, at whose end the latents think."""
    mixing: int = added(0)
    """Width of a causal depth-wise convolution over the text that is read; 0 means none."""
    num_input_layers: int = added(0)
    """Causal layers that this text passes before it is projected into memory."""
    read_steps: int | None = None
    """Number of steps after the first that read the input again; None means all."""
    memory_steps: int | None = None
    """Number of latest latents in memory; None means all, 0 only input and knowledge."""
    num_knowledge: int = 0
    """Learned vectors in the memory of every step except the first."""
    output: Literal["autoregressive", "parallel"] = "autoregressive"
    """autoregressive: an output query carries the token before it; parallel: it does not."""
    output_steps: int = 1
    """Number of times that the output queries go through the block."""
    num_probes: int = 0
    """Linear scalars of every output state, in `extra["probes"]`."""
    self_attention: SelfAttention = "plain"
    rank: int | None = None
    """Rank of the attention projections of the block; None means full."""
    hidden: int | None = None
    """Hidden size of the feed-forwards; None means 8/3 of dim."""
    max_latents: int | None = None
    """Rows of the table of learned latents; None means num_latents."""
    max_inputs: int | None = None
    """Rows of the table of input positions; None means max_length, and at least memory_section."""
    max_outputs: int | None = None
    """Rows of the table of output queries; None means the larger of max_length and section."""
    step_weights: Sequence[float] = ()
    """Weights of the steps in step_loss every; the last is repeated; () means equal weights."""
    backprop_steps: int | None = None
    """Number of steps that gradients flow through; None means all."""
    policy: bool = added(False)
    """Add a policy that chooses the block of each step: see `thinkers.models.thinker_policy`. It is
    trained by `thinkers reinforce`."""
    memory: Literal["none", "blocks"] = added("none")
    """blocks: text that was read is compressed into blocks, which later thinking finds again: see
    `thinkers.models.thinker_memory`."""
    memory_section: int = added(16)
    """Tokens of a section, into which a text is cut for the long-term memory."""
    block_latents: int = added(2)
    """Latents of a block of the first level."""
    compress_steps: int = added(2)
    """Steps of the block of layers that compress a section or a group of blocks."""
    memory_conditioned: bool = added(False)
    """Compress a section with the block of the section before it in its text, so that a text is
    read in order; otherwise each section by itself."""
    memory_levels: int = added(1)
    memory_group: int = added(4)
    """Blocks that are compressed into one of the next level, which has half their latents."""
    read_level: int = added(1)
    """Level of the blocks that are read; where a group is not whole, the blocks below it."""
    memory_top: int | None = added(None)
    """Blocks that a step reads, by the index; None means all, as in training."""
    index_dim: int = added(32)
    """Width of the keys of the index."""
    index_weight: float = added(1.0)
    """Weight of the loss of the index."""
    random_latents: bool = False
    """In training, start from random latents with the learned ones' mean and standard
    deviation."""
    add_latents: int = 0
    """In training, number of random latents added to the others."""
    noise: float = 0.0
    """In training, standard deviation of the noise on latents between steps."""
    drop: float = 0.0
    """In training, probability that a latent is set to zero between steps."""
    replace: float = 0.0
    """In training, probability that a latent is replaced by noise between steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "published":
            unused = ("tie_head", "mixing", "num_input_layers")
            self.refuse_unused(unused, "variant is published")
        lowest = {"num_latents": 1, "section": 1, "output_steps": 1}
        lowest |= {"num_knowledge": 0, "num_probes": 0, "add_latents": 0}
        lowest |= {"mixing": 0, "num_input_layers": 0, "memory_section": 1, "block_latents": 1}
        lowest |= {"compress_steps": 1, "memory_levels": 1, "memory_group": 2, "read_level": 1}
        lowest |= {"index_dim": 1}
        optional = {"rank": 1, "hidden": 1, "backprop_steps": 1, "max_inputs": 1}
        optional |= {"read_steps": 0, "memory_steps": 0, "memory_top": 1}
        optional |= {"max_latents": self.num_latents, "max_outputs": self.section}
        lowest |= {name: n for name, n in optional.items() if getattr(self, name) is not None}
        for name, least in lowest.items():
            check_int(name, getattr(self, name), least)
        self._check_memory()
        rereads = self.read_steps is None or self.read_steps >= (self.max_steps or 0)
        if self.memory_steps == 0 and not (rereads or self.num_knowledge):
            raise UsageError(
                "memory_steps is 0, and a step after read_steps would have nothing to read; "
                "set memory_steps >= 1, num_knowledge >= 1 or read_steps >= max_steps"
            )
        for name in ("drop", "replace"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in 0 .. 1, got {getattr(self, name)}")
        if not 0 <= self.noise < float("inf"):
            raise UsageError(f"noise must be at least 0 and finite, got {self.noise}")
        if self.variant == "published" and self.output != "parallel":
            raise UsageError(
                f"variant published needs output='parallel', got output={self.output!r}"
            )
        if self.backprop_steps and self.halting:
            raise UsageError(
                "backprop_steps must be None with halting, which grades several steps, got "
                f"{self.backprop_steps}"
            )
        if self.policy and self.halting:
            raise UsageError("policy must be False with halting, which decides too, got True")
        if self.policy and self.backprop_steps:
            raise UsageError(
                "backprop_steps must be None with policy, whose rows take different numbers of "
                f"steps, got {self.backprop_steps}"
            )
        weights = tuple(self.step_weights)
        object.__setattr__(self, "step_weights", weights)
        if any(not 0 <= w < float("inf") for w in weights) or (weights and not weights[-1]):
            raise UsageError(
                "step_weights must be at least 0 and finite, and the last one above 0, "
                f"got {weights}"
            )
        if self.step_loss != "every":
            self.refuse_unused(("step_weights",), f"step_loss is {self.step_loss}")

    def _check_memory(self) -> None:
        """Check the settings of the long-term memory."""
        if not 0 <= self.index_weight < float("inf"):
            raise UsageError(f"index_weight must be at least 0 and finite, got {self.index_weight}")
        if self.memory == "none":
            self.refuse_unused(MEMORY_SETTINGS, "memory is none")
            return
        if self.variant == "published":
            raise UsageError("memory must be none with variant published, got blocks")
        if (self.max_steps or 2) < 2:
            raise UsageError(
                "max_steps must be at least 2 with memory, which the steps after the first read, "
                f"got {self.max_steps}"
            )
        if self.max_inputs is not None and self.max_inputs < self.memory_section:
            raise UsageError(
                f"max_inputs must be at least {self.memory_section} (memory_section), got "
                f"{self.max_inputs}"
            )
        if self.memory_group % 2:
            raise UsageError(f"memory_group must be even, got {self.memory_group}")
        if self.read_level > self.memory_levels:
            raise UsageError(
                f"read_level must be at most {self.memory_levels} (memory_levels), got "
                f"{self.read_level}"
            )
