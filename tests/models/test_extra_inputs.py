"""Other inputs of rows than tokens: read as defined, in training, generation and evaluation."""

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_cases import QUICK, losses

import thinkers
from thinkers.errors import UsageError
from thinkers.models.thinker import Thinker
from thinkers.nn.processor import Input
from thinkers.prng import row_keys
from thinkers.tasks.answers import answer_batch
from thinkers.tasks.base import SPLITS
from thinkers.testing import check_model

SIZES = dict(vocab_size=13, dim=12, num_layers=2, num_heads=2, num_steps=2, max_length=23)
EXACT = dict(rtol=1e-10, atol=1e-10)


class Seeing(Thinker):
    """A thinker that reads an image of 4 x 4 pixels and a list of vectors."""

    def __init__(self, config):
        super().__init__(config)
        self.inputs["image"] = thinkers.ImageInput(4, 2, 2, config.dim)
        self.inputs["points"] = Points(config.dim)


class Points(Input):
    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Linear(3, dim)

    def forward(self, points):
        return self.layer(points)

    def flops(self, points):
        return 2 * points.numel() * self.layer.out_features


class Reading(Thinker):
    """A thinker whose other input is text: tokens at places of their own."""

    def __init__(self, config):
        super().__init__(config)
        self.inputs["text"] = Words(self)


class Words(Input):
    def __init__(self, model):
        super().__init__()
        self.own = [model]  # in a list, so that the model is no part of its part

    def forward(self, pairs):
        return self.own[0].text.embed(pairs[..., 0], pairs[..., 1])


def seeing(**own):
    torch.manual_seed(0)
    return Seeing(Seeing.Config(**SIZES, **own)).double().eval()


def rows(b=5, t=9):
    """Ragged prompts with answers, and an image and points for each."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(13, (b, t), generator=g)
    prompts = torch.arange(b) % (t - 3) + 1
    lengths = (prompts + 2).clamp(max=t)
    targets = tokens.roll(-1, 1)
    places = torch.arange(t)
    graded = (places >= prompts[:, None] - 1) & (places < lengths[:, None] - 1)
    extra = {
        "image": torch.randn(b, 2, 4, 4, generator=g, dtype=torch.float64),
        "points": torch.randn(b, 3, 3, generator=g, dtype=torch.float64),
    }
    return thinkers.Batch(tokens, targets.where(graded, -100), prompts, lengths, extra=extra)


def test_other_inputs_are_read_as_more_of_the_prompt():
    """A prompt, the rest of which is another input, is the whole prompt, in parallel read-out."""
    torch.manual_seed(0)
    model = Reading(Reading.Config(**SIZES, output="parallel")).double().eval()
    whole = torch.randint(13, (3, 8))
    prompts = torch.tensor([8, 8, 8])
    own = torch.stack([whole[:, 5:], torch.arange(5, 8).expand(3, 3)], 2)
    part = torch.cat([whole[:, :5], whole[:, :3]], 1)  # what follows the prompt is not read
    expected = model(whole, prompt_lengths=prompts, num_steps=3).logits[:, -1]
    found = model(
        part, prompt_lengths=torch.full((3,), 5), num_steps=3, extra={"text": own}
    ).logits[:, 4]
    torch.testing.assert_close(found, expected, **EXACT)
    without = model(part, prompt_lengths=torch.full((3,), 5), num_steps=3).logits[:, 4]
    assert not torch.allclose(found, without)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"mixing": 3, "num_input_layers": 1},
        {"read_steps": 0, "memory_steps": 1},
        {"output": "parallel"},
    ],
    ids=str,
)
@torch.no_grad()
def test_rows_are_the_same_alone_cached_and_recomputed(own):
    model, batch = seeing(**own), rows()
    columns = torch.arange(int(batch.prompt_lengths.max()))
    index = (columns - len(columns) + batch.prompt_lengths[:, None]).clamp(min=0)
    prompts = batch.tokens.gather(1, index)
    given = prompts, 4, 3, batch.prompt_lengths
    options = dict(return_logits=True, extra=batch.extra)
    out, logits = model.generate(*given, **options)
    again, slow = model.generate(*given, use_cache=False, **options)
    assert torch.equal(out, again)
    torch.testing.assert_close(logits, slow, **EXACT)
    for i, length in enumerate(batch.prompt_lengths.tolist()):
        extra = {name: x[i : i + 1] for name, x in batch.extra.items()}
        alone = prompts[i : i + 1, len(columns) - length :]
        found, one = model.generate(
            alone, 4, 3, torch.tensor([length]), return_logits=True, extra=extra
        )
        assert torch.equal(found[0, length:], out[i, len(columns) :])
        torch.testing.assert_close(one[0], logits[i], **EXACT)
    stop = int(out[0, len(columns)])  # a row that ends leaves the batch, with its inputs
    stopped = model.generate(*given, stop_token=stop, extra=batch.extra)
    kept = model.generate(*given, stop_token=stop, use_cache=False, extra=batch.extra)
    assert torch.equal(stopped, kept)
    answers = model.answer(prompts, batch.prompt_lengths, 4, 3, extra=batch.extra)
    if own.get("output") != "parallel":
        assert torch.equal(answers, out[:, len(columns) :])
    other = {**batch.extra, "image": batch.extra["image"].flip(0)}
    assert not torch.allclose(model.generate(*given, return_logits=True, extra=other)[1], logits)


def test_losses_of_shares_and_of_joined_batches_are_those_of_the_whole():
    model, batch = seeing(step_loss="every"), rows()
    whole = model.loss(batch)
    whole.total.backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters()}
    assert all(x.any() for name, x in gradients.items() if name.startswith("inputs."))
    model.zero_grad()
    shares = [batch.rows(slice(i, None, 2)) for i in range(2)]
    for share in shares:
        model.loss(share, counts=model.counts(batch)).total.backward()
    for name, x in model.named_parameters():
        torch.testing.assert_close(x.grad, gradients[name], rtol=1e-10, atol=1e-12)
    parts = [batch.rows(torch.tensor([i])) for i in range(len(batch))]
    joined = thinkers.collate(parts).to("cpu")
    torch.testing.assert_close(model.loss(joined).total, whole.total, **EXACT)
    with pytest.raises(UsageError, match=r"the same inputs in all batches, got \[\] at 0 and .* 1"):
        thinkers.collate([replace(parts[0], extra=None), parts[1]])


@pytest.mark.unchecked
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("own", [{}, {"mixing": 2, "num_input_layers": 1}], ids=str)
def test_operations_are_those_that_torch_counts(training, own):
    model, batch = seeing(**own), rows(6, 9)
    model.requires_grad_(training)
    # One width, or torch would count the padding of answers.
    batch = replace(batch, prompt_lengths=torch.full((6,), 4), lengths=torch.full((6,), 9))
    graded = torch.arange(9) >= 3
    batch = replace(batch, targets=batch.tokens.roll(-1, 1).where(graded, -100))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if training:
            model.train()
            model.loss(batch).total.backward()
        else:
            model.loss(batch)
    assert counter.get_total_flops() == pytest.approx(
        model.batch_flops(batch, 2, training), rel=0.02
    )
    without = model.batch_flops(replace(batch, extra=None), 2, training)
    assert model.batch_flops(batch, 2, training) > without


@pytest.mark.misuse
def test_what_cannot_be_read_is_refused():
    model, batch = seeing(), rows()
    plain = thinkers.build_model("thinker", **SIZES)
    image = batch.extra["image"]
    given = dict(prompt_lengths=batch.prompt_lengths)
    for call, said in [
        (lambda: plain(batch.tokens, **given, extra=batch.extra), "a model that reads other"),
        (lambda: plain.loss(batch), "extra with image, points for thinker"),
        (lambda: thinkers.build_model("decoder", **SIZES).loss(batch), "for decoder"),
        (lambda: plain.generate(batch.tokens, 1, extra=batch.extra), "a model that reads other"),
        (lambda: model(batch.tokens, **given, extra={"image": image}), "with image, points"),
        (lambda: model(batch.tokens, **given, extra=[image]), "must be a dict of tensors"),
        (lambda: model(batch.tokens, extra=batch.extra), "without prompt_lengths"),
        (lambda: model.generate(batch.tokens, 1, extra=batch.extra), "without prompt_lengths"),
        (
            lambda: model.loss(replace(batch, extra={**batch.extra, "image": image[:2]})),
            r"extra\['image'\] must have 5 rows, got 2",
        ),
        (
            lambda: model.loss(replace(batch, extra={**batch.extra, "points": 3})),
            r"extra\['points'\] must be a tensor \(b, ..\), got",
        ),
        (lambda: seeing(halting=True).loss(batch), "halting False"),
        (lambda: seeing(policy=True).loss(batch), "policy False"),
    ]:
        with pytest.raises(ValueError if "must be" not in said else TypeError, match=said):
            call()


@pytest.mark.misuse
def test_a_model_with_other_inputs_keeps_the_properties_of_every_model():
    check_model(seeing())


class Brightest(thinkers.tasks.AnswerTask):
    """Name the brightest quarter of an image of 4 x 4 pixels: `?` is answered by `0` to `3`."""

    symbols = "0123?"
    prompt_end = "?"
    max_length = 4

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def max_answer_length(self):
        return 2

    def batch(self, update, batch_size, split="train"):
        keys = row_keys(self.seed, SPLITS.index(split), np.array([update]), batch_size)[0]
        shape = 2, 4, 4
        noise = [np.random.default_rng(key).standard_normal(shape, np.float32) for key in keys]
        images, quarters = torch.from_numpy(np.stack(noise)), (keys % np.uint64(4)).tolist()
        for image, x in zip(images, quarters, strict=True):
            image[:, x // 2 * 2 : x // 2 * 2 + 2, x % 2 * 2 : x % 2 * 2 + 2] += 3
        examples = [(self.encode("?"), [x, self.end_token]) for x in quarters]
        rows = answer_batch(examples, keys.view(np.int64), self.pad_token)
        points = torch.zeros(batch_size, 1, 3)
        return dataclasses.replace(rows, extra={"image": images, "points": points})


def test_a_model_that_sees_is_trained_resumed_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(thinkers.MODELS, "seeing", Seeing)
    monkeypatch.setitem(thinkers.TASKS, "brightest", Brightest)
    settings = QUICK | dict(num_updates=60, batch_size=32, checkpoint_every=45, accumulation=2)
    settings |= dict(optimizer="muon", lr=0.03, evaluate_examples=100)
    own = dict(dim=16, num_layers=1, num_heads=2, num_latents=3, num_steps=2, tie_head=False)
    training = thinkers.Training(**settings)
    config = thinkers.Config.fit(Seeing, Brightest.Config(), training, **own)
    run = thinkers.train(config, tmp_path / "a")
    assert run.scores["exact"] > 0.6  # guessing is a quarter
    thinkers.train(config, tmp_path / "b", until=45)
    again = thinkers.resume(tmp_path / "b")
    assert losses(run.folder) == losses(again.folder) and again.scores == run.scores
    model, task = thinkers.open_run(run.folder)
    assert type(model) is Seeing
    (row,) = thinkers.evaluate(run.folder, num_steps=[3], num_examples=100)
    assert row["exact"] > 0.5
    batch = task.batch(0, 20, "test")
    prompts = batch.tokens[:, :2]
    answers = model.answer(prompts, batch.prompt_lengths, 1, extra=batch.extra)
    assert (answers[:, 0] == batch.targets[:, 1]).double().mean() > 0.5
