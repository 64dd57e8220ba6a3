"""Model folders: what is loaded is what was saved, bit for bit, or it is refused by name."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from model_cases import ids, tiny

import thinkers
from thinkers.errors import DamagedError, DataError, FormatError, NonFiniteError, UsageError
from thinkers.json_files import with_digest
from thinkers.models import MODELS, load_model
from thinkers.models.base import settings_digest
from thinkers.models.weights_file import pack, read_header, sizes_within

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def test_a_saved_model_is_its_settings_and_its_weights(tmp_path):
    model = tiny("looped").double()
    model.save(tmp_path / "a" / "b")
    found = json.loads((tmp_path / "a" / "b" / CONFIG).read_text())
    assert found["format"] == 2 and found["model"] == "looped"
    assert found["config"] == dataclasses.asdict(model.config)
    again = load_model(tmp_path / "a" / "b")
    assert next(again.parameters()).dtype == torch.float64
    assert torch.equal(again.eval()(ids(2, 5)).logits, model(ids(2, 5)).logits)
    assert torch.equal(again.rotary.frequencies, model.rotary.frequencies)
    assert sorted(x.name for x in (tmp_path / "a" / "b").iterdir()) == [CONFIG, WEIGHTS]


def test_each_weight_keeps_its_dtype(tmp_path):
    model = tiny("decoder").bfloat16()
    model.norm.float()
    model.save(tmp_path)
    again = load_model(tmp_path).state_dict()
    for name, x in model.state_dict().items():
        assert again[name].dtype == x.dtype and torch.equal(again[name], x), name


def test_loading_does_not_move_the_random_stream(tmp_path):
    tiny("decoder").save(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_equal_weights_are_equal_bytes_in_every_process(tmp_path):
    """In this one, and in another that orders sets differently."""
    code = (
        "import torch, thinkers; torch.manual_seed(3); "
        "thinkers.build_model('decoder', vocab_size=7, dim=8, num_heads=2).save(r'{}')"
    )
    hashes = os.environ | {"PYTHONHASHSEED": str(1 + hash("a") % 1000)}
    command = [sys.executable, "-c", code.format(tmp_path / "other")]
    subprocess.run(command, env=hashes, check=True)
    with torch.random.fork_rng():
        exec(code.format(tmp_path / "own"))
    for file in (CONFIG, WEIGHTS):
        own, other = ((tmp_path / name / file).read_bytes() for name in ("own", "other"))
        assert own == other


@pytest.mark.unchecked
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_every_bit_of_a_model_folder_counts(tmp_path, file):
    tiny("decoder", dim=4, num_layers=1, num_heads=1, hidden=4).save(tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    positions = range(0, 8 * len(whole), 1 + 8 * len(whole) // 997)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises((DamagedError, FormatError), match=file):
            load_model(tmp_path)
    path.write_bytes(whole)
    load_model(tmp_path)


def change_config(folder, **changes):
    """Write other settings as a version of this library would, with their digest."""
    path = folder / CONFIG
    found = {k: x for k, x in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_bytes(with_digest(found | changes))


def change_settings(folder, **changes):
    settings = json.loads((folder / CONFIG).read_text())["config"]
    change_config(folder, config=settings | changes)


def drop_setting(folder):
    settings = json.loads((folder / CONFIG).read_text())["config"]
    del settings["num_heads"]
    change_config(folder, config=settings)


def other_weights(folder, **settings):
    tiny("decoder", **settings).save(folder / "other")
    (folder / "other" / WEIGHTS).replace(folder / WEIGHTS)


def misshapen_weights(folder):
    settings = json.loads((folder / CONFIG).read_text())["config"]
    content = pack(tiny("decoder", hidden=24).state_dict(), settings_digest("decoder", settings))
    (folder / WEIGHTS).write_bytes(content)


def cut_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def replace_by_link(folder, name):
    (folder / name).rename(folder / "moved")
    (folder / name).symlink_to(folder / "moved")


def replace_by_pipe(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)


def rewrite_weights(folder, header):
    """Write a weights file of this header, as text."""
    text = header.encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


def save_elsewhere(folder):
    """Save the weights with the library of the format, as other programs do."""
    safetensors.torch.save_file(tiny("decoder").state_dict(), folder / WEIGHTS)


DAMAGES = [
    (lambda folder: (folder / CONFIG).unlink(), DataError, "holds no config.json"),
    (lambda folder: (folder / WEIGHTS).unlink(), DataError, "holds no model.safetensors"),
    (lambda folder: (folder / CONFIG).write_text("{"), DamagedError, "config.json is not JSON"),
    (lambda folder: (folder / CONFIG).write_text("[" * 99999), DamagedError, "nested deeper"),
    (lambda folder: (folder / CONFIG).write_bytes(b"\xff{}"), DamagedError, "byte 0 is not UTF-8"),
    (lambda folder: (folder / CONFIG).write_text("[1]"), DamagedError, "JSON object, got list"),
    (lambda folder: (folder / CONFIG).write_text("{}"), DamagedError, "format None"),
    (lambda folder: change_config(folder, format=1), FormatError, "1, of an older version"),
    (lambda folder: change_config(folder, format=3), FormatError, "3, of a newer version"),
    (lambda folder: change_config(folder, config=3), DamagedError, "config must be dict, got int"),
    (lambda folder: change_config(folder, model="mine"), UsageError, "'mine'"),
    (
        lambda folder: change_config(folder, model=["a"]),
        DamagedError,
        "model must be str, got list",
    ),
    (lambda folder: change_config(folder, config={}), DamagedError, "lacks vocab_size"),
    (drop_setting, DamagedError, "config.json lacks num_heads, a setting of decoder"),
    pytest.param(
        lambda folder: change_settings(folder, dim="big"),
        DamagedError,
        "config.json describes no model: dim must be .* 'big'",
        marks=pytest.mark.misuse,
    ),
    (lambda folder: change_settings(folder, width=3), UsageError, "'width'"),
    (lambda folder: change_settings(folder, max_length=99), DamagedError, "another config.json"),
    (cut_weights, DamagedError, "model.safetensors holds .* bytes of tensors"),
    (misshapen_weights, DamagedError, "feed_forward.*must have shape.*24"),
    (lambda folder: other_weights(folder, max_length=99), DamagedError, "another config.json"),
    (
        save_elsewhere,
        DamagedError,
        "another config.json than the one beside it, or was not written",
    ),
    (lambda folder: rewrite_weights(folder, "[1]"), DamagedError, "JSON object, got list"),
    (lambda folder: rewrite_weights(folder, "[" * 99999), DamagedError, "nested deeper"),
    (lambda folder: rewrite_weights(folder, '{"a": 1}'), DamagedError, "object, got int"),
    (
        lambda folder: rewrite_weights(
            folder, '{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 0]}}'
        ),
        DamagedError,
        "takes 0 bytes",
    ),
    (lambda folder: (folder / WEIGHTS).write_bytes(b""), DamagedError, "size of its header"),
    (
        lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 99),
        DamagedError,
        "size of its header",
    ),
    *(
        (lambda folder, n=name, f=replace: f(folder, n), DamagedError, f"{name} must be a plain")
        for name in (CONFIG, WEIGHTS)
        for replace in (replace_by_link, replace_by_pipe)
    ),
]


@pytest.mark.parametrize("damage, kind, words", DAMAGES)
def test_a_model_folder_that_cannot_be_loaded_says_why(tmp_path, damage, kind, words):
    tiny("decoder").save(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("field", ["num_layers", "vocab_size", "dim", "hidden"])
def test_sizes_beyond_the_weights_are_refused_before_anything_is_built(tmp_path, name, field):
    model = tiny(name)
    if not hasattr(model.config, field):
        pytest.skip(f"{name} has no {field}")
    model.save(tmp_path)
    change_settings(tmp_path, **{field: 1_000_000 * model.config.num_heads})
    start = time.process_time()
    with pytest.raises(DamagedError, match="config.json describes"):
        load_model(tmp_path)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("name", MODELS)
def test_a_model_as_large_as_its_weights_is_built(tmp_path, name):
    for number, settings in enumerate(MODELS[name].test_variants):
        folder = tmp_path / str(number)
        tiny(name, **settings).save(folder)
        load_model(folder)


def test_other_threads_may_build_models_meanwhile(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    tiny("decoder", dim=4, num_layers=1, num_heads=1).save(tmp_path)
    with sizes_within(read_header(tmp_path / WEIGHTS), "x"), ThreadPoolExecutor(1) as pool:
        pool.submit(tiny, "decoder", dim=64, num_layers=99).result()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_model_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path, value):
    model = tiny("decoder")
    model.save(tmp_path)
    before = [(tmp_path / x).read_bytes() for x in (CONFIG, WEIGHTS)]
    name = "blocks.1.feed_forward.gate.weight"
    name = name if name in model.state_dict() else list(model.state_dict())[3]
    model.state_dict()[name].view(-1)[2] = value
    with pytest.raises(NonFiniteError, match=f"{name} is not finite; nothing is saved"):
        model.save(tmp_path)
    assert [(tmp_path / x).read_bytes() for x in (CONFIG, WEIGHTS)] == before

    digest = settings_digest("decoder", dataclasses.asdict(model.config))
    good = tiny("decoder").state_dict()
    content = pack(good, digest)
    place = content.index(good[name].numpy().tobytes())
    header_size = 8 + int.from_bytes(content[:8], "little")
    assert place >= header_size
    poisoned = dict(good, **{name: model.state_dict()[name]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinkers.models.weights_file.first_not_finite", lambda tensors: None)
        (tmp_path / WEIGHTS).write_bytes(pack(poisoned, digest))
    with pytest.raises(DamagedError, match=f"{name} is not finite"):
        load_model(tmp_path)


def test_large_finite_weights_are_finite(tmp_path):
    model = tiny("decoder")
    for parameter in model.parameters():
        parameter.data.fill_(3e38)
    model.save(tmp_path)
    load_model(tmp_path)


@pytest.mark.parametrize("folder", ["a\0b", "a\udcff", ""])
def test_a_folder_that_cannot_be_named_is_refused(folder):
    for call in (tiny("decoder").save, thinkers.load, load_model):
        with pytest.raises(UsageError, match="folder"):
            call(folder)
