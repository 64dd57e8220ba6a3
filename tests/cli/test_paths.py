"""Every command and option that takes a path takes each form of one, and refuses what is none.

~, relative, with . and .., with a slash at the end, and beginning with - are paths; NUL and names
that are not UTF-8 are refused with code 2 before anything is done.
"""

import os

import pytest
from training_cases import make

import thinkers
from thinkers.cli import main
from thinkers.training.loop import train

TINY = ["--training.num_updates=1", "--training.batch_size=2", "--training.evaluate_examples=2"]
TINY += ["--training.device=cpu", "--model.dim=8", "--model.num_heads=2", "--model.num_layers=1"]
TEXT = ["train", "text/decoder", "--dry_run", "--task.context=8", *TINY]
# {name: (the line, with {} for the path; what the path names)}
COMMANDS = {
    "train --out": (["train", "copy/decoder", "--task.max_length=3", *TINY, "--out={}"], "new"),
    "train --config": (["train", "copy/decoder", "--dry_run", "--config={}"], "a.yaml"),
    "train --import_module": (
        ["train", "copy/decoder", "--print_config", "--import_module={}"],
        "own_file.py",
    ),
    "train --resume": (["train", "--resume={}"], "run"),
    "train --task.path": ([*TEXT, "--task.path={}"], "text.txt"),
    "train --task.valid_path": (
        [*TEXT, "--task.path=text.txt", "--task.valid_path={}"],
        "text.txt",
    ),
    "train --training.init_from": (
        ["train", "copy/decoder", "--task.max_length=3", *TINY, "--training.init_from={}"]
        + ["--training.lr=1e-9", "--out=begun"],
        "run",
    ),
    "evaluate": (["evaluate", "--num_examples=2", "--", "{}"], "run"),
    "evaluate --out": (["evaluate", "run", "--num_examples=2", "--out={}"], "new"),
    "generate": (["generate", "--prompt=1=", "--", "{}"], "run"),
    "inspect": (["inspect", "--prompt=1=", "--", "{}"], "run"),
    "inspect --out": (["inspect", "run", "--prompt=1=", "--out={}"], "new"),
    "reproduce": (["reproduce", "--out=again", "--", "{}"], "run"),
    "reproduce --out": (["reproduce", "run", "--out={}"], "new"),
    "import": (["import", "thinker", "--settings=s.json", "--out=m", "--", "{}"], "missing"),
    "compare --out": (["compare", "--resume", "--out={}"], "missing"),
}
FOLDERS = ("run", "new")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a run, a text, settings and a module, each also by a name that begins with -."""
    home = tmp_path_factory.mktemp("home")
    settings = dict(num_updates=1, warmup_updates=0)
    model = dict(dim=8, num_heads=2, num_layers=1, tie_head=False)  # as the recipe has it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        train(make("decoder", settings=settings, **model), home / "run")
    (home / "text.txt").write_text("some words on a line\n" * 40)
    (home / "a.yaml").write_text("training:\n  lr: 0.001\n")
    (home / "own_file.py").write_text("value = 3\n")
    (home / "sub").mkdir()
    for name in ("run", "text.txt", "a.yaml", "own_file.py"):
        (home / f"-{name}").symlink_to(home / name)
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("THINKERS_CACHE", str(home / "cache"))
    monkeypatch.setattr("os.fsync", lambda _: None)


def forms(name, is_folder):
    yield from (f"~/{name}", name, f"./sub/../{name}", f"-{name}")
    if is_folder:
        yield f"{name}/"


def run(line, path):
    return main.main([word.replace("{}", path) for word in line])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["a\0b", "\udcff", "~nobody_of_this_name/x"], ids=ascii)
def test_what_is_no_path_is_refused_in_three_lines(command, path, home, capsys):
    before = {x.name for x in home.iterdir()}
    assert run(COMMANDS[command][0], path) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 3 and "Traceback" not in err and "\0" not in err
    # Matplotlib makes folders of its own in a home.
    assert {x.name for x in home.iterdir()} - {".config", ".cache"} == before - {
        ".config",
        ".cache",
    }


@pytest.mark.parametrize("command", [x for x in COMMANDS if COMMANDS[x][1] != "missing"])
def test_every_form_of_a_path_names_the_same(command, home, capsys):
    line, name = COMMANDS[command]
    is_file = command in ("evaluate --out", "inspect --out")
    for path in forms(name, name in FOLDERS and not is_file):
        code = run(line, path)
        assert code == 0, (path, capsys.readouterr().err)
        for made in ("new", "-new", "begun", "again"):
            if os.path.lexists(home / made):
                assert command.endswith("--out") == (made.endswith("new"))
                os.rename(home / made, home / f"{made}-{len(os.listdir(home))}")
    assert not (home / "~").exists()


@pytest.mark.parametrize("path", [".", "..", "./", "../."])
def test_commands_work_from_inside_a_run(path, home, monkeypatch, capsys):
    monkeypatch.chdir(home / "run" / "model" if ".." in path else home / "run")
    for line in (["evaluate", path, "--num_examples=2"], ["generate", path, "--prompt=1="]):
        assert main.main(line) == 0, capsys.readouterr().err
    assert main.main(["train", "--resume", path]) == 0
    again = thinkers.reproduce(path)
    assert again.equal and again.folder.parent.resolve() == home
    os.rename(again.folder, home / f"again-{len(os.listdir(home))}")
