"""No setting is accepted and ignored: a value that changes nothing is refused with the reason."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from model_cases import CASES, NAMES, ids, lesson, thinks, tiny

import thinkers
from thinkers.comparison.matching import contenders
from thinkers.config.experiment import Config
from thinkers.config.overrides import override
from thinkers.errors import UsageError
from thinkers.models import MODELS, Model
from thinkers.models.memory_option import has_memory
from thinkers.testing.memory import with_documents

T = 41
LIMITS = {"max_length", "max_steps", "memory_section"}
"""Settings that may bound what calls accept, and nothing else."""


def literals(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [x for part in get_args(kind) for x in literals(part)]


def others(field: dataclasses.Field, value: Any) -> list[Any]:
    """Values of this field's type that differ from `value`."""
    if known := literals(field.type):
        return [x for x in known if x != value]
    if field.name == "step_weights":
        return [(1.0, 2.0)]
    if field.name.startswith(("near_", "far_")):
        return [x for x in (0.5, 0.25) if x != value]
    if field.name == "hf_config":
        return ['{"model_type": "llama", "rms_norm_eps": 0.5}']
    if field.name == "layers":
        return [x for x in ((0, 1), (1, 2)) if x != value]
    if isinstance(value, bool) or field.type == bool | None:
        return [x for x in (True, False) if x is not value]
    if isinstance(value, float):
        return [value + 0.25]
    integers = [1, 2, 3, 5, 40] if value is None else [value + 1, 2 * value, value // 2, value - 1]
    return [x for x in integers if x != value]


def traits(model: Model) -> Iterator[torch.Tensor]:
    """Everything that a setting may change, for the same weights; cheap things first."""
    batch = dataclasses.replace(lesson(model, 3, T), keys=torch.arange(3))
    batch = dataclasses.replace(batch, due=torch.arange(T).expand(3, -1) % 4 + 1)
    lengths, prompts = torch.tensor([T, 20, 9]), torch.tensor([7, 9, 4])
    for steps in model.step_counts:
        work = [model.flops(2, T, steps, training) for training in (False, True)]
        yield torch.tensor([steps, *work, model.batch_flops(batch, steps, training=True)])
    for steps in model.step_counts:
        with torch.no_grad():
            found = model.eval()(ids(3, T), num_steps=steps, keep_states=True)
            prompted = model(ids(3, T), lengths=lengths, prompt_lengths=prompts)
        yield from (found.logits, found.states, *found.extra.values(), prompted.logits)
        torch.default_generator.manual_seed(0)  # dropout
        model.train().zero_grad()
        loss = model.loss(batch, num_steps=steps).total
        loss.backward()
        yield loss.detach()
        yield from (p.grad for p in model.parameters() if p.grad is not None)
    if has_memory(model):
        yield from traits_of_memory(model, batch)


def traits_of_memory(model: Model, batch: thinkers.Batch) -> Iterator[torch.Tensor]:
    """What settings of a memory may change: of blocks, of reading them, and of training."""
    asked = with_documents(model, batch)
    with torch.no_grad():
        blocks = model.eval().blocks_of(dataclasses.replace(asked, document_levels=None))
        prompts = torch.full_like(asked.document, 7)
        found = model(batch.tokens, prompt_lengths=prompts, memory=blocks)
    yield from (blocks.latents, blocks.keys, found.logits, *found.extra.values())
    yield model.loss(dataclasses.replace(asked, document_levels=None)).total.detach()


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


class Traits:
    """The traits of a model, each computed once however many models are compared with it."""

    def __init__(self, model: Model):
        self.left, self.known = traits(model), []

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.known
        for found in self.left:
            # A copy: the gradients of other steps are written into the same tensors.
            self.known.append(found.detach().clone())
            yield self.known[-1]


def differ(model: Model, mine: Traits, changed: Model) -> bool:
    """Return True if the two models have other weights, or do anything else with the same ones."""
    if shapes(model) != shapes(changed):
        return True
    changed.load_state_dict(model.state_dict())
    return any(
        a is None or b is None or a.shape != b.shape or not torch.equal(a, b)
        for a, b in itertools.zip_longest(mine, traits(changed))
    )


@pytest.mark.unchecked
@pytest.mark.parametrize("name, own", CASES)
def test_each_setting_changes_something_or_is_refused(name, own):
    model = tiny(name, own)
    mine = Traits(model)
    for field in dataclasses.fields(model.config):
        if field.name in LIMITS or (field.name == "num_steps" and not thinks(model)):
            continue
        value = getattr(model.config, field.name)
        tried = others(field, value)
        assert tried, f"{field.name} was never changed"
        if field.name == "step_loss" and model.config.halting:
            tried.remove("due")  # a gate is trained from due steps with last, too
        if field.name == "positions" and value is None:
            tried.remove("learned" if model.config.has_positions else "rotary")  # what None is
        ignored = []
        for other in tried:
            try:
                changed = tiny(name, {**own, field.name: other})
            except (ValueError, TypeError):
                continue
            if differ(model, mine, changed):
                break
            ignored.append(other)
        else:
            assert not ignored, f"{field.name} {ignored} changes nothing, and is accepted"


IGNORED = [
    ("deepsight", {"plan_loss": "none", "horizon": 3}, "horizon must be 4, .* plan_loss is none"),
    ("deepsight", {"plan_loss": "none", "center": True}, "center must be False.* got True"),
    ("deepsight", {"plan_loss": "none", "plan_weight": 2.0}, "plan_weight must be 1.0"),
    ("deepsight", {"plan_loss": "tokens", "plan_mix": "future"}, "plan_mix .* is tokens"),
    ("deepsight", {"horizon": 1, "horizon_weights": "learned"}, "horizon_weights .* horizon is 1"),
    ("deepsight", {"embedding_weight": 2.0}, "embedding_weight .* embedding_loss is none"),
    ("reasoning_tokens", {"mode": "mask", "near_value": 1.0}, "near_value .* mode is mask"),
    ("reasoning_tokens", {"window": 0, "near_key": 0.5}, "near_key .* window is 0"),
    ("thinker", {"step_weights": (1.0, 2.0)}, "step_weights .* step_loss is last"),
    ("thoughtsformer", {"word_temperature": 2.0}, "word_temperature .* thoughts is latent"),
]


@pytest.mark.parametrize("name, own, message", IGNORED)
def test_a_setting_that_another_leaves_without_effect_is_refused(name, own, message):
    with pytest.raises(ValueError, match=message):
        tiny(name, own)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_says_how_many_steps_calls_accept(name):
    model = thinkers.build_model(name, vocab_size=13, dim=32, num_steps=4)
    config, tokens = model.config, ids(2, 5)
    assert model.check_steps(None) == config.num_steps == (4 if config.takes_steps else 1)
    assert model.step_counts[-1] == config.max_steps == (16 if config.takes_steps else 1)
    assert config.takes_steps == thinks(model) == (name not in TAKE_ONE_STEP)
    model(tokens, num_steps=config.max_steps)
    with pytest.raises(ValueError, match=f"{config.least_steps} .. {config.max_steps} "):
        model(tokens, num_steps=config.max_steps + 1)


TAKE_ONE_STEP = ("decoder", "deepsight", "multi_token")


def experiment(name: str) -> Config:
    return dataclasses.replace(thinkers.RECIPES["add/decoder"](), model=MODELS[name].Config())


@pytest.mark.parametrize("field", ["num_steps", "max_steps"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_steps_are_refused_on_the_command_line_of_models_without_steps(name, field):
    config, flags = experiment(name), [f"--model.{field}=6"]
    if name not in TAKE_ONE_STEP:
        assert getattr(override(config, (), flags).model, field) == 6
        return
    with pytest.raises(UsageError, match=f"found: --model.{field} 6\n.*takes one step.*\nfix: "):
        override(config, (), flags)
    assert override(config, (), [f"--model.{field}=1"]).model == config.model
    written = config.to_dict()
    assert Config.from_dict(written) == config
    written["model"][field] = 6
    with pytest.raises(UsageError, match="takes one step"):
        Config.from_dict(written)


def test_a_file_with_steps_for_a_model_without_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  num_steps: 3\n")
    with pytest.raises(UsageError, match="--model.num_steps 3"):
        override(experiment("deepsight"), [str(file)])


def test_in_a_comparison_steps_are_set_for_the_models_that_take_steps():
    flags = ["--model.num_steps=3", "--model.dim=16", "--task.max_digits=1"]
    found = contenders("add", ["decoder", "looped"], [], flags)
    assert [one.config.model.num_steps for one in found] == [1, 3]
    with pytest.raises(UsageError, match="--model.num_steps 3"):
        contenders("add", ["decoder", "deepsight"], [], flags)


def test_a_model_that_takes_steps_does_not_get_the_one_step_of_a_decoders_recipe():
    (one,) = contenders("add", ["pause"], [], ["--task.max_digits=1"])
    assert (one.config.model.num_steps, one.config.model.max_steps) == (4, 16)
    assert one.config.model.dim == thinkers.RECIPES["add/decoder"]().model.dim != 128
