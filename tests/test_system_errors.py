"""Errors of the operating system about rights, disks and limits end with exit code 6, everywhere.

Each operation on a file that a command makes fails once: the first, the second and so on, until the
command gets through. Data without read permission is 3, as all data that cannot be read.
"""

import builtins
import errno
import io
import itertools
import os
import shutil

import pytest
from safetensors import SafetensorError
from training_cases import make

from thinkers import files
from thinkers.cli import main
from thinkers.errors import ResourceError, exit_code
from thinkers.training.loop import train

SYSTEM = ("EACCES", "EROFS", "ENOSPC", "EMFILE", "EDQUOT", "EIO", "EPERM", "ENFILE")
OPERATIONS = ("open", "stat", "lstat", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir")
OPERATIONS += ("listdir", "write", "fsync")
TEXT = "the cat sat on the mat and the dog sat on the log\n" * 40
TINY = ["--model.dim=8", "--model.num_heads=2", "--model.num_layers=1", "--task.context=8"]
TINY += ["--training.num_updates=2", "--training.batch_size=2", "--training.evaluate_examples=2"]
TINY += ["--training.device=cpu", "--training.checkpoint_every=2"]


class Disk:
    """The file operations of Python on paths in a folder, of which the Nth fails with an errno."""

    def __init__(self, folder, number, code):
        self.folder, self.left, self.code, self.failed = str(folder), number, code, ""

    def install(self, patch):
        for name in OPERATIONS:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name)))
        for module in (io, builtins):
            patch.setattr(module, "open", self.wrapped("open", io.open))

    def holds(self, path):
        return os.path.abspath(os.fspath(path)).startswith(self.folder)

    def wrapped(self, name, real):
        def call(where, *given, **named):
            # A descriptor is of a file that was opened before; text output is none of the folder.
            watched = where > 2 if isinstance(where, int) else self.holds(where)
            if watched and not self.failed:
                self.left -= 1
                if self.left == 0:
                    self.failed = f"{name} {where}"
                    path = () if isinstance(where, int) else (os.fspath(where),)
                    raise OSError(self.code, os.strerror(self.code), *path)
            return real(where, *given, **named)

        return call


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a run after 2 of 4 updates, a text, settings and a module."""
    folder = tmp_path_factory.mktemp("begun")
    settings = dict(num_updates=4, checkpoint_every=2, keep_last=1, schedule="constant")
    train(make(settings=settings), folder / "run", until=2)
    (folder / "text.txt").write_text(TEXT)
    (folder / "settings.yaml").write_text("training:\n  lr: 0.001\n")
    (folder / "module_of_a_user.py").write_text("value = 3\n")
    return folder


COMMANDS = {
    "evaluate": ["evaluate", "run", "--num_examples=2", "--out=run.json"],
    "generate": ["generate", "run", "--prompt=1="],
    "config": ["train", "copy/decoder", "--config=settings.yaml", "--dry_run"],
    "module": ["train", "copy/decoder", "--import_module=module_of_a_user.py", "--print_config"],
    "train": ["train", "text/decoder", *TINY, "--task.path=text.txt", "--out=new"],
    "resume": ["train", "--resume=run"],
}
WRITTEN = {
    "evaluate": "run.json",
    "train": "new/model/config.json",
    "resume": "run/checkpoints/00000004",
}
DEAR = ("train", "resume")


@pytest.mark.parametrize(
    ("name", "every"),
    [(name, 29 if name in DEAR else 3) for name in COMMANDS]
    + [pytest.param(name, 1, marks=pytest.mark.slow) for name in COMMANDS],
)
def test_an_error_of_the_system_at_any_operation_ends_with_code_6(
    name, every, begun, tmp_path, monkeypatch, capsys
):
    wrong = []
    for number, code in zip(itertools.count(1, every), itertools.cycle(SYSTEM), strict=False):
        folder = shutil.copytree(begun, tmp_path / str(number))
        disk = Disk(folder, number, getattr(errno, code))
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("THINKERS_CACHE", str(folder / "cache"))
            disk.install(patch)
            found = main.main(COMMANDS[name])
        err = capsys.readouterr().err
        if not disk.failed:
            assert found == 0 and wrong == []
            return
        # 0: the cache of bytecode, the git commit and the like are done without.
        is_done = found == 0 and (folder / WRITTEN.get(name, ".")).exists()
        if not is_done and (found != 6 or len(err.splitlines()) > 3):
            wrong.append((disk.failed, code, found, err))


def test_data_without_permission_is_an_error_of_the_data(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main.main(COMMANDS["train"]) == 3
    assert "permission denied" in capsys.readouterr().err


def test_paths_that_are_not_there_stay_errors_of_usage(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    for path in ("missing", "text.txt", "text.txt/x", "a" * 300):
        assert main.main(["evaluate", path]) == 2
        assert main.main(["train", "--resume", path]) == 2
        assert main.main(["train", "copy/decoder", "--dry_run", f"--config={path}/"]) == 2
        assert main.main(["train", "copy/decoder", "--dry_run", f"--import_module={path}/"]) == 2
        assert len(capsys.readouterr().err.splitlines()) <= 4 * 3


def test_the_rust_of_safetensors_has_the_codes_of_the_system():
    for number, code in ((24, 6), (28, 6), (5, 6), (2, 1)):
        assert exit_code(SafetensorError(f"I/O error: of some kind (os error {number})")) == code


def test_errors_of_the_system_name_the_file_and_a_way_out(begun, monkeypatch):
    text = "cannot be used: Permission denied; change the rights"
    disk = Disk(begun, 1, errno.EACCES)
    disk.install(monkeypatch)
    with pytest.raises(ResourceError, match=f"{begun / 'x'} {text}"):
        files.exists(begun / "x")


def test_a_named_pipe_as_settings_is_refused_and_not_waited_for(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    os.mkfifo(begun / "pipe")
    assert main.main(["train", "copy/decoder", "--dry_run", "--config=pipe"]) == 2
    (begun / "pipe").unlink()
    assert "a named pipe" in capsys.readouterr().err
