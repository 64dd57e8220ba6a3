"""Checkpoints are atomic and verified; run folders have one owner."""

import errno
import json
import resource
import shutil
from pathlib import Path

import damaged_files
import pytest
import torch

from thinkers.errors import DamagedError, ForeignError, FormatError, ResourceError, UsageError
from thinkers.files import disk_errors, write_file
from thinkers.runs import checkpoint
from thinkers.runs.checkpoint import Checkpoint


def made(update: int, fill: float = 1.0) -> Checkpoint:
    weights = {"a.weight": torch.full((3, 5), fill), "b": torch.arange(7, dtype=torch.float64)}
    optimizer = {"a.weight/exp_avg": torch.full((3, 5), -fill), "a.weight/step": torch.tensor(2.0)}
    return Checkpoint(update, {"weights": weights, "optimizer": optimizer}, {"best": 0.5})


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_reading_returns_what_was_saved(tmp_path):
    path = checkpoint.save(tmp_path, made(13), "run", score=0.25)
    back = checkpoint.read(path, "run")
    assert path.name == "00000013" and back.update == 13 and back.state == {"best": 0.5}
    for file, tensors in made(13).tensors.items():
        assert tensors.keys() == back.tensors[file].keys()
        for name, x in tensors.items():
            assert back.tensors[file][name].dtype == x.dtype
            assert torch.equal(back.tensors[file][name], x)
    assert names(path) == [
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_flip_of_any_bit_of_the_manifest_is_detected(tmp_path):
    path = checkpoint.save(tmp_path, made(2), "run")
    file = path / "manifest.json"
    intact = file.read_bytes()
    for position in range(0, 8 * len(intact), 3):  # each bit of a byte in turn
        damaged = bytearray(intact)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        # A flip in the number of the format makes it that of another version.
        with pytest.raises((DamagedError, FormatError)):
            checkpoint.verify(path)
    file.write_bytes(intact)
    checkpoint.verify(path)


def test_flips_truncations_and_swaps_are_detected_before_a_tensor_is_read(tmp_path):
    found = damaged_files.measure(48, tmp_path, places=("checkpoint", "run", "model"))
    assert found["silent"] == [] and found["rounds"] == 48
    assert min(found["kinds"].values()) >= 8 and len(found["files"]) >= 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "weights.safetensors").unlink(), "missing"),
        (lambda p: (p / "more.safetensors").write_bytes(b""), "not listed in its manifest"),
        (lambda p: (p / "manifest.json").unlink(), "missing"),
        (lambda p: (p / "manifest.json").write_text("[]"), "JSON object, got list"),
        (lambda p: (p / "manifest.json").write_text("[" * 9999), "nested deeper"),
        (lambda p: (p / "state.json").write_text('{"best": 0.6}\n'), "bytes"),
        (lambda p: p.rename(p.with_name("00000014")), "holds update 13"),
    ],
)
def test_the_error_names_the_damage(tmp_path, damage, message):
    path = checkpoint.save(tmp_path, made(13), "run")
    damage(path)
    with pytest.raises(DamagedError, match=message):
        checkpoint.read(next(tmp_path.iterdir()), "run")


def test_a_symbolic_link_is_refused(tmp_path):
    path = checkpoint.save(tmp_path / "a", made(13), "run")
    (path / "state.json").rename(tmp_path / "elsewhere")
    (path / "state.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="plain file"):
        checkpoint.read(path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, made(13), "run")
    with pytest.raises(ForeignError, match="belongs to run 'run'"):
        checkpoint.read(path, "other")


@pytest.mark.parametrize(("number", "age"), [(1, "an older"), (3, "a newer")])
def test_the_format_of_another_version_is_refused(tmp_path, monkeypatch, number, age):
    monkeypatch.setattr(checkpoint, "FORMAT", number)
    path = checkpoint.save(tmp_path, made(13))
    monkeypatch.undo()
    with pytest.raises(FormatError, match=f"format {number}, of {age} version"):
        checkpoint.read(path)


def as_of_another_run(folder):
    checkpoint.save(folder, made(5), "other")


def as_of_a_newer_version(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 3)
        checkpoint.save(folder, made(5), "run")


def with_an_edited_format(folder):
    path = checkpoint.save(folder, made(5), "run") / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 12'))


@pytest.mark.parametrize(
    ("add", "kind"),
    [
        (as_of_another_run, ForeignError),
        (as_of_a_newer_version, FormatError),
        (with_an_edited_format, FormatError),
    ],
)
def test_nothing_is_touched_for_a_checkpoint_of_another_run_or_version(tmp_path, add, kind):
    checkpoint.save(tmp_path, made(3), "run")
    add(tmp_path)
    damaged = checkpoint.save(tmp_path, made(7), "run")
    (damaged / "state.json").write_text("{}")
    (tmp_path / ".00000009.tmp").mkdir()
    before = {x.relative_to(tmp_path): x.stat().st_ino for x in tmp_path.rglob("*")}
    with pytest.raises(kind, match="00000005"):
        checkpoint.newest(tmp_path, "run", pytest.fail)
    assert {x.relative_to(tmp_path): x.stat().st_ino for x in tmp_path.rglob("*")} == before


def test_only_what_is_ours_is_deleted(tmp_path):
    for update in (3, 5, 7, 11):
        checkpoint.save(tmp_path, made(update), "run")
    checkpoint.save(tmp_path, made(4), "other")
    (tmp_path / "00000003" / "notes.txt").write_text("dear")
    (tmp_path / "00000005").rename(tmp_path / "kept")
    (tmp_path / "00000005").symlink_to(tmp_path / "kept")
    (tmp_path / "00000006").mkdir()
    for name in (".00000012.tmp", ".mine.tmp", ".00000013.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".00000013.tmp" / "thesis.txt").write_text("dear")
    (tmp_path / ".00000014.tmp").symlink_to(tmp_path / "kept")
    held = set(names(tmp_path))
    checkpoint.prune(tmp_path, keep_last=1, run_id="run")
    assert held - set(names(tmp_path)) == {"00000007"}
    assert checkpoint.newest(tmp_path, "run") == tmp_path / "00000011"
    assert held - set(names(tmp_path)) == {"00000007", ".00000012.tmp"}
    assert len(names(tmp_path / "kept")) == 4
    with pytest.raises(UsageError, match="exists and is not a leftover"):
        checkpoint.save(tmp_path, made(13), "run")


def test_checkpoints_are_not_looked_for_behind_a_link(tmp_path):
    checkpoint.save(tmp_path, made(3), "run")
    (tmp_path / "a").symlink_to(tmp_path)
    for call in (checkpoint.newest, checkpoint.saved):
        with pytest.raises(DamagedError, match="is a link"):
            call(tmp_path / "a")
    with pytest.raises(DamagedError, match="is a link"):
        checkpoint.save(tmp_path / "a", made(5), "run")
    with pytest.raises(DamagedError, match="is a link"):
        checkpoint.prune(tmp_path / "a", 1)
    assert names(tmp_path) == ["00000003", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_not_read(tmp_path, value):
    path = checkpoint.save(tmp_path, made(3, fill=value), "run")
    with pytest.raises(
        DamagedError, match="optimizer.safetensors: a.weight/exp_avg is not|a.weight is not"
    ):
        checkpoint.read(path, "run")


def test_the_newest_intact_checkpoint_is_found_and_damaged_ones_are_renamed(tmp_path):
    for update in (3, 5, 11):
        checkpoint.save(tmp_path, made(update), "run")
    (tmp_path / ".00000013.tmp").mkdir()
    (tmp_path / "00000011" / "weights.safetensors").write_bytes(b"")
    reported = []
    assert checkpoint.newest(tmp_path, "run", reported.append) == tmp_path / "00000005"
    assert names(tmp_path) == ["00000003", "00000005", "00000011.damaged"]
    assert (
        len(reported) == 1
        and "weights.safetensors" in reported[0]
        and "00000011.damaged" in reported[0]
    )

    checkpoint.save(tmp_path, made(11), "run")
    (tmp_path / "00000011" / "state.json").unlink()
    assert checkpoint.newest(tmp_path, "run", reported.append) == tmp_path / "00000005"
    assert "00000011.damaged1" in names(tmp_path)


def test_checkpoints_are_in_the_order_of_their_updates(tmp_path):
    for update in (100_000_000, 99_999_999):  # of nine digits, and of eight as all before
        checkpoint.save(tmp_path, made(update), "run")
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["99999999", "100000000"]
    assert checkpoint.newest(tmp_path, "run") == tmp_path / "100000000"


def test_no_intact_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    checkpoint.save(tmp_path, made(3), "run")
    (tmp_path / "00000003" / "state.json").write_text("{}")
    with pytest.raises(DamagedError, match="no intact checkpoint"):
        checkpoint.newest(tmp_path, "run", lambda text: None)


def test_pruning_keeps_the_last_and_the_best_finite_score(tmp_path):
    scores = {2: 0.3, 3: float("nan"), 5: 0.7, 7: None, 11: 0.7, 13: float("inf"), 17: 0.1, 19: 0.2}
    for update, score in scores.items():
        checkpoint.save(tmp_path, made(update), "run", score)
    checkpoint.prune(tmp_path, keep_last=2)
    assert names(tmp_path) == ["00000011", "00000017", "00000019"]


def test_a_full_disk_leaves_files_intact_and_is_reported_with_the_bytes_needed(tmp_path):
    checkpoint.save(tmp_path, made(3), "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        with pytest.raises(ResourceError, match=r"00000005: \d+ bytes needed, .*ulimit -f"):
            checkpoint.save(tmp_path, made(5), "run")
        with pytest.raises(ResourceError):
            write_file(tmp_path / "00000003" / "state.json", bytes(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["00000003"]
    checkpoint.verify(tmp_path / "00000003", "run")


def test_other_errors_of_the_disk_are_not_called_full(tmp_path):
    with pytest.raises(ResourceError, match="x cannot be used: Input/output") as caught:
        with disk_errors(tmp_path / "x", 5):
            raise OSError(errno.EIO, "Input/output error")
    assert "bytes" not in str(caught.value)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    path = checkpoint.save(tmp_path, made(3), "run")
    for file in path.iterdir():
        assert file.suffix in (".json", ".safetensors")
        if file.suffix == ".json":
            json.loads(file.read_text())


def test_a_copy_of_a_checkpoint_belongs_to_the_same_run(tmp_path):
    path = checkpoint.save(tmp_path / "a", made(3), "run")
    shutil.copytree(path, tmp_path / "b" / path.name)
    assert checkpoint.newest(tmp_path / "b", "run") == tmp_path / "b" / path.name
