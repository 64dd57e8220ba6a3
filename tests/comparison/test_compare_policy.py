"""A contender with a policy, which is trained in turn with its model and chooses when graded."""

import json
import re
from dataclasses import replace

import pytest

import thinkers
from thinkers.cli.main import main
from thinkers.comparison import budgets, matching, one_run, plan
from thinkers.comparison.plan import Plan
from thinkers.comparison.runner import compare
from thinkers.comparison.summary import by_steps
from thinkers.config.reinforce import Reinforce
from thinkers.errors import UsageError
from thinkers.evaluation.halting import measure_effort
from thinkers.policies.loss import PolicyLoss, update_flops

SMALL = {
    "task.max_swaps": 3,
    "model.dim": 16,
    "model.num_heads": 2,
    "model.num_latents": 2,
    "model.num_steps": 3,
    "model.max_steps": 8,
    "training.batch_size": 6,
    "reinforce.supervised_updates": 2,
    "reinforce.policy_updates": 1,
    "reinforce.group_size": 4,
}
FLAGS = [f"--{key}={value}" for key, value in SMALL.items()]
NAMES = ["thinker", "thinker+policy"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, plain_pages):
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(plan, "POINTS", 2)


@pytest.fixture
def rates(monkeypatch):
    """Measured seconds that are not measured: 0.1 of an update of a model, 0.2 of a policy."""
    monkeypatch.setattr(
        budgets,
        "seconds_per_update",
        lambda config, timed: (0.1, 0.2)[: len(config.update_counts(1))],
    )


def asked(**own):
    nothing = dict(match=None, budget=None, seeds=None, lrs=[], controls=[], num_examples=None)
    return dict(task="mixed", models=NAMES, settings=SMALL) | nothing | own


@pytest.fixture(scope="module")
def found():
    return {x.name: x for x in matching.contenders("mixed", NAMES, (), FLAGS)}


def test_it_is_trained_with_its_policy_and_graded_with_its_choices(tmp_path, rates):
    sizes = dict(budget="4 updates", seeds=1, num_examples=30, settings=SMALL, out=tmp_path)
    made = compare("mixed", NAMES, **sizes)
    assert not made.failures and list(made.results) == NAMES
    plain, record = (made.results[name][0].record for name in NAMES)
    assert not {"policy", "halt", "mean_steps", "flops_share"} & set(plain)
    assert record["policy"] is True and "halt" not in record and record["num_steps"] == 3
    home = tmp_path / "runs" / "thinker+policy-0"
    model, task = thinkers.open_run(home)
    assert model.halts_by == ("policy",)
    own = type(task)(task.config, one_run.EXAMPLES_SEED)
    for steps in (1, 3):
        effort = measure_effort(model, own, "test", 30, steps, "policy")
        assert record["mean_steps"][str(steps)] == effort.mean_steps
        assert record["flops_share"][str(steps)] == effort.flops_share
        assert record["scores"][str(steps)] == float(effort.grades.mean())
    config = json.loads((home / "config.json").read_text())["config"]
    assert config["reinforce"]["num_updates"] == config["training"]["num_updates"] == 4
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["update"] == 4 and record["updates"] == 4
    page = (tmp_path / "report.html").read_text()
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)
    mean, share = (by_steps(made.results[NAMES[1]], x)["3"] for x in ("mean_steps", "flops_share"))
    assert "at most 3" in cells and f"{mean:.2f}" in cells and f"{100 * share:.0f} %" in cells
    assert "thinker with a policy, trained in turn with it" in page
    assert "choose the block of each step" in page and "halt where" not in page
    assert "--models=thinker,thinker+policy" in page
    assert compare(out=tmp_path, resume=True).mean_scores == made.mean_scores
    assert thinkers.reproduce(home, tmp_path / "again").equal


def test_settings_are_those_of_the_others_and_of_a_policy(found):
    plain, chooses = found["thinker"], found["thinker+policy"]
    assert plain.config.reinforce is None and not plain.config.model.policy
    config = chooses.config
    assert config.model.policy and config.model.backprop_steps is None
    own = Reinforce(supervised_updates=2, policy_updates=1, group_size=4)
    assert config.reinforce == replace(own, num_updates=config.training.num_updates)
    training = config.training
    assert (training.depth, training.random_steps, training.spare_steps) == ("fixed", None, 0)
    assert config.task == plain.config.task and chooses.halt == "policy" and plain.halt is None
    sizes = [matching.parameters(one.config.model) for one in found.values()]
    assert max(sizes) <= 1.03 * min(sizes)


def test_flags_go_to_the_contenders_that_have_a_use_for_them():
    flags = [*FLAGS, "--training.depth=due", "--training.spare_steps=1", "--task.curriculum=true"]
    flags.append("--training.random_steps=null")
    flags += ["--reinforce.cost_weight=0.25"]
    plain, chooses = matching.contenders("mixed", NAMES, (), flags)
    assert (plain.config.training.depth, plain.config.training.spare_steps) == ("due", 1)
    assert (chooses.config.training.depth, chooses.config.training.spare_steps) == ("fixed", 0)
    assert plain.config.model.num_latents == chooses.config.model.num_latents == 2
    assert plain.config.task.curriculum and chooses.config.task.curriculum
    assert chooses.config.reinforce.cost_weight == 0.25


@pytest.mark.parametrize(
    "updates, amount", [(1, 0.5), (2, 2.0), (3, 2.1), (3, 7), (7, 14.6), (9, 16.9)]
)
def test_the_updates_that_reach_an_amount_are_those_of_a_loop(found, updates, amount):
    config, costs = found["thinker+policy"].config, (1.0, 5.0)
    spent, number = 0.0, 0
    while spent < amount:
        spent += costs[0 if config.reinforce.is_supervised(number) else 1]
        number += 1
    assert budgets.reaching(config, amount, costs) == number == updates
    assert budgets.total(config, updates, costs) == spent
    near = min(range(1, 20), key=lambda n: abs(budgets.total(config, n, costs) - amount))
    assert budgets.nearest(config, amount, costs) == near


def test_the_updates_of_a_budget_of_flops_are_counted_by_kind(found, rates):
    one = found["thinker+policy"]
    made = Plan.of(**asked(budget=2e8))
    config = made.config(one, 0)
    task = thinkers.tasks.from_config(config.task, 0)
    model, used = matching.build(config.model), []
    for update in range(config.training.num_updates):
        batch = task.batch(update, 6)
        used.append(update_flops(model, config.reinforce, update, batch))
    assert sum(used) == pytest.approx(2e8, rel=0.03)
    assert used[2] == 4 * model.batch_flops(task.batch(2, 6))
    plain = made.config(found["thinker"], 0)
    assert config.reinforce.num_updates == config.training.num_updates != plain.training.num_updates
    assert config.training.max_flops == 2e8


def test_seconds_are_measured_and_planned_by_kind(monkeypatch):
    kinds, forward = [], PolicyLoss.forward

    def spy(self, *arguments):
        kinds.append(self.settings.is_supervised(self.update()))
        return forward(self, *arguments)

    monkeypatch.setattr(PolicyLoss, "forward", spy)
    monkeypatch.setattr(budgets, "TIMED", 3)
    made = Plan.of(**asked(match="seconds", budget="20s", models=["thinker+policy"]))
    assert kinds == [True, False] * (budgets.UNTIMED + budgets.TIMED)
    (one,) = made.contenders
    rates = made.seconds_per_update[one.name], made.seconds_per_policy_update[one.name]
    counts = made.config(one, 0).update_counts(made.config(one, 0).training.num_updates)
    seconds = sum(n * rate for n, rate in zip(counts, rates, strict=True))
    assert seconds == pytest.approx(20, rel=0.02)
    assert made.minutes(one) == pytest.approx(seconds / 60)


def test_rates_are_kept_and_an_older_record_has_none_of_policies(tmp_path, monkeypatch, rates):
    made = Plan.of(**asked(budget="4 updates", models=["thinker+policy"]))
    made.write(tmp_path)
    assert Plan.read(tmp_path) == made and made.minutes(made.contenders[0]) == 0.5 / 60
    assert Plan.read(tmp_path).seconds_per_policy_update == {"thinker+policy": 0.2}
    old = replace(made, seconds_per_policy_update={})
    monkeypatch.setattr(plan, "RATES", ("seconds_per_update",))
    old.write(tmp_path)
    assert Plan.read(tmp_path) == old


def test_a_dry_run_prints_the_plan(tmp_path, monkeypatch, capsys, rates):
    monkeypatch.chdir(tmp_path)
    line = ["compare", "mixed", "--models", ",".join(NAMES), "--budget", "30 updates", *FLAGS]
    assert main([*line, "--dry_run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [x.split()[0] for x in out[1:3]] == NAMES and {x.split()[2] for x in out[1:3]} == {"30"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mixed --models decoder+policy", "decoder+policy, but decoder has no setting policy"),
        ("mixed --models looped+policy", "looped+policy, but looped has no setting policy"),
        ("mixed --models thinker+halt+policy", "unknown model 'thinker+halt'"),
        ("mixed --models thinker --reinforce.lr 1", "--reinforce.lr without a contender that has"),
        ("mixed --models thinker+policy --reinforce.rl 1", "--reinforce.rl"),
        ("mixed --models thinker+policy --reinforce.num_updates 9", "--reinforce.num_updates"),
        ("mixed --models thinker+policy --training.depth due", "--training.depth due with reinf"),
        ("mixed --models thinker+policy --training.compile true", "--training.compile True with"),
        ("mixed --models thinker+policy --model.policy false", "for thinker without a policy"),
        ("mixed --models thinker+policy --model.backprop_steps 2", "backprop_steps 2"),
        (
            "mixed --models thinker+policy --model.halting true --model.step_loss due",
            "--model.policy True",
        ),
        ("mixed --models thinker+policy", "200 updates for thinker+policy, none of which trains"),
        (
            "cups --models thinker+policy --task.targets every",
            "rows that are graded before their prompt ends",
        ),
        ("automaton --models thinker,thinker+policy", "rows that are graded before their prompt"),
    ],
)
def test_what_has_no_policy_or_no_questions_exits_2_with_three_lines(
    tmp_path, monkeypatch, capsys, rates, line, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *line.split(), "--budget", "200 updates", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert message in error and "expected" in error and len(error.strip().splitlines()) == 3, error
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_no_policy_is_named_by_its_setting():
    with pytest.raises(UsageError, match=r"leave \+policy out"):
        matching.contenders("mixed", ["looped+policy"], (), [])
