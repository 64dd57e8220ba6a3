"""Recipes on products and chains: equal sizes and equal training FLOPs of what is compared."""

import pytest

import thinkers
from thinkers.config.experiment import build

FORMS = ("direct", "looped", "free", "written")
DECODERS = {"direct": "direct_decoder", "looped": "decoder", "written": "written_decoder"}
FAMILIES = [("multiply/", ""), ("multiply/", "_3x3"), ("arithmetic/", "")]


def built(name):
    """The config, the number of weights and the training FLOPs of a recipe, at its largest rows."""
    config = thinkers.RECIPES[name]()
    task, model = build(config)
    task.check(model)
    task.skip_curriculum()
    batch = task.batch(0, config.training.batch_size)
    flops = config.training.num_updates * model.batch_flops(batch, None, training=True)
    return config, sum(p.numel() for p in model.parameters()), flops


@pytest.mark.parametrize("before, after", FAMILIES)
def test_what_is_compared_has_equal_sizes_and_training_flops(before, after):
    found = {form: built(before + form + after) for form in FORMS}
    for form, other in DECODERS.items():
        (ours, *sizes), (theirs, *others) = found[form], built(before + other + after)
        assert ours.task == theirs.task and not theirs.model.takes_steps
        for x, y in zip(sizes, others, strict=True):
            assert abs(x / y - 1) < 0.03
    (graded, *sizes), (free, *others) = found["looped"], found["free"]
    assert sizes == others and set(graded.changes(free)) == {"task.registers"}
    # arithmetic/direct has lessons, and the settings with which it was measured first.
    for form in FORMS:
        if before + form != "arithmetic/direct":
            assert abs(found[form][2] / found["looped"][2] - 1) < 0.03


def test_the_lessons_of_chains_are_those_of_the_first_measurement():
    config = thinkers.RECIPES["arithmetic/direct"]()
    assert config.training.num_updates == 18000 and config.task.curriculum
    assert not config.task.scratch and config.task.registers is None


def test_the_calculator_is_called_by_the_model_that_writes_products_itself():
    ours, theirs = (thinkers.RECIPES[f"arithmetic/{x}"]() for x in ("calculator", "written"))
    changed = {"task.calculator", "task.scratch", "task.product_share", "training.num_updates"}
    assert set(ours.changes(theirs)) == changed
    assert ours.training.num_updates < theirs.training.num_updates / 2
