"""`thinkers export` without its packages, and with words that it does not know."""

import sys

import pytest

import thinkers
from thinkers.cli.main import main


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["export", "hf", "runs/a", "--out", "a"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "transformers" in lines[0] and lines[2] == 'fix: pip install "thinkers[hf]"'
    monkeypatch.delitem(sys.modules, "thinkers.hf", raising=False)
    with pytest.raises(thinkers.ThinkersError, match="thinkers.hf needs"):
        thinkers.hf  # noqa: B018


def test_an_unknown_format_is_named_with_the_nearest(capsys):
    assert main(["export", "hg", "runs/a", "--out", "a"]) == 2
    assert "hf" in capsys.readouterr().err


def test_a_star_import_needs_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "thinkers.hf", raising=False)
    exec("from thinkers import *", {})
    assert "hf" in dir(thinkers)


def test_evaluate_still_takes_settings_of_the_task(capsys):
    """The command is the harness's too, which takes none."""
    assert main(["evaluate", "runs/a", "--task.max_digits", "2"]) == 2
    assert "takes" not in capsys.readouterr().err
    for more in (["--harness", "a"], ["--model.dim", "8"]):
        assert main(["evaluate", "runs/a", "--task.max_digits", "2", *more]) == 2
        assert "fix: leave it out" in capsys.readouterr().err
