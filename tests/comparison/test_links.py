"""Comparisons: nothing is read, written or deleted through a link in their folder."""

import shutil

import pytest

from thinkers.comparison import plan
from thinkers.comparison.results import read
from thinkers.comparison.runner import compare
from thinkers.errors import DamagedError

pytestmark = pytest.mark.usefixtures("plain_pages")
SMALL = {"task.max_digits": 1, "model.dim": 8, "model.num_heads": 2, "training.batch_size": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr(plan, "POINTS", 1)
        asked = dict(budget="2 updates", seeds=1, num_examples=3, settings=SMALL)
        compare("add", ["decoder"], out=folder, **asked)
    return folder


def moved(folder, name):
    """Move a part of a comparison out of it, and leave a link; return where it is now."""
    target = folder.with_name(f"outside-{folder.name}")
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    return target


def content(path):
    files = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())
    return {x: x.read_bytes() for x in files}


PLACES = ["runs", "runs/decoder-0", "config.json"]


@pytest.mark.parametrize("name", PLACES)
def test_no_link_in_a_comparison_is_followed(finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "a")
    (folder / "runs" / "decoder-0" / "result.json").unlink()
    target = moved(folder, name)
    before = content(target)
    with pytest.raises(DamagedError, match="link"):
        compare(out=folder, resume=True)
    with pytest.raises(DamagedError, match="link"):
        read(folder)
    assert content(target) == before


@pytest.mark.parametrize("name", ["decoder-0.log", "decoder-0.usage.json"])
def test_files_beside_a_run_are_not_followed_and_its_failure_says_so(finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "a")
    (folder / "runs" / "decoder-0" / "result.json").unlink()
    target = moved(folder, f"runs/{name}")
    before = content(target)
    found = compare(out=folder, resume=True)
    assert content(target) == before
    assert found.exit_code == 4 and "is a link" in found.failures[0]["error"]


def test_a_comparison_with_a_relative_path_is_resumed_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "text.txt").write_text("some words on a line\n" * 40)
    monkeypatch.chdir(tmp_path)
    settings = {"task.path": "text.txt", "task.context": 8, "model.dim": 8, "model.num_heads": 2}
    asked = dict(settings=settings | {"training.batch_size": 2}, num_examples=3)
    compare("text", ["decoder"], budget="1 updates", seeds=1, out="a", **asked)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(compare(out="../a", resume=True, seeds=2).results["decoder"]) == 2
    named = asked["settings"] | {"task.path": "../text.txt"}
    assert compare(out="../a", resume=True, settings=named).plan.seeds == 2
