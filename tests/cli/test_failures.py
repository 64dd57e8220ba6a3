"""Failures of commands: exit codes, messages in three lines, and names of others in them."""

import os
import re
import sys
import zlib

import pytest
from safetensors import SafetensorError

import thinkers
from thinkers.cli import commands, main
from thinkers.errors import DamagedError, Interrupted, LockedError, NonFiniteError, ResourceError

ADD = ["train", "add/looped"]
TINY = [
    "--model.dim=8",
    "--model.num_heads=2",
    "--training.num_updates=3",
    "--training.batch_size=5",
    "--training.evaluate_examples=7",
    "--training.device=cpu",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder that is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# {error that reaches the command line: its exit code}. It is the same wherever it is raised.
ERRORS = [
    (DamagedError("a"), 4),
    (NonFiniteError("a"), 5),
    (ResourceError("a"), 6),
    (LockedError("a"), 7),
    (KeyboardInterrupt(), 130),
    (Interrupted("a", 15), 143),
    (MemoryError(), 6),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 6),
    (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), 6),
    (RuntimeError("CUDA out of memory. Tried to allocate 9 GiB."), 6),
    *((OSError(number, os.strerror(number), "/x"), 2) for number in (2, 17, 20, 21, 36, 40)),
    *((OSError(number, os.strerror(number), "/x"), 6) for number in (1, 5, 12, 13, 23, 24, 27)),
    *((OSError(number, os.strerror(number)), 6) for number in (28, 30, 122)),
    (OSError("no number"), 1),
    (OSError(9, "Bad file descriptor"), 1),
    (RuntimeError("a"), 1),
    (KeyError("a"), 1),
    (IndexError("a"), 1),
    (AttributeError("a"), 1),
    (ValueError("a"), 1),
    (TypeError("a"), 1),
    (AssertionError(), 1),
    (RecursionError("maximum recursion depth exceeded"), 1),
    (UnicodeEncodeError("ascii", "\xb1", 0, 1, "ordinal not in range(128)"), 1),
    (SafetensorError("invalid header"), 1),
    (zlib.error("invalid block type"), 1),
    (EOFError(), 1),
    (NotImplementedError(), 1),
]


@pytest.mark.parametrize(
    ("error", "code"), ERRORS, ids=[f"{type(error).__name__}-{code}" for error, code in ERRORS]
)
def test_each_error_has_the_code_of_its_class_and_no_traceback(error, code, monkeypatch, capsys):
    def fail(options, flags):
        raise error

    monkeypatch.setattr(commands, "list_names", fail)
    assert main.main(["list"]) == code
    err = capsys.readouterr().err
    assert 1 <= len(err.splitlines()) <= 3 and "Traceback" not in err
    assert ("--debug" in err) == (code == 1)


@pytest.mark.parametrize("code", [0, 1, None, "done"])
def test_code_that_ends_the_process_does_not_pass_for_work_that_is_done(
    code, here, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "list_names", lambda options, flags: sys.exit(code))
    assert main.main(["list"]) == 2
    assert "sys.exit" in capsys.readouterr().err
    (here / "leaves.py").write_text(f"import sys\nsys.exit({code!r})\n")
    assert main.main([*ADD, *TINY, "--import_module=leaves.py"]) == 2
    assert "SystemExit" in capsys.readouterr().err
    assert not (here / "runs").exists() and "leaves" not in sys.modules


def test_a_bug_in_a_file_of_the_user_is_said_to_be_there(here, capsys):
    (here / "theirs.py").write_text(
        "import thinkers\n\n"
        "def recipe():\n"
        "    return {}['missing']\n\n"
        "thinkers.RECIPES['theirs/looped'] = recipe\n"
    )
    try:
        assert main.main(["train", "theirs/looped", "--import_module=theirs.py"]) == 1
    finally:
        thinkers.RECIPES.pop("theirs/looped", None)
        sys.modules.pop("theirs", None)
    assert "a bug in theirs.py, line 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["random", "torch", "antigravity"])
def test_an_imported_file_does_not_take_the_place_of_another_module(name, here, capsys):
    (here / f"{name}.py").write_text("1 / 0\n")
    before = sys.modules.get(name)
    assert main.main([*ADD, f"--import_module={name}.py", "--dry_run"]) == 2
    assert "rename the file" in capsys.readouterr().err
    assert sys.modules.get(name) is before


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate "
                     "memory: you tried to allocate 400 bytes. Error code 12"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 9\nframe 0"),
        RuntimeError("Weights only load failed. In PyTorch 2.6, we changed the default of the "
                     "`weights_only` argument. Re-running with `weights_only` set to `False` ..."),
        RuntimeError("(1) Re-running `torch.load` with `weights_only` set to `False` will succeed"),
    ],
    ids=["memory", "file", "weights", "advice"],
)  # fmt: skip
def test_nothing_of_the_inside_of_torch_is_printed(error, monkeypatch, capsys):
    def fail(options, flags):
        raise error

    monkeypatch.setattr(commands, "list_names", fail)
    assert main.main(["list"]) in (1, 6)
    err = capsys.readouterr().err
    assert not re.search(r"enforce fail|\.cpp|\.cc|weights_only|Re-running", err), err


NASTY = "\x1b]0;x\x07\r\x9b2J\u202e"


@pytest.mark.parametrize(
    "line",
    [
        [NASTY],
        ["list", NASTY],
        ["train", f"add/{NASTY}"],
        ["train", "add/looped", f"--{NASTY}=3"],
        ["train", "add/looped", f"--model.{NASTY}=3"],
        ["train", "add/looped", f"--model.dim={NASTY}"],
        ["train", "add/looped", f"--config={NASTY}"],
        ["train", "add/looped", f"--import_module={NASTY}"],
        ["train", "--resume", NASTY],
        ["train", "--resume", f"a\nfix: run {NASTY}"],
        ["evaluate", NASTY],
        ["generate", NASTY, "--prompt=1+2="],
        ["inspect", NASTY, "--prompt=1+2="],
        ["reproduce", NASTY],
        ["memory", NASTY],
        ["memory", "add", NASTY, NASTY, f"--store={NASTY}"],
        ["memory", "add", "r", "f", "--store=x", f"--topic={NASTY}"],
        ["memory", "ask", NASTY, f"--store={NASTY}", f"--prompt={NASTY}"],
        ["memory", "clear", f"--store={NASTY}", f"--topic={NASTY}"],
        ["compare", NASTY, "--models=decoder"],
        ["compare", "add", f"--models={NASTY}"],
        ["import", "thinker", NASTY, f"--settings={NASTY}", "--out=x"],
        ["import", NASTY, NASTY, f"--settings={NASTY}", "--out=x"],
    ],
    ids=lambda line: " ".join(line[:2])[:20].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
def test_errors_print_names_escaped(line, debug, here, capsys):
    assert main.main([*line, *debug]) in (2, 3)
    out, err = capsys.readouterr()
    assert out == "" and err.replace("\n", "").isprintable(), ascii(err)
    assert debug or (len(err.splitlines()) <= 3 and "\nfix: run" not in err)


def test_names_that_begin_with_a_dash_follow_two_dashes(here, capsys):
    assert main.main([*ADD, *TINY, "--out", "-a"]) == 0
    assert main.main(["evaluate", "--num_steps=1", "--num_examples=5", "--", "-a"]) == 0
    assert main.main(["train", "--resume", "-a"]) == 0
    capsys.readouterr()
    assert main.main(["evaluate", "-a"]) == 2
    assert "write -- -a" in capsys.readouterr().err
    assert main.main(["evaluate", "--", "--b"]) == 2
    assert "--b must be the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("path", [".", "..", "a", "missing/x", "a\0b", "\udcff", "~nobody_here/x"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(path, here, monkeypatch, capsys):
    (here / "a").mkdir()
    for name in ("evaluate", "inspect", "ablate"):
        monkeypatch.setattr(thinkers, name, lambda *args, **kwargs: pytest.fail("work was done"))
    for line in (
        ["evaluate", "r"],
        ["inspect", "r", "--prompt=1+2="],
        ["inspect", "r", "--ablate"],
    ):
        assert main.main([*line, f"--out={path}"]) == 2
        assert "--out" in capsys.readouterr().err
