"""Every model of MODELS has every property of `check_model`; and what models share."""

import dataclasses
import math

import pytest
import torch
from model_cases import CASES, NAMES, SIZE, ids, lesson, thinks, tiny

import thinkers
from thinkers.errors import UsageError
from thinkers.models import MODELS, Batch, from_config
from thinkers.models.batch import IGNORED, correct_predictions, next_token_loss
from thinkers.testing import check_model

COMMON = ("vocab_size", "dim", "num_layers", "num_heads", "num_steps", "max_length")


@pytest.mark.misuse
@pytest.mark.parametrize("name, own", CASES)
def test_every_model_has_every_property_in_float64(name, own):
    check_model(tiny(name, {**({"max_steps": 3} if own else {}), **own}).double())


@pytest.mark.misuse
@pytest.mark.parametrize("name", ["looped", "reasoning_tokens"])
def test_models_have_every_property_in_float32(name):
    """Of which one has a store of keys, and one an operation, of its own; the slow test has all."""
    check_model(tiny(name, {"max_steps": 3}))


@pytest.mark.slow
@pytest.mark.parametrize("name, own", CASES)
def test_every_variant_has_every_property_in_float32_at_every_depth(name, own):
    check_model(tiny(name, {"num_steps": 3, "max_steps": 12, **own}))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_the_six_common_settings_and_has_defaults_for_its_own(name):
    model = thinkers.build_model(name, **{k: SIZE[k] for k in COMMON})
    assert type(model) is MODELS[name] and model.name == name
    assert type(model.config) is MODELS[name].Config
    thinks = model.config.takes_steps
    wanted = SIZE if thinks else SIZE | {"num_steps": 1}
    assert {k: getattr(model.config, k) for k in COMMON} == {k: wanted[k] for k in COMMON}
    assert model.config.max_steps == (max(4, 4 * SIZE["num_steps"]) if thinks else 1)
    assert thinkers.build_model(name, vocab_size=7).config.max_length == 256
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.dim = 5


@pytest.mark.parametrize("name", NAMES)
def test_step_counts_are_those_that_the_model_takes(name):
    model = tiny(name)
    counts = model.step_counts
    assert counts == tuple(sorted(set(counts))) and counts[-1] <= model.config.max_steps
    assert [model.check_steps(steps) for steps in counts] == list(counts)
    assert model.check_steps(None) in counts
    wanted = {model.config.least_steps, 1, 2, 4} if thinks(model) else {1}
    assert set(counts) == wanted


@pytest.mark.parametrize("name, own", CASES)
def test_rows_may_be_wider_than_max_length_where_they_are_padding(name, own):
    model = tiny(name, own, max_length=19).double()
    tokens, lengths = ids(2, 19), torch.tensor([19, 6])
    wide = torch.cat([tokens, torch.full((2, 12), -1)], 1)
    wanted = model(tokens, lengths=lengths).logits
    found = model(wide, lengths=lengths).logits
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], wanted[row, :length])


@pytest.mark.parametrize("name, own", CASES)
def test_shares_of_a_disturbed_batch_add_up_in_training_too(name, own):
    model = tiny(name, own).double().train()
    tokens, targets, keys = ids(5, 19), ids(5, 19, seed=1), torch.arange(5) * 10**9 + 7
    batch = Batch(tokens, targets, torch.tensor([3, 19, 1, 7, 16]), keys=keys)
    counts = model.counts(batch)
    whole = model.loss(batch)
    shares = [model.loss(batch.rows(cut), counts=counts) for cut in (slice(2), slice(2, 5))]
    total = sum(share.total for share in shares)
    torch.testing.assert_close(total, whole.total, rtol=1e-12, atol=0)
    again = model.loss(batch)
    assert torch.equal(again.total, whole.total), "a row's disturbance is not a function of keys"


def test_a_model_is_built_by_name_or_from_its_config():
    torch.manual_seed(3)
    model = thinkers.build_model("looped", vocab_size=11, dim=24, num_steps=3, injection="add")
    torch.manual_seed(3)
    again = from_config(model.config)
    assert type(again) is type(model) and again.config == model.config
    for (name, x), (other, y) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(x, y)


@pytest.mark.misuse
@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("decodr", {}, ("decodr", "decoder")),
        ("decoder", {"width": 3}, ("width", "dim", "decoder")),
        ("decoder", {"dim": 30}, ("dim", "num_heads", "30", "4")),
        ("decoder", {"dim": 0}, ("dim", "at least 1", "0")),
        ("decoder", {"dim": 12}, ("rotary", "3")),
        ("decoder", {"num_heads": True}, ("num_heads", "True")),
        ("decoder", {"num_layers": 1.0}, ("num_layers", "1.0")),
        ("decoder", {"num_kv_heads": 3}, ("num_kv_heads", "4", "3")),
        ("decoder", {"num_kv_heads": 8}, ("num_kv_heads", "1 .. 4", "8")),
        ("decoder", {"dropout": 1.0}, ("dropout", "1.0")),
        ("decoder", {"hidden": 0}, ("hidden", "0")),
        ("decoder", {"max_length": -1}, ("max_length", "-1")),
        ("looped", {"num_steps": 0}, ("num_steps", "at least 1", "0")),
        ("looped", {"max_steps": 2}, ("max_steps", "at least 4", "2")),
        ("looped", {"injection": "cat"}, ("injection", "concat", "'cat'")),
        ("looped", {"backprop_steps": 0}, ("backprop_steps", "0")),
        ("looped", {"num_coda_layers": -1}, ("num_coda_layers", "-1")),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(name, settings, words):
    with pytest.raises(ValueError) as error:
        thinkers.build_model(name, **{"vocab_size": 7, **settings})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_model_or_setting_is_a_usage_error():
    with pytest.raises(UsageError):
        thinkers.build_model("transformer", vocab_size=7)
    with pytest.raises(UsageError):
        thinkers.build_model("decoder", vocab_size=7, vocabulary=7)
    with pytest.raises(UsageError, match="int is not the Config of a model"):
        from_config(3)


def test_rows_of_a_batch_are_rows_of_all_its_tensors():
    whole = Batch(ids(5, 3), ids(5, 3, seed=1), ids(5), None, ids(5, seed=2))
    part = whole.rows(slice(1, None, 2)).to("cpu")
    assert len(whole) == 5 and len(part) == 2 and part.lengths is None
    for field in ("tokens", "targets", "prompt_lengths", "keys"):
        assert torch.equal(getattr(part, field), getattr(whole, field)[[1, 3]])
    assert torch.equal(whole.rows(torch.tensor([4, 0])).tokens, whole.tokens[[4, 0]])


@pytest.mark.parametrize("name", ["decoder", "looped"])
def test_the_loss_is_the_mean_surprisal_of_the_graded_tokens(name):
    model = tiny(name).double()
    tokens, targets = ids(3, 7), ids(3, 7, seed=1)
    targets[0, 2:] = targets[2, 0] = IGNORED
    lengths = torch.tensor([7, 4, 6])
    logits = model(tokens, lengths=lengths).logits.detach()
    surprise = [
        -float(logits[b, i].log_softmax(0)[targets[b, i]])
        for b in range(3)
        for i in range(int(lengths[b]))
        if targets[b, i] != IGNORED
    ]
    loss = model.loss(Batch(tokens, targets, lengths=lengths))
    assert loss.counts == {"next_token": len(surprise)} == {"next_token": 2 + 4 + 5}
    assert float(loss.total.detach()) == pytest.approx(math.fsum(surprise) / 11, rel=1e-12)
    assert torch.equal(loss.parts["next_token"], loss.total.detach())


@pytest.mark.parametrize("name", NAMES)
def test_the_targets_of_a_bare_tensor_are_its_next_tokens(name):
    model, tokens = tiny(name), ids(3, 7)
    targets = torch.cat([tokens[:, 1:], torch.full((3, 1), IGNORED)], 1)
    found, wanted = model.loss(tokens), model.loss(Batch(tokens, targets))
    assert torch.equal(found.total, wanted.total) and found.counts == wanted.counts
    assert found.counts["next_token"] == 18


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_graded_tokens_has_a_loss_of_zero(name):
    model, tokens = tiny(name), ids(2, 5)
    loss = model.loss(Batch(tokens, torch.full((2, 5), IGNORED), torch.tensor([2, 5])))
    assert loss.counts["next_token"] == 0 and float(loss.parts["next_token"]) == 0
    assert loss.total.isfinite() and loss.correct.all()
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_one_token_is_enough(name):
    model = tiny(name)
    assert model(ids(1, 1)).logits.shape == (1, 1, 13)
    assert model.score(ids(1, 1)).shape == (1, 0)
    assert model.loss(Batch(ids(1, 1), ids(1, 1, seed=1))).total.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_runs_in_bfloat16(name):
    model = tiny(name).bfloat16()
    logits = model(ids(2, 19)).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    loss = model.loss(lesson(model, 2, 19))
    loss.total.backward()
    assert loss.total.isfinite()
    assert model.generate(ids(2, 5), 3).shape == (2, 8)


def test_a_loss_is_the_sum_over_graded_tokens_divided_by_the_count_that_is_given():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, IGNORED, 4], [0, 2, IGNORED]])
    surprise = [-float(logits[b, i].log_softmax(0)[targets[b, i]]) for b, i in
                ((0, 0), (0, 2), (1, 0), (1, 1))]  # fmt: skip
    for count in (1, 4, 7):
        found = float(next_token_loss(logits, targets, count))
        assert found == pytest.approx(math.fsum(surprise) / count, rel=1e-12)
    assert float(next_token_loss(logits, torch.full((2, 3), IGNORED), 0)) == 0
    right = logits.argmax(-1).where(targets != IGNORED, IGNORED)
    rows, tokens = correct_predictions(logits, right)
    assert rows.all() and tokens.tolist() == [2, 2]
    right[1, 0] = (right[1, 0] + 1) % 5
    rows, tokens = correct_predictions(logits, right)
    assert rows.tolist() == [True, False] and tokens.tolist() == [2, 1]


class FirstEdition(MODELS["decoder"]):
    """The decoder, with the signatures that models had before keywords were required."""

    def forward(self, tokens, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False):
        return super().forward(
            tokens,
            num_steps=num_steps,
            lengths=lengths,
            prompt_lengths=prompt_lengths,
            keep_states=keep_states,
        )

    def loss(self, batch, num_steps=None, counts=None):
        return super().loss(batch, num_steps=num_steps, counts=counts)

    def score(self, tokens, lengths=None, num_steps=None):
        return super().score(tokens, lengths=lengths, num_steps=num_steps)


@pytest.mark.misuse
def test_a_model_with_positional_signatures_has_every_property():
    check_model(FirstEdition(tiny("decoder").config))


@pytest.mark.parametrize("name", NAMES)
def test_an_untied_head_is_a_matrix_of_its_own(name):
    tied, untied = tiny(name), tiny(name, {"tie_head": False})
    vocab_size, dim = tied.config.vocab_size, tied.config.dim
    more = sum(x.numel() for x in untied.parameters()) - sum(x.numel() for x in tied.parameters())
    assert more == vocab_size * dim
    embedding = next(x for x in untied.modules() if isinstance(x, torch.nn.Embedding)).weight
    assert untied.output_weights() == {untied.head.weight} and tied.output_weights() == {
        next(x for x in tied.modules() if isinstance(x, torch.nn.Embedding)).weight
    }
    states = untied(ids(1, 5), keep_states=True).states
    untied.read_out(states.detach()).sum().backward()
    assert untied.head.weight.grad is not None and embedding.grad is None
    for variant in ("published",) if hasattr(tied.config, "variant") else ():
        with pytest.raises(ValueError, match="tie_head must be True, its default"):
            tiny(name, {"tie_head": False, "variant": variant})
