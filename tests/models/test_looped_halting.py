"""Looped halts by token: against a definition in loops over tokens, steps, layers and keys."""

import dataclasses

import pytest
import torch
from model_cases import tiny
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.models.generation import stream
from thinkers.models.halting_model import first_lasting, needed_by_later, steps_in_training

STEPS = 5
SHAPES = {
    "core of 2, coda of 1": {"num_layers": 2, "num_coda_layers": 1},
    "no coda": {"num_layers": 1, "num_coda_layers": 0},
    "window, add": {"num_layers": 1, "injection": "add", "window": 3, "num_coda_layers": 2},
    "time code": {"injection": "none", "num_prelude_layers": 0, "time_code": True},
}
CASES = list(zip(SHAPES, (0.3, 0.6, 0.6, 0.3), strict=True))
CASES += [("core of 2, coda of 1", halt) for halt in (0.0, 0.6, 1.0)]


def gated(own, **settings):
    """A model in float64 whose gates are far from each other."""
    torch.manual_seed(3)
    model = tiny("looped", {"max_steps": 8, "vocab_size": 11, "halting": True, **own, **settings})
    model = model.double().eval()
    with torch.no_grad():
        model.embedding.weight.normal_()
        model.gate.weight.normal_(std=0.6)
        model.gate.bias.fill_(0.1)
    return model


def waiting(**own):
    model = tiny(
        "looped",
        {"max_steps": 8, "step_loss": "wait", "wait_token": 2, "num_coda_layers": 0} | own,
    )
    return model.double().eval()


class Definition:
    """One row, token by token: what a token reads at step k are keys of step min(k, n) of others.

    Args:
        steps: The steps of each token in training; None means that the rule decides.
    """

    def __init__(self, model, row, num_steps, halt=None, steps=None):
        self.model, self.row, self.num_steps, self.halt = model, row, num_steps, halt
        self.given = steps
        self.keys = {}
        places = range(len(row))
        first, last = len(model.prelude), len(model.prelude) + len(model.core)
        self.inputs, self.states, self.gates, self.taken = [], [], [], []
        for t in places:
            e = model.embedding(row[t])[None, None]
            for i, block in enumerate(model.prelude):
                e = self.layer(block, e, t, i, 0)
            self.inputs.append(e)
            s, states, gates = e, [], []
            for step in range(num_steps):
                if self.ends(t, states, gates):
                    break
                s = model._injected(s, e, step)
                for i, block in enumerate(model.core):
                    s = self.layer(block, s, t, first + i, step)
                s = model.core_norm(s)
                states.append(s)
                gates.append(None if halt == "answered" else self.gate(s))
            self.states.append(states)
            self.gates.append(gates)
            self.taken.append(len(states))
        self.outputs = {}
        for k in range(1, num_steps + 1):
            for t in places:
                s = self.states[t][min(k, self.taken[t]) - 1]
                for i, block in enumerate(model.coda):
                    s = self.layer(block, s, t, (last + i, k), 0)
                self.outputs[t, k] = s

    def gate(self, s):
        return F.linear(s, self.model.gate.weight, self.model.gate.bias)[0, 0, 0]

    def ends(self, t, states, gates):
        if not states:
            return False
        if self.given is not None:
            return len(states) == self.given[t]
        if self.halt == "answered":
            logits = self.model._answer(states[-1])[0, 0]
            return int(logits.argmax()) != self.model.config.wait_token
        return float(torch.sigmoid(gates[-1])) > self.halt

    def layer(self, block, x, t, layer, step):
        place = torch.tensor([t])
        q, k, v = block.before_attention(x, self.model.rotary.table(place, x.dtype))
        self.keys[t, layer, step] = k, v
        window = self.model.config.window
        read = [j for j in range(t + 1) if window is None or t - j <= window]
        found = [self.keys[j, layer, self.frozen(j, t, step)] for j in read]
        keys, values = (torch.cat(x, 2) for x in zip(*found, strict=True))
        weights = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
        return block.after_attention(x, weights @ values)

    def frozen(self, j, t, step):
        return step if j == t else min(step, max(self.taken[j] - 1, 0))

    def logits(self, k=None):
        k = k or self.num_steps
        rows = [self.model._answer(self.outputs[t, k])[0, 0] for t in range(len(self.row))]
        return torch.stack(rows)


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(11, (4, 9), generator=generator), torch.tensor([9, 4, 7, 1])


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


@pytest.mark.unchecked  # repeats what the other tests run with checks
@pytest.mark.parametrize("shape, halt", CASES)
@torch.no_grad()
def test_rows_halt_by_token_as_defined_together_alone_and_token_by_token(shape, halt):
    model = gated(SHAPES[shape])
    tokens, lengths = rows()
    together = model(tokens, lengths=lengths, num_steps=STEPS, halt=halt, keep_states=True)
    for i, n in enumerate(lengths.tolist()):
        row = tokens[i, :n]
        defined = Definition(model, row, STEPS, halt)
        alone = model(row[None], num_steps=STEPS, halt=halt)
        for found in (together.steps[i, :n], alone.steps[0]):
            assert found.tolist() == defined.taken
        close(together.logits[i, :n], defined.logits())
        close(alone.logits[0], defined.logits())
        for k in range(1, STEPS + 1):
            close(
                model.read_out(together.states[i : i + 1, k - 1 : k, :n])[0, 0], defined.logits(k)
            )
    if 0 < halt < 1:
        assert len(set(together.steps[0].tolist())) > 1, "the gates never differ"
    # Padding does not think.
    assert (together.steps[1, 4:] == 0).all()
    # Written token by token, from ragged prompts.
    prompts = lengths.clamp(max=5)
    end = int(prompts.max())
    logits, cache = model.prefill(tokens[:, :end], prompts, STEPS, True, 20, halt=halt)
    rest = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(7))
    written = tokens.where(torch.arange(9) < prompts[:, None], 0)
    written = F.pad(written, (0, 6))
    index = torch.arange(4)
    for j in range(7):
        whole = model(written, lengths=prompts + j, num_steps=STEPS, halt=halt)
        close(logits, whole.logits[index, prompts + j - 1])
        assert cache.taken.tolist() == whole.steps[index, prompts + j - 1].tolist()
        if j == 6:
            break
        written[index, prompts + j] = rest[:, j]
        logits = model.extend(rest[:, j], cache)


@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_token_changes_nothing_before_it(own):
    model = gated(own)
    tokens, _ = rows(1)
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 11
    before, after = (model(x, num_steps=STEPS, halt=0.5) for x in (tokens, changed))
    assert torch.equal(before.steps[:, :5], after.steps[:, :5])
    close(before.logits[:, :5], after.logits[:, :5])
    assert not torch.equal(before.logits[:, 5:], after.logits[:, 5:])


@torch.no_grad()
def test_rows_that_leave_while_writing_change_nothing_for_the_others():
    model = gated(SHAPES["core of 2, coda of 1"])
    tokens, _ = rows(2)
    prompts = torch.tensor([3, 9, 5, 7])
    options = dict(prompt_lengths=prompts, halt=0.5, return_logits=True, return_steps=True)
    both = [
        model.generate(tokens, 8, STEPS, stop_token=4, use_cache=cached, **options)
        for cached in (True, False)
    ]
    for a, b in zip(*both, strict=True):
        close(a.double(), b.double()) if a.dtype == torch.float64 else None
        assert a.dtype == torch.float64 or torch.equal(a, b)
    out, logits, steps = both[0]
    assert out.shape == (4, 17) and steps.shape == (4, 8)
    ended = logits.abs().sum(-1) == 0
    assert torch.equal(ended, steps == 0)
    answer, of_answer = model.answer(tokens, prompts, 8, STEPS, halt=0.5, return_steps=True)
    assert torch.equal(of_answer[~ended], steps[~ended])
    assert torch.equal(answer[~ended], out[:, 9:][~ended])
    first = next(stream(model, tokens, 8, STEPS, prompts, halt=0.5))
    assert torch.equal(first.steps, steps[:, 0])


@torch.no_grad()
def test_no_threshold_is_the_model_without_a_gate_and_1_never_halts():
    model = gated(SHAPES["core of 2, coda of 1"])
    tokens, lengths = rows()
    plain = tiny("looped", {"max_steps": 8, "vocab_size": 11, **SHAPES["core of 2, coda of 1"]})
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("gate")}
    plain.double().load_state_dict(kept)
    found = model(tokens, lengths=lengths, num_steps=STEPS)
    assert torch.equal(found.logits, plain(tokens, lengths=lengths, num_steps=STEPS).logits)
    assert (found.steps == STEPS).all()
    model.gate.bias.fill_(99.0)  # gates of exactly 1 are not above it
    never = model(tokens, num_steps=STEPS, halt=1.0)
    close(never.logits, model(tokens, num_steps=STEPS).logits)
    assert (never.steps == STEPS).all()


@torch.no_grad()
def test_a_model_that_waits_halts_with_its_first_answer():
    model = waiting(vocab_size=3, num_layers=1)
    torch.nn.init.normal_(model.embedding.weight)
    tokens = torch.randint(3, (5, 9), generator=torch.Generator().manual_seed(1))
    found = model(tokens, num_steps=STEPS, halt="answered")
    for i in range(5):
        defined = Definition(model, tokens[i], STEPS, "answered")
        assert found.steps[i].tolist() == defined.taken
        close(found.logits[i], defined.logits())
    assert 1 < len(found.steps.unique())
    early = found.steps < STEPS
    assert (found.logits.argmax(-1)[early] != 2).all()


@pytest.mark.unchecked  # counts what runs
@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_operations_of_halted_tokens_are_not_done(own):
    model = gated(own)
    tokens, _ = rows(4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        steps = model(tokens, num_steps=STEPS, halt=0.5).steps
    assert 1 < steps.double().mean() < STEPS
    assert model.flops(4, 9, STEPS, steps=steps) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )
    with pytest.raises(UsageError, match=r"shape \[4, 9\], got \[3, 9\]"):
        model.flops(4, 9, STEPS, steps=steps[:3])
    with pytest.raises(UsageError, match="in 0 .. 5"):
        model.flops(4, 9, STEPS, steps=steps + STEPS)


@torch.no_grad()
def test_operations_of_answers_that_are_read_out_after_each_step_count_with_a_gate_too():
    model = waiting(vocab_size=50, num_layers=1, halting=True)
    torch.nn.init.normal_(model.embedding.weight)
    tokens = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        steps = model(tokens, num_steps=STEPS, halt="answered").steps
    found = model.flops(4, 9, STEPS, steps=steps, halt="answered")
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_answers_that_follow_a_coda_halt_nothing():
    model = waiting(vocab_size=4, num_coda_layers=1)
    with pytest.raises(UsageError, match="num_coda_layers 0"):
        model(torch.zeros(1, 3, dtype=torch.int64), halt="answered")


WAYS = [*zip(SHAPES, ("due", "wait", "none due", "due"), strict=True), (next(iter(SHAPES)), "wait")]


@pytest.mark.parametrize("shape, way", WAYS)
def test_the_loss_is_that_of_the_definition(shape, way):
    has_due, waits = way != "none due", way == "wait"
    model = gated(
        SHAPES[shape], num_steps=4, **({"step_loss": "wait", "wait_token": 3} if waits else {})
    )
    tokens, lengths = rows(5)
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(11, (4, 9), generator=generator)
    targets[:, ::3] = -100
    targets = targets.where(torch.arange(9) < lengths[:, None], -100)
    due = torch.randint(1, 6, (4, 9), generator=generator) if has_due else None
    batch = Batch(tokens, targets, lengths=lengths, keys=torch.arange(4) + 5, due=due)
    model.train()
    loss = model.loss(batch)
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    if has_due:
        need = due
    else:
        with torch.no_grad():
            states = model(tokens, lengths=lengths, keep_states=True).states
            need = needed_by_later(first_lasting(model.read_out(states), targets), targets)
    taken = steps_in_training(need, batch.keys, 4)
    graded, gates = tokens.new_zeros(()).double(), tokens.new_zeros(()).double()
    for i, n in enumerate(lengths.tolist()):
        defined = Definition(model, tokens[i, :n], 4, steps=taken[i].tolist())
        assert defined.taken == taken[i, :n].tolist()
        for t in range(n):
            first, last = int(need[i, t]), int(taken[i, t])
            graded_from = 1 if waits else min(first, last)
            for k in range(graded_from, last + 1):
                if targets[i, t] == -100:
                    continue
                target = targets[i, t : t + 1]
                if waits and k < first:  # also where it is due after the last step
                    target = torch.tensor([3])
                # The last step is read out as at inference, when all others have ended.
                state = defined.outputs[t, 4 if k == last else k]
                cost = F.cross_entropy(model._answer(state)[0], target)
                graded = graded + cost / (last - graded_from + 1)
            for k in range(1, last + 1):
                opens = torch.tensor(float(k >= first)).double()
                cost = F.binary_cross_entropy_with_logits(defined.gates[t][k - 1], opens)
                gates = gates + cost / last
    count = int((targets != -100).sum())
    assert loss.counts == {"next_token": count, "halt": int(lengths.sum())}
    close(loss.parts["next_token"], (graded / count).detach())
    close(loss.parts["halt"], (gates / int(lengths.sum())).detach())
    (graded / count + gates / int(lengths.sum())).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-11, msg=name)
    shares = [model.loss(batch.rows(slice(i, i + 2)), counts=loss.counts) for i in (0, 2)]
    close(sum(x.total for x in shares).detach(), loss.total.detach())
    model.eval()
    without_keys = model.loss(dataclasses.replace(batch, keys=None)).total.detach()
    assert without_keys.isfinite() and without_keys != loss.total.detach()


def test_steps_that_are_needed_and_taken_in_training():
    logits = F.one_hot(torch.tensor([[[1, 1], [0, 1], [1, 1], [1, 0]]]), 3).double()
    targets = torch.tensor([[1, 1]])
    # Right from step 3 on; right thrice and wrong at the end: all steps.
    assert first_lasting(logits, targets).tolist() == [[3, 4]]
    need = torch.tensor([[9, 2, 9, 4, 1, 9]])
    targets = torch.tensor([[-100, 5, -100, 5, 5, -100]])
    assert needed_by_later(need, targets).tolist() == [[4, 2, 4, 4, 1, 1]]
    need, keys = torch.full((4000, 5), 2), torch.arange(4000)
    taken = steps_in_training(need, keys, 9)
    shares = [(taken == 2 + extra).double().mean().item() for extra in range(4)]
    assert shares == pytest.approx([0.75, 1 / 12, 1 / 12, 1 / 12], abs=0.01)
    assert torch.equal(steps_in_training(need[:, :3], keys, 9), taken[:, :3])
    assert torch.equal(steps_in_training(need, keys, 3), taken.clamp(max=3))
    assert torch.equal(steps_in_training(need, None, 9), need)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "halt, message",
    [
        (1.5, "number in 0 .. 1"),
        (-0.1, "number in 0 .. 1"),
        (float("nan"), "number in 0 .. 1"),
        (True, "number in 0 .. 1"),
        ("wait", "number in 0 .. 1"),
        ("answered", "step_loss wait"),
    ],
)
def test_halts_that_are_no_thresholds_are_refused(halt, message):
    model, (tokens, lengths) = gated({}), rows()
    calls = (
        lambda: model(tokens, halt=halt),
        lambda: model.score(tokens, halt=halt),
        lambda: model.generate(tokens, 1, halt=halt),
        lambda: model.answer(tokens, lengths, 1, halt=halt),
    )
    for call in calls:
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize("name", ["decoder", "looped", "deepsight", "pause", "reasoning_tokens"])
def test_models_without_a_gate_refuse_a_threshold(name):
    model, (tokens, _) = tiny(name, {"vocab_size": 11}), rows()
    for call in (
        lambda: model(tokens, halt=0.5),
        lambda: model.generate(tokens, 1, halt=0.5),
        lambda: model.score(tokens, halt=0.5),
    ):
        with pytest.raises(UsageError, match="without a gate"):
            call()


@pytest.mark.parametrize(
    "own, message",
    [
        ({"halting": True, "step_loss": "every"}, "last, due or wait with halting"),
        ({"halting": True, "backprop_steps": 1}, "backprop_steps must be None"),
    ],
)
def test_settings_that_contradict_a_gate_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        tiny("looped", own)
