"""The guided loss against a loop over positions and tokens, its gradients and its operations."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_cases import make

from thinkers.config.experiment import build
from thinkers.config.grow import Grow
from thinkers.distillation.guide import GuidedLoss, guide_flops
from thinkers.errors import UsageError
from thinkers.models.batch import IGNORED, Loss
from thinkers.tasks import TASKS

CUPS = TASKS["cups"].Config(max_length=4)
CASES = {
    "decoder": {},
    "looped": dict(num_steps=2, step_loss="due"),
    "halting": dict(num_steps=2, halting=True),
    "thinker": dict(num_latents=2, num_steps=2),
    "thoughtsformer": dict(num_steps=2),
    "multi_token": dict(num_future=2),
    "reasoning_tokens": dict(num_steps=2),
    "deepsight": {},
}


def pair(case, task=None):
    """A task, its batch, and two models of a class, in float64, of which one is wider."""
    kind = "looped" if case == "halting" else case
    found = []
    for dim in (8, 16):
        torch.manual_seed(dim)
        built, model = build(make(kind, task or CUPS, **CASES[case] | {"dim": dim}))
        found.append(model.double())
    guide, model = found
    return built, built.batch(0, 5), guide.eval(), model


def by_loop(model, guide, batch):
    """Sum KL(guide || model) over graded positions, one token after the other."""
    given = dict(lengths=batch.lengths, prompt_lengths=batch.prompt_lengths)
    p, q = (x(batch.tokens, **given).logits.softmax(-1).tolist() for x in (guide, model))
    total = 0.0
    for row, targets in enumerate(batch.targets.tolist()):
        for place, target in enumerate(targets):
            if target != IGNORED:
                pairs = zip(p[row][place], q[row][place], strict=True)
                total += sum(a * (math.log(a) - math.log(b)) for a, b in pairs)
    return total


@pytest.mark.parametrize(
    "case, task",
    [(x, "cups") for x in CASES if x != "halting"]
    + [(x, "copy") for x in CASES if x not in ("halting", "looped")],
)
def test_the_loss_is_that_of_a_loop_over_positions(case, task):
    config = CUPS if task == "cups" else TASKS["copy"].Config(max_length=3)
    _, batch, guide, model = pair(case, config)
    counts = model.counts(batch)
    model.eval()  # without the noise of training, forward and loss have the same logits
    found = GuidedLoss(model, guide, lambda: 0.7)(batch, None, counts)
    apart = by_loop(model, guide, batch) / counts["next_token"]
    plain = model.loss(batch)
    assert found.total.item() == pytest.approx(plain.total.item() + 0.7 * apart, abs=1e-12)
    assert found.parts["guide"].item() == pytest.approx(apart, abs=1e-12)
    assert found.logits is None and found.counts == plain.counts
    assert {x: y for x, y in found.parts.items() if x != "guide"} == plain.parts


def test_where_tokens_halt_the_logits_are_those_of_their_last_step():
    _, batch, guide, model = pair("halting")
    found = GuidedLoss(model, guide, lambda: 1.0)(batch, None, model.counts(batch))
    found.total.backward()
    assert found.parts["guide"] > 0
    assert all(x.grad is not None for x in model.parameters())


@pytest.mark.parametrize("case", ["looped", "thinker"])
def test_shares_of_a_batch_add_up_and_a_guide_does_not_learn(case):
    _, batch, guide, model = pair(case)
    module, counts = GuidedLoss(model.eval(), guide, lambda: 2.0), model.counts(batch)
    whole = module(batch, None, counts).total
    shares = [module(batch.rows(x), None, counts).total for x in (slice(0, 2), slice(2, None))]
    assert sum(shares).item() == pytest.approx(whole.item(), abs=1e-12)
    whole.backward()
    assert all(x.grad is None for x in guide.parameters())
    assert dict(module.named_parameters()).keys() == {f"model.{x}" for x in model.state_dict()}


def test_a_model_that_is_its_guide_is_at_no_distance_and_has_no_gradient_from_it():
    _, batch, guide, _ = pair("looped")
    counts = guide.counts(batch)
    guided = GuidedLoss(guide, guide, lambda: 1e6)(batch, None, counts)
    assert guided.parts["guide"].abs() < 1e-14
    (ours,) = torch.autograd.grad(guided.total, [guide.norm.weight])
    (plain,) = torch.autograd.grad(guide.loss(batch).total, [guide.norm.weight])
    assert torch.allclose(ours, plain, atol=1e-8)


def test_at_weight_0_the_guide_is_not_run():
    _, batch, guide, model = pair("decoder")
    module = GuidedLoss(model, guide, lambda: 0.0)
    module._guided = None  # would fail
    found, plain = module(batch, None, model.counts(batch)), model.loss(batch)
    assert torch.equal(found.total, plain.total) and "guide" not in found.parts


def test_random_numbers_of_training_do_not_depend_on_the_guide():
    _, batch, guide, model = pair("decoder")
    torch.manual_seed(0)
    GuidedLoss(model, guide, lambda: 1.0)(batch, None, model.counts(batch))
    after = torch.rand(3)
    torch.manual_seed(0)
    model.loss(batch)
    assert torch.equal(after, torch.rand(3))


def test_a_model_whose_loss_has_no_logits_is_refused():
    _, batch, guide, model = pair("decoder")
    plain = model.loss
    model.loss = lambda *rows, **own: Loss(*vars(plain(*rows, **own)).values()).without_logits()
    with pytest.raises(UsageError, match="grow for decoder, whose loss holds no logits"):
        GuidedLoss(model, guide, lambda: 1.0)(batch, None, model.counts(batch))


@pytest.mark.parametrize(
    "case, task", [("decoder", "cups"), ("looped", "cups"), ("looped", "copy"), ("thinker", "copy")]
)
def test_operations_of_the_guide_are_those_counted_by_torch(case, task):
    own = {"cups": CUPS, "copy": TASKS["copy"].Config(max_length=5)}[task]
    case = {"looped": {"cups": "looped", "copy": "halting"}[task]}.get(case, case)
    _, batch, guide, model = pair(case, own)
    module = GuidedLoss(model, guide, lambda: 1.0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module._guided(batch)
    assert guide_flops(guide, batch) == counted.get_total_flops()


def test_the_weight_falls_linearly_over_a_share_of_the_updates():
    settings = Grow(guide="a", weight=2.0, decay=0.5)
    assert [settings.weight_at(x, 8) for x in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    assert Grow(guide="a", decay=1.0).weight_at(7, 8) == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"weight": math.inf}, {"decay": 0.0}, {"decay": 1.5}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
        Grow(guide="a", **wrong)
