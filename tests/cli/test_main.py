"""The command line: output, exit codes and errors."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import thinkers
from thinkers.cli import commands, main

ADD = ["train", "add/looped"]
HUGE, NINES = "0x" + "f" * 6000, "9" * 5000
RANDOM = ["--training.depth=random"]
TINY = [
    "--model.dim=8",
    "--model.num_heads=2",
    "--training.num_updates=3",
    "--training.batch_size=5",
    "--training.evaluate_examples=7",
    "--training.device=cpu",
]

BAD_LINES = [
    # commands and names
    ([], "COMMAND"),
    (["trian"], "expected: train"),
    (["compete", "add"], "unknown command 'compete'"),
    (["--verison"], "--verison"),
    (["list", "modles"], "modles"),
    (["list", "--al"], "--al"),
    (["list", "--model.dim=3"], "takes no settings"),
    (["train"], "no recipe"),
    (["train", "add/thinkr"], "expected: add/thinker"),
    (["train", "thinker"], "unknown recipe"),
    ([*ADD, "sort/thinker"], "sort/thinker"),
    ([*ADD, "--ot=x"], "unknown --ot\nexpected: --out"),
    ([*ADD, "--dry-rum"], "--dry_rum"),
    ([*ADD, "--out"], "--out without a value"),
    ([*ADD, "--out", "--dry_run"], "--out without a value"),
    ([*ADD, "-x"], "-x"),
    ([*ADD, "--model.dim"], "--model.dim without a value"),
    # fields that do not exist
    ([*ADD, "--model.dmi=3"], "expected: --model.dim"),
    ([*ADD, "--model.num-layer", "3"], "expected: --model.num_layers"),
    ([*ADD, "--modle.dim=3"], "expected: --model.dim"),
    ([*ADD, "--lr=3"], "expected: --training.lr"),
    ([*ADD, "--batch-size=3"], "expected: --training.batch_size"),
    ([*ADD, "--max_digits=3"], "expected: --task.max_digits"),
    ([*ADD, "--training.learning_rate=3"], "--training.learning_rate"),
    ([*ADD, "--training.lr.x=3"], "expected: --training.lr"),
    ([*ADD, "--model.name=decoder"], "--model.name"),
    ([*ADD, "--model.=3"], "--model."),
    ([*ADD, "--.=3"], "--."),
    # wrong types
    ([*ADD, "--model.dim=abc"], "an integer"),
    ([*ADD, "--model.dim=2.5"], "an integer"),
    ([*ADD, "--model.dim=1e2"], "an integer"),
    ([*ADD, "--model.dim=true"], "an integer"),
    ([*ADD, "--model.dim="], "an integer"),
    ([*ADD, "--model.dim=[8]"], "an integer"),
    ([*ADD, "--model.dim=null"], "an integer"),
    ([*ADD, "--model.max_length=long"], "--model.max_length 'long'"),
    ([*ADD, "--model.time_code=maybe"], "true or false"),
    ([*ADD, "--model.injection=concta"], "concat"),
    ([*ADD, "--model.backprop_steps=few"], "null"),
    ([*ADD, "--training.lr=fast"], "a number"),
    ([*ADD, "--training.lr=1e-"], "a number"),
    ([*ADD, "--training.lr=true"], "a number"),
    ([*ADD, "--training.betas=0.9"], "tuple"),
    ([*ADD, "--training.betas=[0.9]"], "tuple"),
    ([*ADD, "--training.betas=[0.9,0.9,0.9]"], "tuple"),
    ([*ADD, "--training.random_steps=[1,x]"], "tuple"),
    ([*ADD, "--training.schedule=cosin"], "cosine"),
    ([*ADD, "--training.optimizer=sgd"], "adamw"),
    ([*ADD, "--training.precision=fp16"], "bf16"),
    ([*ADD, "--task.curriculum=2"], "true or false"),
    ([*ADD, "--task.max_digits=three"], "an integer"),
    # invalid values
    ([*ADD, "--model.dim=0"], "dim must be"),
    ([*ADD, "--model.dim=-64"], "dim must be"),
    ([*ADD, "--model.dim=65"], "multiple of num_heads"),
    ([*ADD, "--model.num_heads=0"], "num_heads must be"),
    ([*ADD, "--model.num_steps=0"], "num_steps must be"),
    ([*ADD, "--model.num_steps=9", "--model.max_steps=8"], "max_steps must be"),
    ([*ADD, "--model.num_prelude_layers=-1"], "num_prelude_layers must be"),
    ([*ADD, "--model.max_length=4"], "set --model.max_length"),
    ([*ADD, "--model.vocab_size=4"], "set --model.vocab_size"),
    ([*ADD, "--task.max_digits=0"], "max_digits must be"),
    ([*ADD, "--task.min_digits=5", "--task.max_digits=4"], "digits must be"),
    ([*ADD, "--task.max_in_base=17"], "max_in_base must be"),
    ([*ADD, "--task.min_in_base=1"], "min_in_base must be"),
    ([*ADD, "--task.threshold=0"], "threshold must be"),
    ([*ADD, "--training.lr=0"], "lr must be above 0"),
    ([*ADD, "--training.lr=-1e-3"], "lr must be above 0"),
    ([*ADD, "--training.lr=nan"], "a number"),
    ([*ADD, "--training.lr=.nan"], "a finite number"),
    ([*ADD, "--training.lr=.inf"], "a finite number"),
    ([*ADD, "--training.clip=.inf"], "a finite number"),
    ([*ADD, "--training.batch_size=0"], "batch_size must be"),
    ([*ADD, "--training.batch_size=7", "--training.accumulation=2"], "multiple of accumulation"),
    ([*ADD, "--training.num_updates=0"], "num_updates must be"),
    ([*ADD, "--training.seed=-1"], "seed must be"),
    ([*ADD, f"--training.seed={2**63}"], "--training.seed 9223372036854775808"),
    ([*ADD, f"--model.dim={10**30}"], "64 bits"),
    ([*ADD, f"--training.batch_size={10**30}"], "64 bits"),
    ([*ADD, f"--model.dim={HUGE}"], "--model.dim of 24000 bits"),
    ([*ADD, f"--training.lr={HUGE}"], "--training.lr"),
    (["train", "--resume", ".", f"--training.num_updates={NINES}"], "at most 18 digits"),
    (["evaluate", ".", f"--num_steps={NINES}"], "numbers of steps"),
    (["evaluate", ".", "--harness=a", f"--num_steps={NINES}"], "numbers of steps"),
    (["research", "add/looped", "--minutes=1", "--out=r", f"--seed={NINES}"], "at most 18 digits"),
    ([*ADD, "--training.betas=[0.9,1.5]"], "betas must be"),
    ([*ADD, "--training.ema=2"], "ema must be"),
    ([*ADD, "--training.weight_decay=-1"], "weight_decay must be"),
    ([*ADD, "--training.max_minutes=0"], "max_minutes must be"),
    ([*ADD, *RANDOM, "--training.random_steps=[3,2]"], "random_steps must be"),
    (
        [*ADD, *RANDOM, "--training.random_steps=[1,99]"],
        "--training.random_steps",
    ),
    (
        ["train", "add/decoder", *RANDOM, "--training.random_steps=[1,2]"],
        "--training.random_steps",
    ),
    ([*ADD, "--training.device=gpu9"], "device must be"),
    ([*ADD, "--training.device=meta"], "device must be auto, cpu, cuda, cuda:N or mps"),
    ([*ADD, "--training.device=cuda:99"], "'cuda:99' must exist"),
    ([*ADD, "--training.device=cpu:1"], "'cpu:1' must exist"),
    ([*ADD, "--out="], "--out without a value"),
    ([*ADD, "--out=latin.yaml"], "but is a file"),
    ([*ADD, "--out=latin.yaml/x"], "found: latin.yaml/x: Not a directory\nfix"),
    ([*ADD, *TINY, "--out=.", "--training.lr=1"], "but exists"),
    ([*ADD, "--training.init_from=nowhere"], "--training.init_from /.*/nowhere"),
    # files
    ([*ADD, "--config=nowhere.yaml"], "nowhere.yaml: No such file"),
    ([*ADD, "--config=."], "is a folder"),
    ([*ADD, "--config=latin.yaml"], "not UTF-8"),
    ([*ADD, "--config=torn.yaml"], "torn.yaml"),
    ([*ADD, "--config=list.yaml"], "list.yaml"),
    ([*ADD, "--config=typo.yaml"], "model.dmi in typo.yaml.*\nexpected: --model.dim"),
    ([*ADD, "--config=part.yaml"], "'optimizer' in part.yaml"),
    ([*ADD, "--config=flat.yaml"], "the settings of model"),
    ([*ADD, "--config=twice.yaml"], "dim twice"),
    ([*ADD, "--config=alias.yaml"], "alias"),
    ([*ADD, "--config=many.yaml"], "2001 settings"),
    ([*ADD, "--config=digits.yaml"], "model.dim of a file"),
    ([*ADD, "--config=dates.yaml"], "model.dim of a file"),
    ([*ADD, "--config=deep.yaml"], "deep.yaml"),
    ([*ADD, "--config=type.yaml"], "a number"),
    ([*ADD, "--config=infinite.yaml"], "number"),
    ([*ADD, "--import_module=nowhere.py"], "nowhere.py"),
    ([*ADD, "--import_module=broken.py"], "ZeroDivisionError"),
    # runs
    (["train", "--resume=nowhere"], "nowhere"),
    (["train", "--resume=."], "holds no config.json"),
    (["train", "--resume="], "--resume without a value"),
    (["train", "--resume=nowhere", "--model.dim=8"], "--model.dim=8 with --resume"),
    (["train", "--resume=nowhere", "--training.num_updates=x"], "an integer"),
    (["train", "add/looped", "--resume=nowhere"], "--recipe with --resume"),
    (["train", "--resume=nowhere", "--dry_run"], "--resume"),
    (["evaluate"], "RUN"),
    (["evaluate", "nowhere"], "nowhere"),
    (
        ["evaluate", "nowhere", "--num_steps=two"],
        "found: --num_steps two\nexpected: numbers of steps, or due",
    ),
    (["evaluate", "nowhere", "--num_step=2"], "expected: --num_steps"),
    (["evaluate", "nowhere", "--num_examples=0"], "--num_examples 0"),
    (["generate", "nowhere"], "--prompt"),
    (["generate", "nowhere", "--prompt=1+2="], "nowhere"),
    (["generate", "nowhere", "--prompt=1+2=", "--num_steps=-1"], "--num_steps -1"),
    (["generate", "nowhere", "--prompt=1+2=", "--num_steps=2.5"], "--num_steps 2.5"),
    (["generate", "nowhere", "--prompt=1+2=", "--num_steps=None"], "--num_steps None"),
    (["generate", "nowhere", "--prompt=1+2=", "--num_steps=true"], "--num_steps true"),
    (["generate", "nowhere", "--prompt=1+2=", "--top_k=0"], "--top_k 0"),
    (["evaluate", "nowhere", "--num_steps=2.5"], "--num_steps 2.5"),
    (["evaluate", "nowhere", "--num_steps=-1"], "--num_steps -1"),
]
FILES = {
    "latin.yaml": b"model: {dim: 8} # \xe9\n",
    "torn.yaml": b"model: {dim: [8\n",
    "list.yaml": b"- 8\n",
    "typo.yaml": b"model: {dmi: 8}\n",
    "part.yaml": b"optimizer: {lr: 1}\n",
    "flat.yaml": b"model: 8\n",
    "twice.yaml": b"model: {dim: 8, dim: 16}\n",
    "many.yaml": b"model: {%s}\n" % b", ".join(b"k%d: 1" % i for i in range(2000)),
    "digits.yaml": b"model: {dim: 0x%s}\n" % (b"f" * 5000),
    "dates.yaml": b"model: {dim: {2020-01-01: 1}}\n",
    "alias.yaml": b"model: &m {dim: 8}\ntask: *m\n",
    "deep.yaml": b"model: " + b"[" * 5000,
    "type.yaml": b"training: {lr: fast}\n",
    "infinite.yaml": b"training: {lr: .inf}\n",
    "broken.py": b"1 / 0\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder that holds only the files that BAD_LINES name."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of modules that a line imports
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"), BAD_LINES, ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else ""
)
def test_a_bad_line_ends_with_2_in_three_lines_and_leaves_nothing(line, message, here, capsys):
    assert main.main(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 3, err
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert sorted(path.name for path in here.iterdir()) == sorted(FILES)


@pytest.mark.alone
@pytest.mark.parametrize(
    "line",
    [
        ["trian"],
        ["train", "multiply/thinker", *RANDOM, "--training.random_steps=[1,99]"],  # found last
    ],
)
def test_a_mistake_is_reported_within_3_seconds_of_process_time(line, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(thinkers.__file__).parents[1])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users keep what Python has compiled
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        [sys.executable, "-m", "thinkers", *line],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 3
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_names_are_checked_without_importing_torch(tmp_path):
    code = "import sys, thinkers.cli.main as c; c.main(['trian']); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(thinkers.__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found.stdout == "False\n", found.stderr


def test_windows_is_refused_in_one_line():
    code = "import sys; sys.platform = 'win32'; import thinkers.cli.main"
    environment = os.environ | {"PYTHONPATH": str(Path(thinkers.__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["models", "tasks", "recipes"])
def test_list_shows_every_name_and_its_summary(kind, capsys):
    assert main.main(["list", kind]) == 0
    out = capsys.readouterr().out
    for name, thing in getattr(thinkers, kind.upper()).items():
        assert f"  {name} " in out and commands.summary(thing) in out
        assert commands.summary(thing), f"{name} has no docstring"


def test_print_config_prints_a_file_that_config_reads(here, capsys):
    assert main.main([*ADD, "--model.dim=32", "--print-config"]) == 0
    written = capsys.readouterr().out
    assert "dim: 32" in written
    (here / "mine.yaml").write_text(written)
    assert main.main([*ADD, "--config", "mine.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == written


def test_help_of_a_recipe_lists_its_settings(capsys):
    assert main.main([*ADD, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--out" in out and "--model.num_steps" in out and "--training.lr" in out


def test_dry_run_prints_an_estimate_and_writes_nothing(here, capsys):
    assert main.main([*ADD, *TINY, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "parameters",
        "FLOPs per update",
        "memory",
        "minutes",
    ]
    assert sorted(path.name for path in here.iterdir()) == sorted(FILES)


def test_train_evaluate_generate_and_extend(here, capsys):
    assert main.main([*ADD, *TINY, "--out=a"]) == 0
    assert "run a" in capsys.readouterr().out.splitlines()[-1]
    assert main.main(["evaluate", "a", "--num_steps=1,3", "--num-examples", "11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["steps", "1", "3"]
    assert main.main(["evaluate", "a", "--num_steps=3", "--num_examples=11", "--out=s.json"]) == 0
    (scores,) = json.loads((here / "s.json").read_text())["scores"].items()
    assert scores == ("3", thinkers.evaluate("a", num_steps=3, num_examples=11)[0])
    capsys.readouterr()
    assert main.main(["generate", "a", "--prompt", "12+34=", "--num_steps", "2"]) == 0
    assert capsys.readouterr().out.startswith("12+34=")
    for prompt in ("", "12+x=", "1" * 50, "12+"):
        assert main.main(["generate", "a", f"--prompt={prompt}"]) == 2
    assert main.main(["generate", "a", "--prompt=1+2=", "--num_steps=99"]) == 2
    capsys.readouterr()
    assert main.main(["generate", "a", "--prompt=12-34"]) == 2
    assert "character 2 of '12-34' must be one of 0 1" in capsys.readouterr().err
    assert main.main(["generate", "a", "--prompt=12+34"]) == 0  # the `=` need not be typed
    assert capsys.readouterr().out.startswith("12+34=")
    assert main.main(["generate", "a", "--prompt=12+34=4"]) == 0  # a prompt that begins the answer
    assert main.main([*ADD, *TINY, "--out=a"]) == 2
    assert "--resume a" in capsys.readouterr().err
    assert main.main(["train", "--resume", "a", "--training.num-updates", "5"]) == 0
    record = (here / "a" / "config.json").read_text()
    assert '"num_updates": 5' in record and "model.dim=8" in record


def test_the_default_run_folder_is_named_by_recipe_and_seed(here):
    assert main.main([*ADD, *TINY, "--training.seed=3"]) == 0
    assert (here / "runs" / "add-looped-3" / "config.json").exists()


def test_a_pair_of_task_and_model_is_trained_by_name(here, capsys):
    (here / "pausing.py").write_text(
        "import thinkers\n"
        "from thinkers.models.pause import Pause\n\n"
        "class Pausing(Pause):\n    pass\n\n"
        "thinkers.MODELS['pausing'] = Pausing\n"
    )
    names = ["--import_module", "pausing.py"]
    try:
        assert main.main(["train", "add/pausing", *names, *TINY, "--out=a"]) == 0
        record = json.loads((here / "a" / "config.json").read_bytes())
        assert record["config"]["model"]["name"] == "pausing" and record["recipe"] == "add/pausing"
        assert main.main(["train", "--resume", "a", "--training.num_updates=4"]) == 0
        assert main.main(["evaluate", "a", "--num_examples=5", "--num_steps=1"]) == 0
        assert main.main(["train", "sort/pausing", *names, *TINY]) == 0
        assert (here / "runs" / "sort-pausing-0").is_dir()
    finally:
        thinkers.MODELS.pop("pausing", None)
        sys.modules.pop("pausing", None)
    capsys.readouterr()
    assert main.main(["train", "add/pausing"]) == 2
    assert "TASK/MODEL" in capsys.readouterr().err


def test_a_pair_that_cannot_be_trained_is_refused_with_the_reason(here, capsys):
    Path("input.txt").write_text("some words\n" * 99)
    line = ["train", "text/thoughtsformer", "--task.path=input.txt", "--model.causal=false"]
    assert main.main([*line, "--out=a"]) == 2
    assert "predicting a text needs a causal model" in capsys.readouterr().err
    assert main.main([*line, "--dry_run"]) == 2
    assert not Path("a").exists()


def test_an_imported_module_adds_a_recipe(here, capsys):
    (here / "mine.py").write_text(
        "import thinkers\n"
        "thinkers.RECIPES['mine/looped'] = lambda: thinkers.RECIPES['add/looped']()\n"
    )
    line = ["train", "mine/looped", "--import-module", "mine.py", "--dry_run", *TINY]
    try:
        assert main.main(line) == 0
    finally:
        thinkers.RECIPES.pop("mine/looped", None)
    assert main.main(["train", "mine/looped"]) == 2


def test_debug_shows_the_traceback(capsys):
    assert main.main([*ADD, "--model.dim=0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
