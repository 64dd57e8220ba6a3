"""ThoughtsFormer halts by token: against a definition in loops over rows, tokens and steps."""

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
from thinkers.nn.layers import sinusoidal
from thinkers.nn.tracing import record_attention

STEPS = 6
SHAPES = {
    "modern": {},
    "published": {"variant": "published", "num_layers": 1, "hidden": 20, "num_classes": 9},
    "words": {"thoughts": "words", "num_layers": 1, "tie_head": False},
    "published words": {"variant": "published", "thoughts": "words", "num_layers": 1},
}
CASES = list(zip(SHAPES, (0.3, 0.5, 0.3, 0.5), strict=True))
CASES += [("modern", halt) for halt in (0.0, 0.6, 1.0)]


def gated(own, seed=6, **settings):
    """A model in float64 whose gates are far from each other."""
    torch.manual_seed(seed)
    sizes = {"dim": 16, "max_steps": 8, "num_steps": 4, "vocab_size": 11, "halting": True}
    model = tiny("thoughtsformer", {**sizes, **own, **settings}).double().eval()
    with torch.no_grad():
        model.embedding.weight.normal_()
        model.gate.weight.normal_(std=0.5)
        model.gate.bias.fill_(-0.2)
    return model


class Definition:
    """One row, token by token: a chain reads base elements and itself, and ends by the rule.

    Args:
        steps: The steps of each token in training; None means that the rule decides.
    """

    def __init__(self, model, row, num_steps, halt=None, steps=None):
        self.model, self.row, self.halt, self.given = model, row, halt, steps
        self.bases, self.states, self.gates, self.taken = {}, [], [], []
        for t in range(len(row)):
            thought = self.place(model.embedding(row[t])[None, None], t)
            own = [[] for _ in model.blocks]
            states, gates = [], []
            for step in range(num_steps):
                if self.ends(t, states, gates):
                    break
                x = self.coded(thought, step)
                for layer, block in enumerate(model.blocks):
                    x = self.layer(block, x, t, layer, step, own[layer])
                x = x if model.config.variant == "published" else model.norm(x)
                states.append(x)
                gates.append(None if halt == "answered" else self.gate(x))
                thought = self.thought(x, t)
            self.states.append(states)
            self.gates.append(gates)
            self.taken.append(len(states))

    def place(self, x, t):
        if self.model.config.variant == "published":
            return x + self.model.positions.weight[t]
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)

    def coded(self, x, step):
        codes = self.model.codes.weight
        return x + (codes[step] if step < len(codes) else sinusoidal_code(step, x))

    def thought(self, x, t):
        if self.model.config.thoughts == "latent":
            return x
        scores = self.model.read_out(x)
        soft = scores.softmax(-1) @ self.model.embedding.weight.detach()
        return self.place(self.model.embedding(scores.argmax(-1)) + soft - soft.detach(), t)

    def gate(self, x):
        return F.linear(x, self.model.gate.weight, self.model.gate.bias)[0, 0, 0]

    def ends(self, t, states, gates):
        if not states:
            return False
        if self.given is not None:
            return len(states) == self.given[t]
        if self.halt == "answered":
            answer = self.model.read_out(states[-1])[0, 0].argmax()
            return int(answer) != self.model.config.wait_token
        return float(torch.sigmoid(gates[-1])) > self.halt

    def layer(self, block, x, t, layer, step, own):
        table = None
        if self.model.config.variant != "published":
            table = self.model.rotary.table(torch.tensor([t]), x.dtype)
        q, k, v = block.before_attention(x, table)
        if step == 0:
            self.bases[t, layer] = k, v
        else:
            own.append((k, v))
        read = [self.bases[j, layer] for j in range(t + 1)] + own
        keys, values = (torch.cat(x, 2) for x in zip(*read, strict=True))
        weights = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
        return block.after_attention(x, weights @ values)

    def state(self, t, k):
        return self.states[t][min(k, self.taken[t]) - 1]

    def logits(self, k=STEPS):
        rows = [self.model.read_out(self.state(t, k))[0, 0] for t in range(len(self.row))]
        return torch.stack(rows)


def sinusoidal_code(step, like):
    return sinusoidal(torch.tensor([step]), like.shape[-1], like.dtype)[0]


def rows(seed=0, b=4, t=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(11, (b, t), generator=generator), torch.tensor([9, 4, 7, 1])


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


@pytest.mark.unchecked  # repeats what the other tests run with checks
@pytest.mark.parametrize("shape, halt", CASES)
@torch.no_grad()
def test_rows_halt_by_token_as_defined_together_alone_and_token_by_token(shape, halt):
    model = gated(SHAPES[shape])
    tokens, lengths = rows()
    together = model(tokens, lengths=lengths, num_steps=STEPS, halt=halt, keep_states=True)
    states = together.states
    for i, n in enumerate(lengths.tolist()):
        row = tokens[i, :n]
        defined = Definition(model, row, STEPS, halt)
        alone = model(row[None], num_steps=STEPS, halt=halt)
        for found in (together.steps[i, :n], alone.steps[0]):
            assert found.tolist() == defined.taken
        close(together.logits[i, :n], defined.logits())
        close(alone.logits[0], defined.logits())
        for k in range(1, STEPS + 1):
            close(model.read_out(states[i, k - 1, :n]), defined.logits(k))
    if 0 < halt < 1:
        assert len(together.steps.unique()) > 2, "the gates never differ"
    assert (together.steps[1, 4:] == 0).all(), "padding thinks"
    check_written(model, tokens, lengths.clamp(max=5), halt)


def check_written(model, tokens, prompts, halt):
    """Compare tokens that are given one by one, after ragged prompts, with whole rows."""
    logits, cache = model.prefill(
        tokens[:, : int(prompts.max())], prompts, STEPS, True, 20, halt=halt
    )
    rest = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(7))
    written = F.pad(tokens.where(torch.arange(9) < prompts[:, None], 0), (0, 6))
    index = torch.arange(4)
    for j in range(7):
        whole = model(written, lengths=prompts + j, num_steps=STEPS, halt=halt)
        close(logits, whole.logits[index, prompts + j - 1])
        assert cache.taken.tolist() == whole.steps[index, prompts + j - 1].tolist()
        if j < 6:
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
    model = gated({})
    tokens, _ = rows(2)
    prompts = torch.tensor([3, 9, 5, 7])
    options = dict(prompt_lengths=prompts, halt=0.5, return_logits=True, return_steps=True)
    stop = int(model.generate(tokens, 3, STEPS, prompts, halt=0.5)[1, -1])
    (out, logits, steps), plain = (
        model.generate(tokens, 8, STEPS, stop_token=stop, use_cache=cached, **options)
        for cached in (True, False)
    )
    close(logits, plain[1])
    assert torch.equal(out, plain[0]) and torch.equal(steps, plain[2])
    ended = logits.abs().sum(-1) == 0
    assert torch.equal(ended, steps == 0) and ended.any() and len(steps.unique()) > 2
    answer, of_answer = model.answer(tokens, prompts, 8, STEPS, halt=0.5, return_steps=True)
    assert torch.equal(of_answer[~ended], steps[~ended])
    assert torch.equal(answer[~ended], out[:, 9:][~ended])
    first = next(stream(model, tokens, 8, STEPS, prompts, halt=0.5))
    assert torch.equal(first.steps, steps[:, 0])


@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_no_threshold_is_the_model_without_a_gate_and_1_never_halts(own):
    model, (tokens, lengths) = gated(own), rows()
    plain = tiny_like(model, halting=False)
    for given in ({}, {"lengths": lengths}):
        found = model(tokens, num_steps=STEPS, keep_states=True, **given)
        wanted = plain(tokens, num_steps=STEPS, keep_states=True, **given)
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.states, wanted.states)
        assert (found.steps == STEPS).all() and torch.equal(found.steps, wanted.steps)
    never = model(tokens, num_steps=STEPS, halt=1.0)
    close(never.logits, model(tokens, num_steps=STEPS).logits)
    assert (never.steps == STEPS).all()


def tiny_like(model, **changes):
    settings = dataclasses.asdict(model.config) | changes
    plain = tiny("thoughtsformer", settings).double().eval()
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("gate")}
    plain.load_state_dict(kept)
    return plain


@pytest.mark.parametrize("thoughts", ["latent", "words"])
@torch.no_grad()
def test_a_model_that_waits_halts_with_its_first_answer(thoughts):
    own = {"max_steps": 8, "step_loss": "wait", "wait_token": 2, "vocab_size": 3, "num_layers": 1}
    model = tiny("thoughtsformer", {**own, "thoughts": thoughts}).double().eval()
    torch.nn.init.normal_(model.embedding.weight)
    tokens = torch.randint(3, (5, 9), generator=torch.Generator().manual_seed(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = model(tokens, num_steps=STEPS, halt="answered")
    for i in range(5):
        defined = Definition(model, tokens[i], STEPS, "answered")
        assert found.steps[i].tolist() == defined.taken
        close(found.logits[i], defined.logits())
    assert len(found.steps.unique()) > 1
    early = found.steps < STEPS
    assert (found.logits.argmax(-1)[early] != 2).all()
    counted = model.flops(5, 9, STEPS, steps=found.steps)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.unchecked  # counts what runs
@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_operations_of_halted_tokens_are_not_done(own):
    model = gated(own)
    tokens, lengths = rows(4)
    for given in ({}, {"lengths": lengths}):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            steps = model(tokens, num_steps=STEPS, halt=0.5, **given).steps
        counted = model.flops(4, 9, STEPS, steps=steps)
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)
    with pytest.raises(UsageError, match=r"shape \[4, 9\], got \[3, 9\]"):
        model.flops(4, 9, STEPS, steps=steps[:3])
    whole = model.flops(4, 9, STEPS, steps=torch.full_like(tokens, STEPS))
    asked = 2 * 16 * tokens.numel() * STEPS
    assert whole == model.flops(4, 9, STEPS) + asked > model.flops(4, 9, STEPS, steps=steps)


@torch.no_grad()
def test_thoughts_of_live_tokens_can_be_replaced_and_their_attention_is_recorded():
    model, (tokens, _) = gated({"num_layers": 1}), rows(4)
    usual = model(tokens, num_steps=STEPS, halt=0.5, keep_states=True)
    with model.replace_thoughts(lambda thought, step: torch.zeros_like(thought)):
        replaced = model(tokens, num_steps=STEPS, halt=0.5, keep_states=True)
    once = usual.steps == 1
    assert torch.equal(once, replaced.steps == 1) and once.any() and not once.all()
    assert torch.equal(usual.states[:, 0], replaced.states[:, 0])
    assert torch.equal(usual.logits[once], replaced.logits[once])
    assert not torch.isclose(usual.logits[~once], replaced.logits[~once]).all()
    with record_attention() as record:
        steps = model(tokens[:1], num_steps=STEPS, halt=0.5, keep_states=True).steps[0]
    found = model.attention(record, 9, STEPS)
    assert found["words"].shape == (STEPS, 9, 9)
    for step in range(1, int(steps.max())):
        total = found["words"][step].sum(-1) + found["own thoughts"][step].sum(-1)
        torch.testing.assert_close(total, (steps > step).double())


@pytest.mark.parametrize("own", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("has_due", [True, False])
def test_the_loss_is_that_of_the_definition(own, has_due):
    model = gated(own)
    tokens, lengths = rows(5)
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(9, (4, 9), generator=generator)
    targets[:, ::3] = -100
    targets = targets.where(torch.arange(9) < lengths[:, None], -100)
    due = torch.randint(1, 6, (4, 9), generator=generator) if has_due else None
    batch = Batch(tokens, targets, lengths=lengths, keys=torch.arange(4) + 5, due=due)
    model.train(own.get("thoughts") != "words")  # in training, words are drawn
    loss = model.loss(batch)
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    need = due if has_due else needed(model, batch)
    taken = steps_in_training(need, batch.keys if model.training else None, 4)
    graded, gates, count = 0.0, 0.0, int((targets != -100).sum())
    right = torch.zeros(4, 9, dtype=torch.bool)
    for i, n in enumerate(lengths.tolist()):
        defined = Definition(model, tokens[i, :n], 4, steps=taken[i].tolist())
        for t in range(n):
            first, last = int(need[i, t]), int(taken[i, t])
            for k in range(1, last + 1):
                logits, is_due = model.read_out(defined.states[t][k - 1])[0], k >= first
                graded_from = min(first, last)  # what is due later is graded after the last step
                if k >= graded_from and targets[i, t] != -100:
                    cost = F.cross_entropy(logits, targets[i, t : t + 1])
                    graded = graded + cost / (last - graded_from + 1)
                opens = torch.tensor(float(is_due)).double()
                cost = F.binary_cross_entropy_with_logits(defined.gates[t][k - 1], opens)
                gates = gates + cost / last
            right[i, t] = logits[0].argmax() == targets[i, t]
    assert loss.counts == {"next_token": count, "halt": int(lengths.sum())}
    assert torch.equal(loss.correct, (right | (targets == -100)).all(1))
    assert torch.equal(loss.correct_tokens, right.sum(1))
    close(loss.parts["next_token"], (graded / count).detach())
    close(loss.parts["halt"], (gates / int(lengths.sum())).detach())
    (graded / count + gates / int(lengths.sum())).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-11, msg=name)
    shares = [model.loss(batch.rows(slice(i, i + 2)), counts=loss.counts) for i in (0, 2)]
    close(sum(x.total for x in shares).detach(), loss.total.detach())


@torch.no_grad()
def test_predictions_count_as_right_after_the_step_that_a_token_takes():
    model, (tokens, _) = gated({}), rows(6)
    due, keys = torch.ones_like(tokens), torch.arange(4)
    taken = steps_in_training(due, keys, 4)
    by_step = model.read_out(model(tokens, keep_states=True).states).argmax(-1)
    targets = by_step.take_along_dim(taken[:, None] - 1, 1)[:, 0]
    assert not torch.equal(targets, by_step[:, -1])
    loss = model.train().loss(Batch(tokens, targets, keys=keys, due=due))
    assert loss.correct.all() and (loss.correct_tokens == 9).all()


@torch.no_grad()
def needed(model, batch):
    states = model(batch.tokens, lengths=batch.lengths, keep_states=True).states
    return needed_by_later(first_lasting(model.read_out(states), batch.targets), batch.targets)


@pytest.mark.parametrize(
    "own, message",
    [
        ({"halting": True, "causal": False}, "causal must be True with halting"),
        ({"halting": True, "step_loss": "every"}, "last, due or wait with halting"),
    ],
)
def test_settings_that_contradict_a_gate_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        tiny("thoughtsformer", own)


@pytest.mark.parametrize("own", [{}, {"causal": False, "step_loss": "wait", "wait_token": 1}])
def test_models_that_cannot_halt_say_so(own):
    model, (tokens, lengths) = tiny("thoughtsformer", own), rows()
    for halt in (0.5, "answered"):
        for call in (
            lambda halt=halt: model(tokens, halt=halt),
            lambda halt=halt: model.answer(tokens, lengths, 1, halt=halt),
        ):
            with pytest.raises(UsageError, match="halt"):
                call()


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("own", [*SHAPES.values(), "looped", "thinker"], ids=str)
@torch.no_grad()
def test_tokens_halt_in_mixed_precision(own):
    model = gated(own) if isinstance(own, dict) else tiny(own, {"halting": True})
    tokens, prompts = rows()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.float()(tokens, num_steps=4, halt=0.5, keep_states=True)
        written = model.generate(tokens, 5, 4, prompts, halt=0.5, return_logits=True)[1]
    assert found.logits.isfinite().all() and written.isfinite().all()
    assert found.states.shape[:2] == (4, 4)
