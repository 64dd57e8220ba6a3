"""Errors of the operating system about rights, disks and limits end with exit code 6.

Data without read permission is 3, as all data that cannot be read. tests/faults has each operation
on a file that a command makes.
"""

import os

import pytest
from faulty_disk import FaultyDisk
from safetensors import SafetensorError

from thinkers import files
from thinkers.cli import main
from thinkers.errors import ResourceError, exit_code

TEXT = "the cat sat on the mat and the dog sat on the log\n" * 40


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a text."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text(TEXT)
    return folder


def test_data_without_permission_is_an_error_of_the_data(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main.main(["train", "text/decoder", "--task.path=text.txt", "--out=new"]) == 3
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


def test_errors_of_the_system_name_the_file_and_a_way_out(begun):
    text = "cannot be used: Permission denied; change the rights"
    with (
        FaultyDisk(begun, 1, "EACCES"),
        pytest.raises(ResourceError, match=f"{begun / 'x'} {text}"),
    ):
        files.exists(begun / "x")


def test_a_named_pipe_as_settings_is_refused_and_not_waited_for(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    os.mkfifo(begun / "pipe")
    assert main.main(["train", "copy/decoder", "--dry_run", "--config=pipe"]) == 2
    (begun / "pipe").unlink()
    assert "a named pipe" in capsys.readouterr().err
