"""Thinker halts by boundary: against a definition in loops over rows, boundaries and steps."""

import dataclasses

import pytest
import torch
from model_cases import tiny
from thinker_definition import DIM, VOCAB, rows, thinker
from thinker_halting_definition import Definition
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkers.errors import UsageError
from thinkers.models.batch import Batch
from thinkers.models.halting_model import first_lasting, steps_in_training

STEPS, SECTION = 6, 5
PUBLISHED = {"variant": "published", "output": "parallel", "num_layers": 1}
SHAPES = {
    "plain": {},
    "two latents": {"memory_steps": 2, "num_knowledge": 2},
    "reads twice": {"read_steps": 2, "num_layers": 1},
    "no latents": {"read_steps": 1, "memory_steps": 0, "num_knowledge": 2, "num_layers": 1},
    "parallel": {"output": "parallel", "output_steps": 2, "read_steps": 0, "memory_steps": 1},
    "mixing": {"mixing": 3, "num_input_layers": 1, "num_layers": 1, "self_attention": "none"},
}
CASES = [(name, 0.4) for name in SHAPES] + [("plain", halt) for halt in (0.0, 0.6, 1.0)]
KINDS = ("text", "answers", "all")
LESSONS = [("plain", "text", False), ("plain", "answers", True), ("plain", "all", True)]
LESSONS += [("parallel", "all", False), ("two latents", "text", True)]
LENGTHS, PROMPTS = torch.tensor([17, 9, 4, 15]), torch.tensor([12, 1, 3, 6])


def gated(own, seed=6, **settings):
    """A model in float64 whose gates are far from each other, half of them open."""
    model = thinker(seed, halting=True, max_steps=8, **own, **settings).eval()
    with torch.no_grad():
        model.text.embedding.weight.normal_(std=0.5)
        model.gate.weight.normal_()
        latents = model(rows(4, 17), num_steps=STEPS, keep_states=True).extra["latents"]
        gates = latents.mean(3) @ model.gate.weight[0]
        model.gate.weight.div_(gates.std())
        model.gate.bias.fill_(-gates.quantile(0.5) / gates.std())
    return model


def close(a, b):
    assert (a - b).abs().max() <= 1e-10 * b.abs().max(), (a - b).abs().max()


def check_rows(model, tokens, halt, together, lengths, prompts):
    """Compare rows of a batch with the definition, and with each row alone."""
    for i, n in enumerate(lengths.tolist()):
        prompt = None if prompts is None else int(prompts[i])
        row = tokens[i, :n]
        defined = Definition(model, row, STEPS, halt, prompt)
        alone = model(
            row[None],
            num_steps=STEPS,
            halt=halt,
            prompt_lengths=None if prompts is None else prompts[i : i + 1],
        )
        assert together.steps[i].tolist() == defined.steps + [0] * (tokens.shape[1] - n)
        assert alone.steps[0].tolist() == defined.steps
        close(together.logits[i, :n], defined.logits())
        close(alone.logits[0], defined.logits())
        for k in (1, 2, 4):
            close(
                model.read_out(together.states[i : i + 1, k - 1 : k, :n])[0, 0], defined.logits(k)
            )
    assert together.logits.isfinite().all()


@pytest.mark.unchecked  # repeats what the other tests run with checks
@pytest.mark.parametrize("shape, halt", CASES)
@torch.no_grad()
def test_sections_halt_as_defined_together_alone_and_token_by_token(shape, halt):
    model, tokens = gated(SHAPES[shape]), rows(4, 17)
    together = model(tokens, lengths=LENGTHS, num_steps=STEPS, halt=halt, keep_states=True)
    check_rows(model, tokens, halt, together, LENGTHS, None)
    if halt == 0.4:
        assert len(together.steps.unique()) > 2, "the gates never differ"
    whole = model(tokens, num_steps=STEPS, halt=halt)
    for start in (1, 7) if halt == 0.4 else (7,):
        given = torch.full((4,), start)
        logits, cache = model.prefill(tokens[:, :start], given, STEPS, False, 20, halt=halt)
        for t in range(start, 17):
            close(logits, whole.logits[:, t - 1])
            assert torch.equal(cache.taken, whole.steps[:, t - 1])
            logits = model.extend(tokens[:, t], cache)


@pytest.mark.unchecked  # repeats what the other tests run with checks
@pytest.mark.parametrize("shape, halt", CASES)
@torch.no_grad()
def test_prompts_halt_as_defined_together_alone_and_token_by_token(shape, halt):
    model, tokens = gated(SHAPES[shape]), rows(4, 17)
    given = {"prompt_lengths": PROMPTS, "num_steps": STEPS, "halt": halt}
    together = model(tokens, lengths=LENGTHS, keep_states=True, **given)
    check_rows(model, tokens, halt, together, LENGTHS, PROMPTS)
    assert together.extra["latents"].shape[:2] == (4, STEPS)
    whole, index = model(tokens, **given), torch.arange(4)
    logits, cache = model.prefill(tokens[:, :12], PROMPTS, STEPS, True, 20, halt=halt)
    for j in range(5):
        close(logits, whole.logits[index, PROMPTS + j - 1])
        assert torch.equal(cache.taken, whole.steps[index, PROMPTS + j - 1])
        logits = model.extend(tokens[index, PROMPTS + j], cache)


@torch.no_grad()
def test_a_published_thinker_halts():
    model, tokens, halt = gated(PUBLISHED), rows(5, 17), 0.6
    for prompts in (None, torch.full((5,), 8)):
        found = model(tokens, prompt_lengths=prompts, num_steps=STEPS, halt=halt, keep_states=True)
        check_rows(model, tokens, halt, found, torch.full((5,), 17), prompts)
    answer, steps = model.answer(tokens, PROMPTS.new_full((5,), 17), 4, STEPS, None, halt, True)
    assert answer.shape == steps.shape == (5, 4) and len(steps.unique()) > 1


@pytest.mark.parametrize("shape", ["plain", "two latents", "mixing"])
@torch.no_grad()
def test_a_token_changes_nothing_before_it(shape):
    model, tokens = gated(SHAPES[shape]), rows(4, 17)
    changed = tokens.clone()
    changed[:, 11] = (tokens[:, 11] + 1) % VOCAB
    before, after = (model(x, num_steps=STEPS, halt=0.5) for x in (tokens, changed))
    assert torch.equal(before.steps[:, :11], after.steps[:, :11])
    close(before.logits[:, :11], after.logits[:, :11])
    assert not torch.equal(before.logits[:, 11:], after.logits[:, 11:])


@pytest.mark.parametrize(
    "shape, prompted",
    [("plain", True), ("plain", False), ("no latents", False), ("parallel", True)],
)
@torch.no_grad()
def test_rows_that_leave_while_writing_change_nothing_for_the_others(shape, prompted):
    model, tokens = gated(SHAPES[shape]), rows(4, 9, seed=3)
    prompts = torch.tensor([3, 9, 5, 7]) if prompted else None
    options = dict(halt=0.5, prompt_lengths=prompts, return_logits=True, return_steps=True)
    free = model.generate(tokens, 3, STEPS, halt=0.5, prompt_lengths=prompts)
    stop = int(free[1, -1])
    (out, logits, steps), plain = (
        model.generate(tokens, 8, STEPS, stop_token=stop, use_cache=cached, **options)
        for cached in (True, False)
    )
    close(logits, plain[1])
    assert torch.equal(out, plain[0]) and torch.equal(steps, plain[2])
    ended = logits.abs().sum(-1) == 0
    assert ended.any() and (steps[ended] == 0).all()
    if prompted:
        answer, of_answer = model.answer(tokens, prompts, 8, STEPS, halt=0.5, return_steps=True)
        assert torch.equal(answer[~ended], out[:, 9:][~ended])
        assert torch.equal(of_answer[~ended], steps[~ended])
        assert torch.equal(model.answer(tokens, prompts, 8, STEPS, halt=0.5), answer)


@pytest.mark.parametrize("own", [*SHAPES.values(), PUBLISHED], ids=[*SHAPES, "published"])
@torch.no_grad()
def test_no_threshold_is_the_model_without_a_gate_and_1_never_halts(own):
    model, tokens = gated(own), rows(4, 17)
    settings = dataclasses.asdict(model.config) | {"halting": False}
    plain = tiny("thinker", settings).double().eval()
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("gate")}
    plain.load_state_dict(kept)
    for given in ({"lengths": LENGTHS}, {"lengths": LENGTHS, "prompt_lengths": PROMPTS}):
        found, wanted = (m(tokens, num_steps=STEPS, **given) for m in (model, plain))
        assert torch.equal(found.logits, wanted.logits) and torch.equal(found.steps, wanted.steps)
        assert torch.equal(found.extra["latents"], wanted.extra["latents"])
        assert (found.steps == STEPS).all()
        never = model(tokens, num_steps=STEPS, halt=1.0, **given)
        real = torch.arange(17) < LENGTHS[:, None]
        close(never.logits[real], found.logits[real])
        assert set(never.steps.unique().tolist()) == {0, STEPS}
    answer, steps = model.answer(tokens, LENGTHS, 3, STEPS, return_steps=True)
    assert torch.equal(answer, plain.answer(tokens, LENGTHS, 3, STEPS))
    assert (steps == STEPS).all() and steps.shape == answer.shape


@pytest.mark.unchecked  # counts what runs
@pytest.mark.parametrize("own", [*SHAPES.values(), PUBLISHED], ids=[*SHAPES, "published"])
@torch.no_grad()
def test_operations_of_halted_boundaries_are_not_done(own):
    model, tokens = gated(own), rows(4, 17)
    for given in ({}, {"lengths": LENGTHS}):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            steps = model(tokens, num_steps=STEPS, halt=0.5, **given).steps
        counted = model.flops(4, 17, STEPS, steps=steps)
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert counted < model.flops(4, 17, STEPS)
    targets = torch.full_like(tokens, -100)
    prompts = torch.full((4,), 12)
    targets[:, 11:15] = tokens[:, 11:15]
    batch = Batch(tokens, targets, prompts)
    full = model.batch_flops(batch, STEPS)
    steps = model(tokens, prompt_lengths=prompts, num_steps=STEPS, halt=0.5).steps
    counted = model.batch_flops(batch, STEPS, steps=steps)
    if model.config.output == "parallel":
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.answer(tokens[:, :12], prompts, 4, STEPS, halt=0.5)
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)
    asked = 2 * 4 * DIM * STEPS
    assert counted < full
    assert model.batch_flops(batch, STEPS, steps=torch.full_like(tokens, STEPS)) == full + asked
    with pytest.raises(UsageError, match=r"shape \[4, 17\], got \[3, 17\]"):
        model.flops(4, 17, STEPS, steps=steps[:3])


@torch.no_grad()
def test_latents_of_live_boundaries_can_be_replaced():
    model, tokens = gated({}), rows(4, 17)
    with model.replace_thoughts(lambda latent, step: 0.5 * latent):
        found = model(tokens, num_steps=STEPS, halt=0.5)
    for i in range(4):
        defined = Definition(model, tokens[i], STEPS, 0.5, change=lambda latent: 0.5 * latent)
        assert found.steps[i].tolist() == defined.steps
        close(found.logits[i], defined.logits())


def lesson(kind, has_due):
    """Ragged rows; targets in text, in answers alone, or in prompts and answers."""
    tokens, generator = rows(4, 17, seed=2), torch.Generator().manual_seed(2)
    targets = torch.randint(VOCAB, (4, 17), generator=generator)
    targets[:, ::3] = -100
    targets[0, 4:9] = -100  # nothing is written from the first boundary
    column = torch.arange(17)
    targets = targets.where(column < LENGTHS[:, None], -100)
    prompts = None
    if kind != "text":
        prompts = PROMPTS
    if kind == "answers":
        targets = targets.where(column >= PROMPTS[:, None] - 1, -100)
    due = torch.randint(1, 6, (4, 17), generator=generator) if has_due else None
    keys = torch.arange(4) + 5
    return Batch(tokens, targets, prompts, LENGTHS, keys, due)


@pytest.mark.parametrize("shape, kind, has_due", LESSONS)
def test_the_loss_is_that_of_the_definition(shape, kind, has_due):
    model, batch, steps = gated(SHAPES[shape], num_steps=4), lesson(kind, has_due), 4
    model.train()
    loss = model.loss(batch, num_steps=steps)
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    need = batch.due if has_due else needed(model, batch, steps)
    graded, gates, number, count = 0.0, 0.0, 0, int((batch.targets != -100).sum())
    for i, n in enumerate(LENGTHS.tolist()):
        prompt = None if batch.prompt_lengths is None else int(PROMPTS[i])
        needs = needs_of(need[i], batch.targets[i], n, prompt)
        takes = taken_of(needs, int(batch.keys[i]), steps)
        defined = Definition(model, batch.tokens[i, :n], steps, None, prompt, takes)
        by_step = [defined.logits(k) for k in range(1, steps + 1)]
        for first, last, of in defined.pieces:
            end = None if of is None else "prompt" if first + 1 == prompt else first + 1
            low, high = (needs[end], takes[end]) if end in needs and of else (1, 1)
            for t in range(first, last):
                if batch.targets[i, t] == -100:
                    continue
                graded_from = min(low, high)  # what is due later is graded after the last step
                for k in range(graded_from, high + 1):
                    cost = F.cross_entropy(by_step[k - 1][t : t + 1], batch.targets[i, t : t + 1])
                    graded = graded + cost / (high - graded_from + 1)
            if of is None or end not in needs:
                continue
            number += 1
            for k in range(1, high + 1):
                opens = torch.tensor(float(k >= low)).double()
                cost = F.binary_cross_entropy_with_logits(of.gates[k - 1], opens)
                gates = gates + cost / high
    assert loss.counts == {"next_token": count, "halt": number}
    close(loss.parts["next_token"], (graded / count).detach())
    close(loss.parts["halt"], (gates / number).detach())
    (graded / count + gates / number).backward()
    for name, p in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-11, msg=name)
    shares = [
        model.loss(batch.rows(slice(i, i + 2)), num_steps=steps, counts=loss.counts) for i in (0, 2)
    ]
    close(sum(x.total for x in shares).detach(), loss.total.detach())
    own = [model.counts(batch.rows(slice(i, i + 2))) for i in (0, 2)]
    assert {part: own[0][part] + own[1][part] for part in own[0]} == loss.counts


@torch.no_grad()
def needed(model, batch, steps):
    states = model(
        batch.tokens,
        lengths=batch.lengths,
        prompt_lengths=batch.prompt_lengths,
        num_steps=steps,
        keep_states=True,
    ).states
    return first_lasting(model.read_out(states), batch.targets)


def needs_of(need, targets, n, prompt):
    """{end of the boundary: the largest need of its targets}, of those that have some."""
    found = {}
    for t in range(n):
        if targets[t] == -100:
            continue
        if prompt is not None and t >= prompt - 1:
            end = "prompt"
        else:
            end = (t + 1) // SECTION * SECTION
        if end:
            found[end] = max(found.get(end, 1), int(need[t]))
    return found


def taken_of(needs, key, steps):
    """Draw the steps of each boundary: the prompt is the first, then come the sections."""
    found = {}
    for end, need in needs.items():
        place = 0 if end == "prompt" else end // SECTION
        row = torch.full((1, place + 1), need)
        found[end] = int(steps_in_training(row, torch.tensor([key]), steps)[0, place])
    return found


@torch.no_grad()
def test_predictions_count_as_right_after_the_step_that_a_boundary_takes():
    model, tokens, keys = gated({"output": "parallel"}), rows(4, 17), torch.arange(4)
    by_step = model.read_out(model(tokens, keep_states=True).states).argmax(-1)
    taken = steps_in_training(torch.ones(4, 4, dtype=torch.int64), keys, 3)
    taken = taken[:, (torch.arange(17) + 1) // SECTION]
    targets = by_step.take_along_dim(taken[:, None] - 1, 1)[:, 0]
    assert not torch.equal(targets, by_step[:, -1])
    batch = Batch(tokens, targets, keys=keys, due=torch.ones_like(tokens))
    loss = model.train().loss(batch)
    assert loss.correct.all() and (loss.correct_tokens == 17).all()


@pytest.mark.parametrize(
    "prompts, lengths, thinking", [(None, None, 12), (None, LENGTHS, 7), (PROMPTS, None, 3 + 4)]
)
@torch.no_grad()
def test_boundaries_that_nothing_is_read_from_do_not_think(prompts, lengths, thinking):
    model, found = gated({"output_steps": 1}), []
    number = model.config.num_latents
    model.process.register_forward_pre_hook(
        lambda _, given: found.append(len(given[0]) * (given[0].shape[1] == number))
    )
    model(rows(4, 17), lengths=lengths, prompt_lengths=prompts, num_steps=STEPS, halt=1.0)
    assert sum(found) == thinking * STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_losses_with_noise_add_up_over_shares_of_a_batch(kind):
    noise = {"noise": 0.1, "drop": 0.1, "replace": 0.1, "add_latents": 2, "random_latents": True}
    model, batch = gated(noise), lesson(kind, False)
    model.train()
    loss = model.loss(batch)
    shares = [model.loss(batch.rows(slice(i, i + 1)), counts=loss.counts) for i in range(4)]
    close(sum(x.total for x in shares).detach(), loss.total.detach())
    assert torch.equal(torch.cat([x.correct_tokens for x in shares]), loss.correct_tokens)
    loss.total.backward()
    assert model.gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "own, message",
    [
        ({"halting": True, "step_loss": "every"}, "last, due or wait with halting"),
        ({"halting": True, "backprop_steps": 1}, "backprop_steps must be None with halting"),
    ],
)
def test_settings_that_contradict_a_gate_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        tiny("thinker", own)


@pytest.mark.parametrize("own", [{}, {"step_loss": "wait", "wait_token": 1}, PUBLISHED])
def test_a_thinker_without_a_gate_cannot_halt(own):
    model, tokens = thinker(**own), rows(4, 9)
    for halt in (0.5, "answered"):
        for call in (
            lambda halt=halt: model(tokens, halt=halt),
            lambda halt=halt: model.answer(tokens, PROMPTS.clamp(max=9), 2, halt=halt),
        ):
            with pytest.raises(UsageError, match="halt"):
                call()
    with pytest.raises(UsageError, match="answered"):
        gated({})(tokens, halt="answered")
