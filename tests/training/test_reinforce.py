"""`reinforce`: phases, resumes, records and refusals."""

import json
import shutil

import pytest
import torch
from training_cases import lines, make

import thinkers
from thinkers.cli.main import main
from thinkers.errors import DataError, UsageError
from thinkers.inspection.page import facts
from thinkers.models.thinker_policy import RECALL
from thinkers.runs import folder
from thinkers.tasks import TASKS
from thinkers.training.reinforce import configuration

OWN = dict(num_updates=7, supervised_updates=2, policy_updates=1, group_size=2)
SIZES = dict(num_latents=2, num_steps=3, max_steps=5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    task = TASKS["mixed"].Config(max_swaps=3, curriculum=True)
    config = make("thinker", task, {"num_updates": 2, "depth": "due"}, policy=True, **SIZES)
    return thinkers.train(config, tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return thinkers.reinforce(base, out=tmp_path_factory.mktemp("policy") / "run", **OWN)


def weights(run):
    return run.model.state_dict()


def test_phases_alternate_and_the_record_has_their_settings(base, run):
    kinds = ["policy" if "policy" in line else "model" for line in lines(run.folder)]
    assert kinds == ["model", "model", "policy"] * 2 + ["model"]
    record = json.loads((run.folder / "config.json").read_text())["config"]
    assert record["reinforce"] | OWN == record["reinforce"]
    assert record["training"]["num_updates"] == 7 and record["training"]["depth"] == "fixed"
    assert record["training"]["init_from"] == str(base.folder)
    assert record["task"]["curriculum"] is False
    flops = [line["flops"] for line in lines(run.folder)]
    assert flops == sorted(flops) and flops[0] > 0


@pytest.mark.parametrize("until", [1, 2, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(base, run, tmp_path, until):
    config = configuration(base, (), OWN)
    thinkers.train(config, tmp_path / "run", until=until)
    again = thinkers.resume(tmp_path / "run", init_from=str(base.folder))
    assert all(torch.equal(x, weights(again)[name]) for name, x in weights(run).items())
    drop = {"minutes"}
    clean = [
        [{k: v for k, v in x.items() if k not in drop} for x in lines(r)]
        for r in (run.folder, again.folder)
    ]
    assert clean[0] == clean[1]


def test_flags_and_settings_are_taken_by_function_and_command_line(base, tmp_path, capsys):
    flags = ["--reinforce.num_updates=3", "--reinforce.supervised_updates=2"]
    flags += ["--training.lr=0.0005", "--reinforce.cost_weight=0.2"]
    line = ["reinforce", str(base.folder), "--out", str(tmp_path / "a"), *flags]
    assert main(line) == 0
    assert "on held-out examples" in capsys.readouterr().out
    config = configuration(base, flags, {})
    assert config.reinforce.num_updates == config.training.num_updates == 3
    assert config.reinforce.cost_weight == 0.2 and config.training.lr == 0.0005
    record = json.loads((tmp_path / "a" / "config.json").read_text())["config"]
    assert record["reinforce"]["cost_weight"] == 0.2


def test_all_commands_let_the_policy_choose(run, tmp_path, capsys):
    rows = thinkers.evaluate(run, num_steps=[2, 5], num_examples=20, policy=True)
    assert [row["policy"] for row in rows] == [True, True]
    assert all(1 <= row["mean_steps"] <= row["num_steps"] for row in rows)
    assert all(0 < row["flops_share"] <= 1 for row in rows)
    out = tmp_path / "scores.json"
    assert main(["evaluate", str(run.folder), "--policy", "--num_examples=9", f"--out={out}"]) == 0
    assert len(json.loads(out.read_text())["scores"]["3"]["examples"]) == 9
    assert main(["generate", str(run.folder), "--policy", "--prompt=2 12 13"]) == 0
    assert "2 12 13 -> " in capsys.readouterr().out
    seen = thinkers.inspect(run, "2 12 13", policy=True, out=tmp_path / "page.html")
    assert seen.blocks[0][0] == "process" and len(seen.blocks) == 1
    assert "--policy" in (tmp_path / "page.html").read_text()
    assert main(["inspect", str(run.folder), "--policy", "--prompt=2 12 13"]) == 0
    assert f"blocks  {' '.join(seen.blocks[0])}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, message",
    [
        ("evaluate RUN --policy --halt 0.5", "halt 0.5 with policy"),
        ("evaluate RUN --policy --num_steps due", 'num_steps "due" with policy'),
        ("generate RUN --policy --halt 0.5 --prompt 1", "halt 0.5 with policy"),
        ("inspect RUN --policy --ablate", "--policy without a prompt"),
        ("reinforce RUN --out OUT --reinforce.groups 3", "--reinforce.group_size"),
        ("reinforce RUN --out OUT --reinforce.group_size 1", "--reinforce.group_size 1"),
        ("reinforce RUN --out OUT --training.depth due", "--training.depth due with reinforce"),
        ("reinforce RUN --out OUT --training.compile true", "--training.compile True"),
        ("reinforce OUT --out OUT", "which is no run"),
    ],
)
def test_what_does_not_fit_exits_2_with_three_lines(base, tmp_path, capsys, line, message):
    words = line.replace("RUN", str(base.folder)).replace("OUT", str(tmp_path / "x")).split()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "expected" in error, error


def test_models_without_a_policy_and_tasks_without_questions_are_refused(tmp_path):
    task = TASKS["cups"].Config(max_length=4)
    settings = {"num_updates": 1}
    plain = thinkers.train(
        make("thinker", TASKS["mixed"].Config(max_swaps=3), settings, **SIZES), tmp_path / "plain"
    )
    with pytest.raises(UsageError, match="without a policy"):
        thinkers.reinforce(plain, out=tmp_path / "x", **OWN)
    graded = thinkers.train(
        make("thinker", task, settings, policy=True, **SIZES), tmp_path / "cups"
    )
    with pytest.raises(UsageError, match="questions with answers"):
        thinkers.reinforce(graded, out=tmp_path / "y", **OWN)
    with pytest.raises(UsageError, match="policy for Cups\nexpected: a task of questions"):
        thinkers.evaluate(graded, 2, 9, policy=True)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_without_out_the_new_run_is_beside_the_old_one_and_must_be_new(base, tmp_path, capsys):
    shutil.copytree(base.folder, tmp_path / "a")
    assert thinkers.reinforce(tmp_path / "a", **OWN).folder == tmp_path / "a-policy"
    with pytest.raises(UsageError, match="a-policy must be a new folder, but holds a run"):
        thinkers.reinforce(tmp_path / "a", **OWN)
    assert main(["reinforce", str(tmp_path / "a")]) == 2
    assert "a-policy must be a new folder" in capsys.readouterr().err


@pytest.mark.misuse
@pytest.mark.parametrize("kind", ["Thinker", "tuple", "NoneType"])
def test_what_is_no_run_is_refused_by_its_kind(base, tmp_path, kind):
    given = {"Thinker": base.model, "tuple": (base.model, 1), "NoneType": None}[kind]
    with pytest.raises(UsageError, match=f"found: a {kind} instead of a run\nexpected: a Run"):
        thinkers.reinforce(given, out=tmp_path / "x", **OWN)


def test_limits_and_depth_of_the_run_before_are_not_those_of_the_new_one(tmp_path):
    limits = {"max_minutes": 9.0, "max_flops": 1e9, "compile": True, "depth": "due"}
    limits |= {"optimizer": "muon", "lr": 1e-2, "muon_lr": 0.5}
    before = make("thinker", TASKS["mixed"].Config(), {"num_updates": 2} | limits, policy=True)
    folder.write_record(tmp_path, folder.new_record(before))
    training = configuration(tmp_path, [], OWN).training
    assert (training.max_minutes, training.max_flops) == (None, None)
    assert (training.compile, training.depth) == (False, "fixed")
    assert (training.lr, training.muon_lr) == (pytest.approx(1e-3), pytest.approx(0.05))
    asked = configuration(tmp_path, ["--training.max_minutes=2"], OWN)
    assert asked.training.max_minutes == 2


def test_a_model_of_one_step_has_nothing_to_choose(tmp_path):
    sizes = SIZES | {"num_steps": 1}
    config = make("thinker", TASKS["mixed"].Config(max_swaps=2), policy=True, **sizes)
    run = thinkers.train(config.with_updates(1), tmp_path / "a")
    with pytest.raises(UsageError, match="found: --model.num_steps 1 with reinforce"):
        thinkers.reinforce(run, **OWN)


def test_the_page_names_the_most_blocks_and_repeats_tools(run, tmp_path):
    seen = thinkers.inspect(run, "2 12 13", 2, policy=True)
    steps = dict(facts(seen, tmp_path))["thinking steps"]
    assert steps == f"{' '.join(seen.blocks[0])}; at most 2 (configured: 3)"
    task = thinkers.build_task("lookup", num_keys=3)
    lookup = make("thinker", TASKS["lookup"].Config(num_keys=3), {"num_updates": 1}, policy=True)
    folder_of = thinkers.train(lookup, tmp_path / "lookup").folder
    for tools, named in (([], False), (["store"], True)):
        seen = thinkers.inspect(folder_of, "a1", tools=tools)
        assert ("--tools=store" in dict(facts(seen, tmp_path))["command to repeat it"]) == named
    own = thinkers.inspect(folder_of, "a1", tools=[task.store(dict.fromkeys("abc", "a"))])
    assert "command to repeat it" not in dict(facts(own, tmp_path))


STORY = "1 Mary moved to the {}.\n2 John went to the hallway.\n3 Where is Mary?\t{}\t1\n"


def test_a_run_goes_on_with_the_files_that_it_was_trained_on(tmp_path):
    def write(name, *places):
        (tmp_path / name).write_text("".join(STORY.format(x, x) for x in places * 30))
        return tmp_path / name

    file = write("qa1_train.txt", "bathroom", "garden")
    task = TASKS["babi"].Config(path=str(file))
    run = thinkers.train(
        make("thinker", task, {"num_updates": 1}, policy=True, **SIZES), tmp_path / "run"
    )
    thinkers.reinforce(run, out=tmp_path / "a", **OWN)
    # As many words, in another order.
    write("qa1_train.txt", "attic", "garden")
    with pytest.raises(DataError, match="has changed since the run began"):
        thinkers.reinforce(run, out=tmp_path / "b", **OWN)
    with pytest.raises(UsageError, match="tokens mean something else than in training"):
        thinkers.reinforce(run, out=tmp_path / "b", flags=[f"--task.path={file}"], **OWN)
    more = write("qa1_more.txt", "garden", "bathroom")
    found = thinkers.reinforce(run, out=tmp_path / "c", flags=[f"--task.path={more}"], **OWN)
    assert found.scores and not (tmp_path / "b").exists()


def test_questions_about_documents_are_reinforced_and_scored(tmp_path):
    task = TASKS["facts"].Config(num_sections=3, questions=2, curriculum=True)
    memory = dict(memory="blocks", memory_section=8, memory_top=2, mixing=2)
    config = make("thinker", task, {"num_updates": 2}, policy=True, **SIZES, **memory)
    base = thinkers.train(config, tmp_path / "base")
    run = thinkers.reinforce(base, **OWN | {"num_updates": 3})
    assert ["index" in line for line in lines(run.folder)] == [True, True, False]
    with torch.no_grad():
        run.model.policy.blocks.linear.bias[RECALL] = 9
    (row,) = thinkers.evaluate(run, num_steps=3, num_examples=20, policy=True)
    assert row["mean_steps"] == 3 and 0 < row["flops_share"] < 1
