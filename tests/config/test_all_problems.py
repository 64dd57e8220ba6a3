"""All problems of one configuration in one error, from flags, files and Python alike."""

import random
import re
from dataclasses import replace

import pytest
import torch
import yaml

import thinkers
from thinkers.cli import main
from thinkers.comparison.plan import Plan
from thinkers.config.experiment import Config
from thinkers.config.overrides import override, override_task
from thinkers.config.reinforce import Reinforce
from thinkers.config.training import Training
from thinkers.errors import SeveralErrors, UsageError, UsageTypeError
from thinkers.models.decoder import Decoder
from thinkers.recipes.pairs import find
from thinkers.training.state import build_on

pytestmark = pytest.mark.misuse

WRONG = """
model.dim=0 model.dim=-3 model.dim=2.5 model.dim=x model.dim=null model.dim=true
model.num_layers=0 model.num_layers=1.5 model.num_layers=[2]
model.num_heads=0 model.num_heads=x model.num_heads=-1
model.num_steps=0 model.num_steps=-1 model.num_steps=2.5 model.num_steps=null model.num_steps=true
model.max_steps=0 model.max_steps=x
model.tie_head=3 model.tie_head=maybe
model.max_length=0 model.max_length=-1 model.max_length=x
model.vocab_size=0 model.vocab_size=1.5
model.step_loss=never model.step_loss=3
model.halting=2 model.halting=perhaps
model.num_prelude_layers=-1 model.num_prelude_layers=1.5
model.num_coda_layers=-1 model.num_coda_layers=x
model.injection=foo model.time_code=foo
model.backprop_steps=0 model.backprop_steps=x
model.hidden=0 model.hidden=-8
model.rotary_base=1 model.rotary_base=x model.rotary_base=-2
model.window=0 model.window=x
model.dmi=8 model.layers=2 model.num_step=3 model.dropout=0.1 model.nam=a
task.num_cups=1 task.num_cups=10 task.num_cups=x task.num_cups=null
task.min_length=0 task.min_length=2.5
task.targets=some task.targets=3
task.written=7 task.written=x
task.cups=3 task.num_cup=3 task.vocab_size=9
training.num_updates=0 training.num_updates=-1 training.num_updates=x training.num_updates=null
training.max_minutes=0 training.max_minutes=-1 training.max_minutes=x
training.max_flops=0 training.max_flops=many
training.batch_size=0 training.batch_size=2.5
training.accumulation=0 training.accumulation=x
training.optimizer=sgd training.optimizer=3
training.lr=0 training.lr=-1 training.lr=.nan training.lr=.inf training.lr=1e-3x training.lr=null
training.schedule=step training.warmup_updates=-1
training.min_lr_ratio=2 training.min_lr_ratio=-1
training.weight_decay=-1 training.weight_decay=.nan
training.betas=[0.9] training.betas=[1,2] training.betas=x
training.clip=0 training.clip=.inf
training.ema=1 training.ema=-1 training.ema=x
training.seed=-1 training.seed=1.5
training.log_every=0 training.checkpoint_every=0 training.keep_last=0 training.keep_last=x
training.evaluate_every=0 training.evaluate_examples=0
training.precision=float16 training.compile=3 training.sharding=half
training.learning_rate=1 training.lrr=1 training.num_update=3 training.steps=9
""".split()
"""Settings of `cups/looped` that are wrong alone, none of which is about another one."""
TOGETHER = {
    "model.dim": "model.num_heads=7",
    "model.max_steps": "model.num_steps=4 model.max_steps=1",
    "model.backprop_steps": "model.backprop_steps=2 model.step_loss=every",
    "model.wait_token": "model.step_loss=last model.wait_token=3",
    "training.batch_size": "training.batch_size=8 training.accumulation=3",
    "training.muon_lr": "training.optimizer=adamw training.muon_lr=0.1",
    "training.random_steps": "training.depth=random training.spare_steps=0",
    "training.spare_steps": "training.depth=fixed training.spare_steps=3",
    "task.max_length": "task.min_length=9 task.max_length=3",
    "model.vocab_size": "model.vocab_size=3",
    "model.max_length": "model.max_length=4",
    "training.depth": "training.depth=due training.spare_steps=99",
}
"""{setting: settings that are right alone and wrong beside each other}."""
ABOUT_TASK = ("model.vocab_size", "model.max_length", "training.depth")
"""Settings of TOGETHER that do not fit the task, which is then built."""


@pytest.fixture(scope="module")
def cups():
    return thinkers.RECIPES["cups/looped"]()


def key_of(setting):
    return setting.partition("=")[0]


def all_cases():
    """(settings, the keys that they set, the key that the error must have)."""
    yield from (((word,), {key_of(word)}, key_of(word)) for word in WRONG)
    for key, words in TOGETHER.items():
        settings = tuple(words.split())
        yield settings, {key, *map(key_of, settings)}, key


CASES = list(all_cases())


def combined(size, rng):
    """Each case in a group of `size` cases that set different things."""
    groups = []
    for case in CASES:
        group, keys = [case], set(case[1])
        while len(group) < size:
            other = rng.choice(CASES)
            if not keys & other[1]:
                group.append(other)
                keys |= other[1]
        groups.append(group)
    return groups


def from_flags(config, settings, folder):
    # Numbers that YAML writes with a dot are words in a flag.
    flags = [f"--{x}".replace("=.nan", "=nan").replace("=.inf", "=inf") for x in settings]
    return override(config, flags=flags)


def from_file(config, settings, folder):
    parts = {}
    for x in settings:
        key, _, value = x.partition("=")
        part, _, field = key.partition(".")
        parts.setdefault(part, {})[field] = yaml.safe_load(value)
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(parts))
    try:
        return override(config, [str(file)])
    finally:
        file.unlink()


def from_python(config, settings, folder):
    data = config.to_dict()
    for x in settings:
        key, _, value = x.partition("=")
        part, _, field = key.partition(".")
        data[part][field] = yaml.safe_load(value)
    return Config.from_dict(data)


def problems_of(source, config, group, folder):
    """The problems of a group of cases, as texts; each must name its case."""
    settings = [x for case in group for x in case[0]]
    with pytest.raises(UsageError) as caught:
        build_on(torch.device("cpu"), source(config, settings, folder), initialize=False)
    problems = [str(x) for x in caught.value.problems]
    assert str(caught.value) == "\n\n".join(problems)
    for _, _, key in group:
        field = key.rpartition(".")[2]
        assert any(re.search(rf"\b{field}\b", x) for x in problems), (settings, key, problems)
    return settings, problems


def test_the_table_has_a_hundred_bad_configurations():
    assert len(CASES) >= 100 and len({case[0] for case in CASES}) == len(CASES)


SOURCES = (from_flags, from_file, from_python)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_of_several_problems_is_reported_once(source, size, cups, tmp_path):
    rng = random.Random(7 * size)
    for number, group in enumerate(combined(size, rng)):
        if number % len(SOURCES) != SOURCES.index(source):
            continue
        if source is from_python:  # which builds no task
            group = [case for case in group if case[2] not in ABOUT_TASK]
        if not group:
            continue
        settings, problems = problems_of(source, cups, group, tmp_path)
        assert len(problems) == len(group), (settings, problems)
        assert all(re.fullmatch("found: .+\nexpected: .+\nfix: .+", x) for x in problems), problems
    assert list(tmp_path.iterdir()) == []


def messages(call):
    with pytest.raises(UsageError) as caught:
        call()
    return [str(x).partition("\n")[0] for x in caught.value.problems]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        # 2 is enough for fewer steps, muon has a rate, and 8 heads fit a multiple of 8.
        (["model.num_steps=-1", "model.max_steps=2"], ["--model.num_steps -1"]),
        (["training.optimizer=sgd", "training.muon_lr=0.1"], ["--training.optimizer 'sgd'"]),
        (["model.dim=0", "model.num_heads=7"], ["--model.dim 0"]),
        (["task.min_length=x", "task.max_length=3"], ["--task.min_length 'x'"]),
        (["task.max_length=0", "model.max_length=400"], ["--task.max_length 0"]),
        (["model.max_steps=x", "training.spare_steps=99"], ["--model.max_steps 'x'"]),
        (["model.num_steps=0", "training.spare_steps=60"], ["--model.num_steps 0"]),
    ],
)
def test_a_consequence_of_a_problem_is_no_problem(flags, found, cups):
    texts = messages(lambda: override(cups, flags=[f"--{flag}" for flag in flags]))
    assert texts == [f"found: {x}" for x in found]


def test_what_does_not_fit_the_task_is_reported_beside_a_value_out_of_range(cups):
    flags = ["--training.lr=-1", "--model.max_length=4", "--model.step_loss=early"]
    assert messages(lambda: override(cups, flags=flags)) == [
        "found: --training.lr -1.0",
        "found: model.max_length 4",
        "found: step_loss early with due steps and no early answers",
    ]


@pytest.mark.parametrize("name", thinkers.MODELS)
def test_sizes_of_every_model_are_reported_beside_other_problems(name):
    config = find(f"copy/{name}")
    flags = ["--training.lr=-1", "--model.vocab_size=2"]
    texts = messages(lambda: override(config, flags=flags))
    sizes = replace(config, model=replace(config.model, vocab_size=2))
    assert texts[:2] == ["found: --training.lr -1.0", "found: model.vocab_size 2"]
    assert texts[1:] == messages(lambda: build_on(torch.device("cpu"), sizes, False))


def test_a_policy_has_the_updates_of_its_training():
    found = thinkers.RECIPES["cups/thinker"]()
    config = replace(found, reinforce=Reinforce(num_updates=found.training.num_updates))
    flags = ["--reinforce.num_updates=900", "--training.clip=0", "--reinforce.lr=0"]
    texts = messages(lambda: override(config, flags=flags))
    assert texts[:2] == ["found: --training.clip 0.0", "found: --reinforce.lr 0.0"]
    assert not any("num_updates" in x for x in texts)


def test_no_file_of_a_task_is_read_while_settings_are_wrong(tmp_path):
    config = thinkers.RECIPES["shakespeare/looped"]()
    flags = [f"--task.path={tmp_path / 'missing.txt'}", "--training.lr=-1", "--model.max_length=1"]
    assert messages(lambda: override(config, flags=flags)) == ["found: --training.lr -1.0"]


def test_conflicts_of_a_policy_are_reported_together(cups):
    config = Config(cups.model, cups.task, cups.training, reinforce=Reinforce(num_updates=7))
    sizes = Config(
        Decoder.Config(vocab_size=2, max_length=3), cups.task, cups.training, reinforce=Reinforce()
    )
    policy = [
        "found: reinforce for looped without a policy",
        "found: --training.depth due with reinforce",
        f"found: --training.num_updates {cups.training.num_updates} with reinforce.num_updates 7",
    ]
    assert messages(lambda: build_on(torch.device("cpu"), config, initialize=False)) == policy
    texts = messages(lambda: build_on(torch.device("cpu"), sizes, initialize=False))
    assert [x.split()[1] for x in texts[:3]] == [
        "model.vocab_size",
        "model.max_length",
        "--training.depth",
    ]
    assert "found: reinforce for decoder without a policy" in texts


def test_the_command_prints_a_block_for_each_problem_and_writes_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("model: {dim: 0}\ntrainig: {lr: 1}\ntask: 3\n")
    line = ["train", "cups/looped", "--config=a.yaml", "--model.dmi=8", "--training.lr=nan"]
    assert main.main(line) == 2
    out, err = capsys.readouterr()
    blocks = [block.splitlines() for block in err.strip().split("\n\n")]
    assert out == "" and len(blocks) == 5
    assert all([x.split(":")[0] for x in b] == ["found", "expected", "fix"] for b in blocks)
    for word in (
        "'trainig' in a.yaml",
        "task: 3 in",
        "model.dmi",
        "training.lr 'nan'",
        "model.dim 0",
    ):
        assert word in err
    assert main.main(["train", "cups/looped", "--model.max_length=4", "--model.vocab_size=2"]) == 2
    assert capsys.readouterr().err.count("found: model.") == 2
    assert [x.name for x in tmp_path.iterdir()] == ["a.yaml"]


def test_a_comparison_reports_its_own_arguments_and_the_settings_of_all_models(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = ["compare", "cups", "--models=decoder,looped", "--match=flop", "--lrs=0.1,-1"]
    line += ["--controls=filler", "--training.lr=3", "--model.dim=-1", "--model.injection=foo"]
    assert main.main(line) == 2
    err = capsys.readouterr().err
    for word in (
        *("--match flop", "--lrs -1", "control 'filler'", "--training.lr", "--model.dim -1"),
        *("--model.injection, which cups/decoder does not", "--model.injection 'foo'"),
    ):
        assert err.count(word) == 1, (word, err)
    line = ["compare", "cups", "--models=looped,decoder", "--seeds=0", "--lrs=x,-1", "--budget=y"]
    line += ["--num_examples=z", "--task.num_cup=3", "--training.batch_size=0", "--model.dimm=8"]
    assert main.main(line) == 2
    assert re.findall("found: (.*)", capsys.readouterr().err) == [
        *("--lrs 'x'", "--seeds 0", "--num_examples z", "--budget y", "--lrs -1.0"),
        *("--model.dimm, which cups/looped does not have",),
        *("--task.num_cup, which cups/looped does not have", "--training.batch_size 0"),
    ]
    assert main.main(["compare"]) == 2
    assert re.findall("found: (.*)", capsys.readouterr().err) == ["no task", "no models"]
    asked = dict(match=None, budget=None, seeds=0, lrs=(), controls=(), num_examples=0)
    asked |= dict(task="cups", models=["looped"], settings={"model.dim": 0})
    assert len(messages(lambda: Plan.of(**asked))) == 3
    sizes = {"model.max_length": 4, "model.vocab_size": 2}
    asked |= dict(seeds=1, num_examples=9, settings=sizes, models=["decoder", "looped"])
    assert len(messages(lambda: Plan.of(**asked))) == 2
    assert list(tmp_path.iterdir()) == []


def test_every_way_of_python_reports_all_problems(cups):
    sizes = dict(vocab_size=9, dimm=8, dropout=2, num_heads=-1, tie_head=3)
    model = messages(lambda: thinkers.build_model("decoder", **sizes))
    assert len(model) == 4
    task = messages(lambda: thinkers.build_task("cups", num_cup=3, targets="some", max_length=0))
    assert len(task) == 3
    with pytest.raises(SeveralErrors, match="(?s)clip.*seed.*lr") as caught:
        Training(num_updates=3, lr=-1, seed=-1, clip="x")
    assert [type(x) for x in caught.value.problems] == [UsageTypeError, UsageError, UsageError]
    with pytest.raises(SeveralErrors, match="(?s)dim.*rotary_base"):
        Decoder.Config(dim=0, rotary_base=0.5)
    flags = ["--task.num_cup=3", "--task.targets=some", "--task.max_length=0", "--model.dim=3"]
    assert len(messages(lambda: override_task(cups.task, flags))) == 4


def test_one_problem_is_raised_as_it_was():
    with pytest.raises(UsageTypeError) as caught:
        Training(num_updates=3, lr="x")
    assert caught.value.problems == (caught.value,)
    with pytest.raises(UsageError, match="^lr must be above 0, got -1$"):
        Training(num_updates=3, lr=-1)
    with pytest.raises(TypeError, match="num_updates"):
        Training()
