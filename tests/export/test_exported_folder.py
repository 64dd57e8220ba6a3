"""A folder of an export: all of it or what was there, whatever fails, and nothing of others."""

import errno
import os

import pytest

from thinkers import files
from thinkers.export.folder import check_folder, write_folder

NAMES = frozenset(("a", "b"))
OLD, NEW = {"a": b"old", "b": b"old too"}, {"a": b"new"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(folder):
    return check_folder(folder, NAMES, lambda found: (found / "a").exists())


def test_a_new_an_empty_and_an_earlier_folder_are_written_as_a_whole(tmp_path):
    for before in (None, {}, OLD):
        folder = tmp_path / str(before) / "out"
        if before is not None:
            folder.mkdir(parents=True)
        if before:
            write_folder(folder, before, NAMES)
        assert check(folder) == folder
        write_folder(folder, NEW, NAMES)
        assert content(folder) == NEW
        assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b").write_text("x")
    for name, found in (("file", "no folder"), ("link", "no folder"), ("mine", "notes.txt")):
        with pytest.raises(ValueError, match=found):
            check(tmp_path / name)
    with pytest.raises(ValueError, match="which holds b"):
        check(tmp_path / "part")  # names of ours, but no export
    write_folder(tmp_path / "own", OLD, NAMES)
    (tmp_path / "own" / "more").write_text("x")
    with pytest.raises(ValueError, match="which holds more"):
        check(tmp_path / "own")


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_whatever_fails_leaves_the_earlier_export_or_the_new_one(call, tmp_path, monkeypatch):
    real, folder, failed = getattr(os, call), tmp_path / "out", 0
    for number in range(20):
        write_folder(folder, OLD, NAMES)
        calls = []

        def faulty(*given, number=number, calls=calls, **named):
            calls.append(given)
            if len(calls) == number + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(files.os, call, faulty)
            try:
                write_folder(folder, NEW, NAMES)
            except files.ResourceError:
                failed += 1
        assert content(folder) in (OLD, NEW)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if len(calls) <= number:
            break
    assert failed


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    folder = tmp_path / "out"
    for name in (".out.tmp", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
    write_folder(folder, NEW, NAMES)
    assert content(folder) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
