"""thinkers import: from a published checkpoint to a model folder."""

import torch
from published_cases import MODEL, published_checkpoint

import thinkers
from thinkers import published
from thinkers.cli import commands, main


def test_the_command_makes_a_model_folder(tmp_path, capsys):
    weights = published_checkpoint(tmp_path)
    out = tmp_path / "out"
    words = ["import", "thinker", str(tmp_path / MODEL), "--settings"]
    assert main.main([*words, str(tmp_path / "settings.json"), "--out", str(out)]) == 0
    assert "thinker with" in capsys.readouterr().out
    dumped = published.dump(thinkers.load(out))
    assert dumped.keys() == weights.keys()
    assert all(torch.equal(dumped[name], weights[name]) for name in weights)


def test_an_empty_folder_is_taken_by_a_link_and_as_the_current_one(tmp_path, monkeypatch, capsys):
    published_checkpoint(tmp_path)
    words = ["import", "thinker", str(tmp_path / MODEL), "--settings"]
    words += [str(tmp_path / "settings.json"), "--out"]
    for name in ("current", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("linked", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "current")
    assert main.main([*words, str(tmp_path / "link")]) == main.main([*words, "."]) == 0
    for name in ("current", "linked"):
        thinkers.load(tmp_path / name)
    assert (tmp_path / "link").is_symlink() and capsys.readouterr().err == ""
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_a_bad_system_or_checkpoint_is_refused(tmp_path, capsys):
    published_checkpoint(tmp_path)
    out, settings = tmp_path / "out", str(tmp_path / "settings.json")
    rest = ["--settings", settings, "--out", str(out)]
    assert main.main(["import", "thinkr", str(tmp_path / MODEL), *rest]) == 2
    assert "thinker" in capsys.readouterr().err
    assert main.main(["import", "thinker", str(tmp_path / "absent.safetensors"), *rest]) == 3
    (tmp_path / MODEL).write_bytes(b"no checkpoint")
    assert main.main(["import", "thinker", str(tmp_path / MODEL), *rest]) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) <= 6
    assert not out.exists()


def test_the_command_knows_every_system():
    assert set(commands.SYSTEMS) == set(published.SYSTEMS)
