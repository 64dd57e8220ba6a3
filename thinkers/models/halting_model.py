"""HaltingModel: a model with a gate, by which each token stops thinking when it is done.

    g_t^k = sigmoid(w . s_t^k + b)                          the gate of token t after step k
    n_t   = min {k >= 1 : g_t^k > halt, or k = num_steps}   the steps that it takes
    s_t^k = s_t^(n_t) for k > n_t, its keys and values likewise

In training n_t is known before: need_t, the step from which the answer of t can be known, and with
probability 1/4 one to three steps more. Keys freeze after n_t as they will at inference: without
that, a model reads keys of steps that it will never find.

    loss  = cross-entropy, mean over need_t <= k <= n_t; with step_loss wait over k <= n_t, where
            the right answer before need_t is `wait_token`
    halt  = cross-entropy of g_t^k with (k >= need_t), mean over k <= n_t and all real tokens
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thinkers.models.base import Model
from thinkers.models.batch import IGNORED, Batch, Loss, graded_last, real_positions
from thinkers.models.halt import Halt
from thinkers.models.step_loss import step_loss
from thinkers.prng import uniform

EXTRA_SHARE, MOST_EXTRA = 0.25, 3
"""Share of tokens that take more steps than they need in training, and the most of these."""
STREAM = -3
"""Stream of the keys of rows from which additional steps are drawn; see `Disturb`."""

TrainingPass = Callable[
    [Int[Tensor, "b t"] | None], tuple[Float[Tensor, "b k t c"], Float[Tensor, "b k t c"]]
]
"""A pass in which each token takes the given steps, None for all: outputs after each step, and the
states that the gate reads."""


class HaltingModel(Model):
    """Model whose tokens may halt: see the module. `gate` is there with the setting `halting`."""

    def make_gate(self) -> None:
        """Build the gate, before the weights are initialised."""
        if self.config.halting:
            self.gate = nn.Linear(self.config.dim, 1)

    @property
    def halts_by(self) -> tuple[str, ...]:
        if not self.causal:
            return ()
        by_answer = ("answered",) if self.config.step_loss == "wait" else ()
        return ("gate",) * self.config.halting + by_answer

    def is_done(self, states: Float[Tensor, "b t c"], halt: Halt) -> Bool[Tensor, "b t"]:
        """Return True where a token halts after the step that gave these states."""
        if halt == "answered":
            return self.read_out(states[:, None])[:, 0].argmax(-1) != self.config.wait_token
        return self.gate(states)[..., 0].sigmoid() > halt

    def count_terms(self, batch: Batch) -> dict[str, int]:
        counts = super().count_terms(batch)
        if self.config.halting:
            counts["halt"] = int(real_positions(batch.tokens, batch.lengths).sum())
        return counts

    def halting_loss(
        self, batch: Batch, steps: int, counts: Mapping[str, int] | None, run: TrainingPass
    ) -> Loss:
        """Compute the loss of a batch that `as_batch` gave, and train the gate: see the module."""
        own = self.count_terms(batch)
        need = self._needed_steps(batch, steps, run)
        taken = steps_in_training(need, self._row_keys(batch), steps)
        outputs, gated = run(taken)
        logits = self.read_out(outputs)
        count, wait = (counts or own)["next_token"], self.config.wait_token
        total = needed_loss(logits, batch.targets, need, taken, count, wait)
        real = real_positions(batch.tokens, batch.lengths)
        halt = gate_loss(self.gate(gated)[..., 0], need, taken, real, (counts or own)["halt"])
        parts = {"next_token": total.detach(), "halt": halt.detach()}
        last = graded_last(at_step(logits, taken), batch.targets)
        return Loss(total + halt, parts, own, *last)

    def _needed_steps(self, batch: Batch, steps: int, run: TrainingPass) -> Int[Tensor, "b t"]:
        """Return need_t, which lies beyond `steps` where an answer is due later."""
        if batch.due is not None:
            return batch.due.clamp(min=1)
        with torch.no_grad():
            logits = self.read_out(run(None)[0])
        return needed_by_later(first_lasting(logits, batch.targets), batch.targets)

    def _row_keys(self, batch: Batch) -> Int[Tensor, " b"] | None:
        """Return one key per row, from which a loss draws; None in evaluation mode."""
        if not self.training:
            return None
        if batch.keys is not None:
            return batch.keys
        return torch.randint(2**62, (len(batch),)).to(batch.tokens.device)

    def batch_flops(
        self,
        batch: Batch,
        num_steps: int | None = None,
        training: bool = False,
        *,
        steps: Int[Tensor, "b t"] | None = None,
    ) -> int:
        """Count the `flops` of these rows; `steps` are those that their tokens took."""
        if steps is not None:
            return self.flops(*batch.tokens.shape, num_steps, steps=steps)  # type: ignore[call-arg]
        found = super().batch_flops(batch, num_steps, training)
        if training and self.config.halting and batch.due is None:
            rows, length = batch.tokens.shape
            found += self.need_flops(rows, length, self.check_steps(num_steps))
        return found

    def need_flops(self, batch_size: int, length: int, num_steps: int) -> int:
        """Count the operations that find the needed steps of a batch without due steps."""
        # A pass of its own, read out after every step.
        later = (num_steps - 1) * self.answer_flops(batch_size, length)
        return self.flops(batch_size, length, num_steps) + later

    @abstractmethod
    def answer_flops(self, batch_size: int, length: int) -> int:
        """Count the operations that turn the states of one step into logits."""


def step_numbers(steps: int, like: Tensor) -> Int[Tensor, "1 k 1"]:
    """Return the numbers of the steps, from 1."""
    return torch.arange(1, steps + 1, device=like.device)[None, :, None]


def at_step(logits: Float[Tensor, "b k t v"], taken: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
    """Return the logits after the given step, from 1, of each token, without gradient."""
    return logits.detach().take_along_dim((taken - 1)[:, None, :, None], 1)[:, 0]


def first_lasting(
    logits: Float[Tensor, "b k t v"], targets: Int[Tensor, "b t"]
) -> Int[Tensor, "b t"]:
    """Return the first step, from 1, from which the answer is right and stays right; k if none."""
    is_right = (logits.argmax(-1) == targets[:, None]).long()
    stays = is_right.flip(1).cummin(1).values
    return (1 - stays).sum(1).clamp(max=logits.shape[1] - 1) + 1


def needed_by_later(need: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Give tokens without a target the largest need of the row's later targets, 1 if none."""
    has_target = targets != IGNORED
    needs = need.where(has_target, 1)
    later = F.pad(needs, (0, 1), value=1)[:, 1:].flip(1).cummax(1).values.flip(1)
    return needs.where(has_target, later)


def steps_in_training(
    need: Int[Tensor, "b t"], keys: Int[Tensor, " b"] | None, steps: int
) -> Int[Tensor, "b t"]:
    """Return need_t, and with probability 1/4 one to three steps more, at most `steps`.

    Args:
        keys: One key per row, from which steps are drawn by position; None adds none.
    """
    if keys is None:
        return need.clamp(max=steps)
    has, number = uniform(keys, STREAM, (need.shape[1], 2), torch.float64).unbind(-1)
    extra = 1 + (number * MOST_EXTRA).long()
    return (need + extra.where(has < EXTRA_SHARE, 0)).clamp(max=steps)


def needed_loss(
    logits: Float[Tensor, "b k t v"],
    targets: Int[Tensor, "b t"],
    need: Int[Tensor, "b t"],
    taken: Int[Tensor, "b t"],
    count: int,
    wait_token: int | None = None,
) -> Float[Tensor, ""]:
    """Sum the cross-entropies of targets, the mean over need .. taken; divide by `count`.

    A target that is due after the last step is graded there, as in `step_loss` due, but with
    `wait_token` it waits.

    Args:
        wait_token: The right answer of steps before need, which are graded too; None leaves them.
    """
    number, wide = step_numbers(logits.shape[1], taken), targets[:, None]
    wide, first = wide.expand(-1, logits.shape[1], -1), need.minimum(taken)
    if wait_token is not None:
        early = (number < need[:, None]) & (wide != IGNORED)
        wide, first = wide.masked_fill(early, wait_token), need.clamp(max=1)
    is_graded = (first[:, None] <= number) & (number <= taken[:, None])
    weights = is_graded.double() / (taken - first + 1)[:, None]
    return step_loss(logits, wide, weights, count)


def gate_loss(
    gates: Float[Tensor, "b k t"],
    need: Int[Tensor, "b t"],
    taken: Int[Tensor, "b t"],
    real: Bool[Tensor, "b t"],
    count: int,
) -> Float[Tensor, ""]:
    """Sum the binary cross-entropies of real tokens, the mean over live steps; divide by `count`.

    Args:
        gates: The gate before its sigmoid.
        count: The real tokens of the batch, or of a larger one of which these rows are a share.
    """
    number = step_numbers(gates.shape[1], need)
    wide = gates.float() if gates.dtype.itemsize < 4 else gates
    opens = (number >= need[:, None]).to(wide.dtype)
    losses = F.binary_cross_entropy_with_logits(wide, opens, reduction="none")
    live = (number <= taken[:, None]) & real[:, None]
    return (losses * live / taken[:, None]).sum() / max(1, count)
