"""DeepSight: plans, what they are trained for, and what their loss says and does not say."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from foresight import foresight
from model_cases import ids, tiny
from torch.nn import functional as F

from thinkers import Batch, build_model
from thinkers.models.batch import real_positions
from thinkers.models.deepsight import DeepSight
from thinkers.models.deepsight_loss import PlanLoss, disaffinity, fixed_weights

LENGTHS = torch.tensor([13, 7, 2, 1])


def make(seed: int = 0, **settings):
    torch.manual_seed(seed)
    common = {"vocab_size": 23, "dim": 24, "num_layers": 2, "num_heads": 4, "max_length": 17}
    return build_model("deepsight", **{**common, **settings})


def rows(t: int = 13, ragged: bool = True) -> Batch:
    drawn = torch.Generator().manual_seed(5)
    tokens = torch.randint(23, (4, t), generator=drawn)
    targets = torch.randint(23, (4, t), generator=drawn)
    return Batch(tokens, targets, lengths=LENGTHS.clamp(max=t) if ragged else None)


def plan_loss(**settings) -> PlanLoss:
    common = {"vocab_size": 23, "dim": 6, "num_heads": 1, "max_length": 17, "plan_norm": "none"}
    return PlanLoss(DeepSight.Config(**{**common, **settings})).double()


def slow_target(loss: PlanLoss, config: dict, embedded: torch.Tensor, length: int, i: int):
    """The target of position i, counted from 1, straight from the definition."""
    ahead = min(config["horizon"], length - i)
    kind = config["horizon_weights"]
    weights = [1.0 if kind == "average" else 1 / k for k in range(1, ahead + 1)]
    if kind == "learned":
        weights = loss.logits.softmax(0)[:ahead].tolist()
    scale = 1.0 if kind == "decay" else sum(weights)
    future = sum(w / scale * embedded[i + k] for k, w in enumerate(weights))
    present = embedded[:i].mean(0)
    if config["plan_mix"] == "future":
        return future
    if config["plan_mix"] == "equal":
        return (present + future) / 2
    return (i * present + ahead * future) / (i + ahead)


@pytest.mark.parametrize("mix", ["equal", "length", "future"])
@pytest.mark.parametrize("kind", ["decay", "decay_normalized", "average", "learned"])
@pytest.mark.parametrize("partial", [True, False])
def test_targets_of_plans_are_their_equations(mix, kind, partial):
    config = {
        "horizon": 3,
        "plan_mix": mix,
        "horizon_weights": kind,
        "partial_horizon": partial,
    }
    torch.manual_seed(1)
    loss = plan_loss(**config)
    if kind == "learned":
        torch.nn.init.normal_(loss.logits)
    embedded = torch.randn(4, 13, 6, dtype=torch.float64)
    target = loss.target(embedded, real_positions(rows().tokens, rows().lengths))
    for row, length in enumerate(LENGTHS.tolist()):
        last = length - (1 if partial else 3)
        for i in range(1, last + 1):
            wanted = slow_target(loss, config, embedded[row], length, i)
            # Published weights are float32 numbers.
            torch.testing.assert_close(target[row, i - 1], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 4, 12, 13, 40])
@pytest.mark.parametrize("partial", [True, False])
def test_positions_count_where_their_horizon_lies_inside_the_row(horizon, partial):
    model = make(horizon=horizon, partial_horizon=partial)
    need = 1 if partial else horizon
    wanted = sum(max(0, length - need) for length in LENGTHS.tolist())
    loss = model.loss(rows())
    assert loss.counts["plan"] == wanted == model.counts(rows())["plan"]
    assert (loss.parts["plan"] == 0) == (wanted == 0)
    assert loss.total.isfinite()
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("settings", [{}, *DeepSight.test_variants])
def test_shares_of_a_batch_add_up_to_it(settings):
    model, batch = make(**settings).double(), rows()
    counts = model.counts(batch)
    whole = model.loss(batch)
    shares = [model.loss(batch.rows(slice(i, i + 1)), counts=counts) for i in range(4)]
    torch.testing.assert_close(sum(s.total for s in shares), whole.total, rtol=1e-12, atol=0)
    for name, part in whole.parts.items():
        torch.testing.assert_close(sum(s.parts[name] for s in shares), part, rtol=1e-12, atol=1e-15)
        assert sum(s.counts[name] for s in shares) == counts[name]


def test_a_single_token_has_no_plan_and_no_nan():
    for settings in ({}, {"variant": "published"}, {"plan_loss": "log_cosine"}):
        loss = make(**settings).loss(torch.ones(1, 1, dtype=torch.int64))
        assert loss.parts == {"next_token": 0.0, "plan": 0.0}
        assert loss.counts == {"next_token": 0, "plan": 0}


def test_distances_of_vectors_are_their_equations():
    a, b = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-4.0, 3.0]]])
    assert disaffinity("mse", a, b).item() == pytest.approx((49 + 1) / 2)
    assert disaffinity("cosine", a, b).item() == pytest.approx(0.5)
    assert disaffinity("cosine", a, 7 * a).item() == pytest.approx(0.0, abs=1e-6)
    assert disaffinity("log_cosine", a, b).item() == pytest.approx(0.693147, rel=1e-5)
    opposite = disaffinity("log_cosine", a, -a)
    assert opposite.item() == pytest.approx(-torch.log(torch.tensor(torch.finfo().eps)).item())


def test_published_weights_agree_to_the_last_bit():
    """Built as published: a matrix over all positions, in float32, and its row sums."""
    for context, horizon in itertools.product((17, 64, 203), (3, 4, 11)):
        number = torch.arange(context - horizon)[:, None]
        ahead = (torch.arange(1, context) - number).float()
        weights = (1 / ahead).masked_fill((ahead < 1) | (ahead > horizon), 0)
        weights = weights / weights.sum(-1, keepdim=True)
        wanted = weights.gather(1, number + torch.arange(horizon))
        decay = torch.arange(1, horizon + 1).float() ** -1
        found = fixed_weights("decay_normalized", decay, context - horizon)
        assert torch.equal(found.expand_as(wanted), wanted)


def test_the_published_loss_vanishes_with_its_gains_and_ours_has_none():
    published, ours, batch = make(variant="published"), make(), rows()
    before = published.loss(batch).parts["plan"]
    plans = published(batch.tokens, lengths=batch.lengths).extra["plan"]
    with torch.no_grad():
        for norm in (published.plan_loss.encoder_norm, published.plan_loss.after_norm):
            norm.weight.mul_(0.01)
    after = published.loss(batch).parts["plan"]
    assert torch.equal(published(batch.tokens, lengths=batch.lengths).extra["plan"], plans)
    assert after < 1e-3 * before
    assert not list(ours.plan_loss.parameters())


def test_the_modern_target_is_independent_of_the_size_of_the_embeddings():
    loss = plan_loss(plan_norm="after")
    embedded = torch.randn(2, 13, 6, dtype=torch.float64)
    real = torch.ones(2, 13, dtype=torch.bool)
    small = loss.target(1e-4 * embedded, real)
    torch.testing.assert_close(small, loss.target(embedded, real), rtol=1e-3, atol=1e-3)


def test_the_plan_loss_does_not_train_the_embeddings():
    model, batch = make(plan_weight=3.0, embedding_loss="none"), rows()
    model.grade(batch)[1]["plan"].backward()
    read = torch.zeros(23, dtype=torch.bool)
    read[batch.tokens[real_positions(batch.tokens, batch.lengths)]] = True
    assert model.embedding.weight.grad[read].any()
    detached = model.plan_inputs(model.embedding(batch.tokens))
    assert not detached.requires_grad


def test_the_embedding_loss_trains_the_embeddings_alone():
    model = make(plan_loss="none", embedding_loss="mse")
    model.grade(rows())[1]["embedding"].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"embedding.weight"}


def test_subtract_position_subtracts_the_next_position():
    plain = make(positions="learned", max_length=18)
    less = make(positions="learned", subtract_position=True)
    less.load_state_dict(plain.state_dict())
    tokens = rows(17, ragged=False).tokens
    taken = F.linear(plain.positions.weight[1:18], plain.embedding.weight)
    torch.testing.assert_close(less(tokens).logits, plain(tokens).logits - taken)
    with pytest.raises(ValueError, match="must have learned positions"):
        make(subtract_position=True)


def test_center_subtracts_the_mean_token():
    model = make(center=True)
    counts = torch.arange(23)
    model.plan_loss.set_token_counts(counts)
    embedded = model.embedding.weight[None]
    centred = model.plan_inputs(embedded)[0]
    torch.testing.assert_close((counts[:, None] * centred).sum(0), torch.zeros(24))
    assert "plan_loss.token_frequencies" in model.state_dict()
    assert "plan_loss.token_frequencies" not in make().state_dict()
    with pytest.raises(ValueError, match="need center=True"):
        make().plan_loss.set_token_counts(counts)
    with pytest.raises(ValueError, match="counts must be one for each token"):
        model.plan_loss.set_token_counts(counts[1:])


def test_depths_are_separate_and_follow_the_encoder_by_default():
    assert len(make(num_layers=3).decoder) == 3
    model = make(num_layers=3, num_decoder_layers=1)
    assert (len(model.encoder), len(model.decoder)) == (3, 1)


def test_heads_of_the_cross_attention_follow_the_variant():
    assert make().decoder[0].cross_heads.num_kv_heads == 4
    assert make(variant="published").decoder[0].cross_heads.num_kv_heads == 8
    assert make(variant="published", dim=20).decoder[0].cross_heads.num_kv_heads == 4
    with pytest.raises(ValueError, match="multiple of num_cross_heads, got 24 and 5"):
        make(num_cross_heads=5)


def test_dropout_acts_in_training_alone():
    model, tokens = make(variant="published", dropout=0.4), rows(ragged=False).tokens
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_rows_shorter_than_the_published_context_have_plans():
    model = make(variant="published", horizon_weights="decay_normalized", horizon=4)
    assert model.loss(rows(9, ragged=False)).counts["plan"] == 4 * 5


@pytest.mark.parametrize("settings", [{}, *DeepSight.test_variants])
def test_columns_of_padding_may_go_beyond_the_longest_row(settings):
    model, short = make(max_length=13, **settings), rows()
    longer = F.pad(torch.stack([short.tokens, short.targets]), (0, 8))
    long = Batch(*longer, lengths=short.lengths)
    torch.testing.assert_close(model.loss(long).total, model.loss(short).total)


def test_learned_positions_end_at_max_length():
    model = make(positions="learned")
    with pytest.raises(ValueError, match="at most 17 together"):
        model.generate(rows().tokens, 5)


@pytest.mark.misuse
@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 0},
        {"horizon": True},
        {"plan_loss": "l1"},
        {"variant": "old"},
        {"positions": "none"},
        {"plan_weight": 0.0},
        {"dropout": 1.0},
        {"bias": True},
        {"num_decoder_layers": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        make(**settings)


def test_foresight_is_higher_for_a_plan_that_holds_the_future():
    drawn = torch.Generator().manual_seed(2)
    embedding = torch.nn.Embedding.from_pretrained(torch.randn(23, 6, generator=drawn))
    loss = plan_loss(plan_norm="after").float()
    tokens = [torch.randint(23, (16, 17), generator=drawn) for _ in range(8)]
    batches = [Batch(x, x, lengths=torch.full((16,), 15)) for x in tokens]
    whole = torch.full((16, 13), 4)

    def knowing(tokens):
        x = embedding(tokens)
        return x, F.pad(loss.future(x, 13, whole), (0, 0, 0, 4)), x

    def ignorant(tokens):
        x = embedding(tokens)
        return x, x.cumsum(1), x

    def report(run):
        model = SimpleNamespace(
            plan_loss=loss, embedding=embedding, run=run, plan_inputs=lambda x: x
        )
        return foresight(model, batches)

    # Tokens drawn alike: what was read says nothing about what comes.
    assert report(knowing)["future_beyond"] > 0.999
    assert abs(report(ignorant)["future_beyond"]) < 0.05
    assert abs(report(ignorant)["future_known"]) < 0.05


def test_foresight_of_a_model_is_finite_and_needs_two_batches():
    model = make()
    found = foresight(model, [rows(17, ragged=False) for _ in range(4)])
    assert found["gain_encoder"] == found["gain_target"] == 1.0
    # The same rows were fitted and measured, and there are fewer of them than columns.
    assert found["future_beyond"] > 0.5
    assert all(torch.isfinite(torch.tensor(list(found.values()))))
    with pytest.raises(ValueError, match="at least 2"):
        foresight(model, [rows()])


@pytest.mark.parametrize("weights", ["decay", "decay_normalized", "average"])
def test_plans_of_tokens_are_graded_on_the_next_graded_tokens(weights):
    model = tiny("deepsight", plan_loss="tokens", horizon=3, horizon_weights=weights).double()
    tokens, targets = ids(3, 11), ids(3, 11, seed=1)
    targets[0, :4] = -100
    targets[1] = -100
    lengths = torch.tensor([11, 9, 2])
    batch = Batch(tokens, targets, None, lengths)
    _, plan, _ = model.run(tokens)
    share = [1.0, 1.0, 1.0] if weights == "average" else [1.0, 1 / 2, 1 / 3]
    whole = 1.0 if weights == "decay" else sum(share)
    total, count = 0.0, 0
    for row in range(3):
        for i in range(11):
            if i >= int(lengths[row]) or targets[row, i] == -100:
                continue
            count += 1
            for k in range(3):
                if i + k < int(lengths[row]) and targets[row, i + k] != -100:
                    x = plan[row, i] @ model.plan_loss.distances[k]
                    x = x / (x.square().mean() + torch.finfo(torch.float64).eps).sqrt()
                    logp = (model.embedding.weight @ x).log_softmax(-1)
                    total = total - share[k] / whole * logp[targets[row, i + k]]
    loss = model.loss(batch)
    assert loss.counts["plan"] == model.counts(batch)["plan"] == count == 9
    torch.testing.assert_close(loss.parts["plan"], total / count, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.total, loss.parts["next_token"] + loss.parts["plan"])


def test_plans_without_graded_tokens_have_no_loss():
    model = tiny("deepsight", plan_loss="tokens", horizon=3)
    batch = Batch(ids(2, 7), torch.full((2, 7), -100), None, None)
    assert model.loss(batch).parts["plan"] == 0
    none = tiny("deepsight", plan_loss="none")
    assert model.batch_flops(batch, training=True) == none.batch_flops(batch, training=True)
    graded = Batch(ids(2, 7), ids(2, 7), None, None)
    assert model.batch_flops(graded, training=True) == model.flops(2, 7, training=True)


def test_plans_of_tokens_have_no_mean_no_learned_weights_and_no_foresight():
    for own in ({"center": True}, {"horizon_weights": "learned"}):
        with pytest.raises(ValueError, match="plans of tokens"):
            tiny("deepsight", plan_loss="tokens", **own)
    with pytest.raises(ValueError, match="plan_loss must be of embeddings"):
        foresight(tiny("deepsight", plan_loss="tokens"), [])
