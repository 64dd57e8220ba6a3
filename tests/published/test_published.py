"""Published checkpoints: DeepSight against its golden files, and the shared importer code."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from golden import read_golden
from safetensors.torch import load_file, save_file

from thinkers import load_model, published
from thinkers.errors import DataError, UsageError
from thinkers.models.deepsight import DeepSight
from thinkers.published import common, unpickle

NAMES = ("deepsight_cosine", "deepsight_mse", "deepsight_no_plan")


def read(name: str):
    settings, parts = read_golden(name)
    return parts, settings


def agree(found, wanted):
    for name, x in wanted.items():
        assert found[name].shape == x.shape, name
        error = (found[name] - x).abs().max()
        assert error <= 1e-9 * max(x.abs().max(), 1e-6), f"{name}: {error}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_of_deepsight_are_the_published_ones(name, training):
    parts, settings = read(name)
    model = published.load("deepsight", parts["weights"], settings).train(training)
    found = published.outputs(model, parts["in"], settings)
    assert found.keys() == parts["out"].keys()
    agree(found, parts["out"])
    found["loss"].backward()
    grads = published.dump(model, grads=True)
    agree(grads, parts["grad"])
    assert grads.keys() >= parts["grad"].keys()
    assert grads.keys() == parts["weights"].keys() - published.unread(model).keys()
    weights = published.dump(model)
    assert weights.keys() == parts["weights"].keys()
    assert all(torch.equal(weights[name], x) for name, x in parts["weights"].items())


def test_parts_of_the_loss_have_their_graphs():
    parts, settings = read("deepsight_mse")
    model = published.load("deepsight", parts["weights"], settings)
    found = published.outputs(model, parts["in"], settings)
    found["planning_loss"].backward()
    assert model.encoder[0].heads.query.weight.grad.any()
    assert model.decoder[0].block.heads.query.weight.grad is None
    tokens = {"tokens": parts["in"]["tokens"]}
    assert published.outputs(model, tokens, settings).keys() == {"logits"}


def test_the_model_has_the_dtype_of_the_weights():
    parts, settings = read("deepsight_mse")
    single = {name: x.float() for name, x in parts["weights"].items()}
    model = published.load("deepsight", single, settings)
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
    single["ln.weight"] = single["ln.weight"].double()
    with pytest.raises(DataError, match="one floating-point dtype"):
        published.load("deepsight", single, settings)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights_give_nearly_the_same_loss(name):
    parts, settings = read(name)
    half = {key: x.bfloat16() for key, x in parts["weights"].items()}
    model = published.load("deepsight", half, settings)
    found = published.outputs(model, parts["in"], settings)
    found["loss"].backward()
    assert found["logits"].dtype == torch.bfloat16
    torch.testing.assert_close(found["loss"].double(), parts["out"]["loss"], rtol=0.03, atol=0.03)


def test_the_compile_prefix_and_derived_buffers_are_dropped():
    parts, settings = read("deepsight_mse")
    weights = {f"_orig_mod.{name}": x for name, x in parts["weights"].items()}
    for name in ("future_context_weights", "merge_present_context_weights", "a.b.0.tril"):
        weights[f"_orig_mod.{name}"] = torch.ones(2, 3)
    model = published.load("deepsight", weights, settings)
    assert published.dump(model).keys() == parts["weights"].keys()
    weights["ln.weight"] = weights["_orig_mod.ln.weight"]
    with pytest.raises(DataError, match="weights hold ln.weight twice"):
        published.load("deepsight", weights, settings)


def test_tied_copies_must_be_equal():
    parts, settings = read("deepsight_mse")
    weights = dict(parts["weights"])
    weights["output_layer.weight"] = weights["token_embedding.weight"].clone()
    published.load("deepsight", weights, settings)
    alone = {name: x for name, x in weights.items() if name != "token_embedding.weight"}
    assert published.dump(published.load("deepsight", alone, settings)).keys() == (
        parts["weights"].keys()
    )
    weights["output_layer.weight"][3, 5] += 1e-9
    with pytest.raises(DataError, match="output_layer.weight must equal token_embedding.weight"):
        published.load("deepsight", weights, settings)


def test_unused_weights_are_kept_and_saved_but_not_trained(tmp_path):
    parts, settings = read("deepsight_no_plan")
    model = published.load("deepsight", parts["weights"], settings)
    kept = {"encoder_out_ln.weight", "encoder_out_ln.bias"}
    assert published.unread(model).keys() == kept
    assert not any("encoder_out" in name for name, _ in model.named_parameters())
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert all(torch.equal(published.dump(again)[name], parts["weights"][name]) for name in kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"ln.weight": None},
            r"weights lack ln.weight, which these settings require with shape \[24\]",
        ),
        (
            {"ln.gain": torch.ones(24).double()},
            "weights hold ln.gain, which a model with these settings lacks",
        ),
        (
            {"ln.weight": torch.ones(3).double()},
            r"must have shape \[24\] with these settings, got \[3\]",
        ),
        ({"ln.weight": torch.ones(24).long()}, r"ln.weight must be a floating-point tensor.*int64"),
        (
            {"ln.weight": torch.tensor(1.0).double()},
            "ln.weight must be a floating-point tensor of at least one axis",
        ),
        ({"ln.weight": [1.0] * 24}, "of at least one axis, got list"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, says):
    parts, settings = read("deepsight_mse")
    weights = {name: x for name, x in {**parts["weights"], **change}.items() if x is not None}
    with pytest.raises(DataError, match=says):
        published.load("deepsight", weights, settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"future_context_size": 1}, "above 1 and below the context size 20, got 1"),
        ({"future_context_size": 20}, "above 1 and below the context size 20, got 20"),
        ({"planning_loss_type": "L1"}, "planning_loss_type must be one of"),
        ({"system": "thinker"}, "settings of 'thinker' do not fit the system 'deepsight'"),
        ({"order_type": "ALT"}, "order_type must be one of"),
        (
            {"cross_attn_config": {"use_bias": True, "n_head": 6}},
            "cross_attn_config.use_bias must equal use_bias, False, got True",
        ),
        ({"context_size": "long"}, "settings cannot configure 'deepsight': "),
        ({"planning_loss_type": ["MSE"]}, "settings cannot configure 'deepsight': "),
        ({"n_head": 7}, "settings cannot configure 'deepsight': dim must be a multiple"),
    ],
)
def test_invalid_settings_are_refused(change, says):
    parts, settings = read("deepsight_mse")
    with pytest.raises(DataError, match=says):
        published.load("deepsight", parts["weights"], {**common.decode(settings), **change})


def test_settings_may_have_the_names_of_the_author():
    parts, settings = read("deepsight_cosine")
    theirs = common.decode(settings)
    theirs["alphabet_size"] = theirs.pop("vocab_size")
    theirs["cross_attn_config"] = {"use_bias": False, "n_head": theirs.pop("cross_n_head")}
    model = published.load("deepsight", parts["weights"], theirs)
    agree(published.outputs(model, parts["in"], theirs), parts["out"])
    del theirs["n_embed"]
    with pytest.raises(DataError, match="settings lack 'n_embed'"):
        published.load("deepsight", parts["weights"], theirs)


def test_the_companion_model_is_imported_too():
    """Its embedding loss is that written out here; it has context_size + 1 learned positions."""
    settings = {
        "vocab_size": 19,
        "context_size": 12,
        "n_embed": 16,
        "n_layer": 1,
        "n_head": 2,
        "use_bias": True,
        "sub_pos_embed_to_decoder": "YES_NO_LN",
        "embedding_loss_type": "MSE",
        "embedding_loss_coeff": 2.0,
        "detach_type": "ENCODER_OUT",
        "embedding_ln_type": "INIT",
        "use_ln_on_encoder_out": True,
    }
    torch.manual_seed(3)
    config = DeepSight.Config(
        variant="published",
        vocab_size=19,
        max_length=12,
        dim=16,
        num_layers=1,
        num_heads=2,
        bias=True,
        plan_loss="none",
        embedding_loss="mse",
        subtract_position=True,
    )
    made = DeepSight(config).double()
    weights = published.dump(made)
    assert weights["positional_embedding.weight"].shape == (13, 16)
    model = published.load("deepsight", weights, settings)
    tokens = torch.randint(19, (2, 12))
    found = published.outputs(model, {"tokens": tokens, "targets": tokens}, settings)
    embedded, plan, _ = model.run(tokens)
    mean = model.embedding_loss.embedding_norm(embedded).cumsum(1) / torch.arange(1, 13)[:, None]
    wanted = (mean - model.embedding_loss.encoder_norm(plan)).square().mean()
    torch.testing.assert_close(found["embedding_loss"], wanted)
    torch.testing.assert_close(found["loss"], found["cross_entropy"] + 2 * wanted)


def test_an_unknown_system_is_refused():
    with pytest.raises(UsageError, match="unknown published system 'gpt'; choose from"):
        published.load("gpt", {}, {})


def checkpoint(folder: Path, weights: dict) -> Path:
    torch.save({"model": weights, "iter_num": 7, "optimizer": {"lr": 0.1}}, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def test_a_published_file_becomes_a_model_folder(tmp_path):
    parts, settings = read("deepsight_mse")
    weights = {f"_orig_mod.{name}": x.float() for name, x in parts["weights"].items()}
    weights["_orig_mod.output_layer.weight"] = weights["_orig_mod.token_embedding.weight"]
    (tmp_path / "settings.json").write_text(json.dumps(common.decode(settings)))
    path, out = checkpoint(tmp_path, weights), tmp_path / "model"
    unpickle.import_checkpoint("deepsight", path, tmp_path / "settings.json", out)
    assert sorted(x.name for x in out.iterdir()) == ["config.json", "model.safetensors"]
    found = published.dump(load_model(out))
    assert all(torch.equal(found[name], x.float()) for name, x in parts["weights"].items())
    with pytest.raises(
        UsageError, match="not an empty folder; pass a folder that is empty or absent"
    ):
        unpickle.import_checkpoint("deepsight", path, tmp_path / "settings.json", out)


class Trap:
    """Run a command when unpickled without protection."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.path)],)


def convert(source: Path, target: Path) -> None:
    """Run in this process what reads a file in the child, without its limit of memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["unpickle", str(source), str(target)])
        patch.setattr(unpickle.resource, "setrlimit", lambda *_: None)
        unpickle.main()


def test_files_from_before_torch_1_6_are_read_too(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3)}
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert torch.equal(load_file(tmp_path / "new.safetensors")["a"], weights["a"])


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_that_runs_code_is_refused_and_runs_nothing(tmp_path, archive):
    weights = {"a": torch.ones(2), "b": Trap(tmp_path / "sprung")}
    path, says = tmp_path / "trap.pt", "nothing but tensors and plain values, got .*call"
    torch.save(weights, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(SystemExit, match=says):
        convert(path, tmp_path / "new.safetensors")
    if archive:
        with pytest.raises(DataError, match=f"trap.pt cannot be read: it must hold {says}"):
            unpickle.read_weights(path)
    assert not (tmp_path / "sprung").exists()


def test_reading_a_file_has_a_time_limit(tmp_path):
    path = checkpoint(tmp_path, {"a": torch.ones(2)})
    with pytest.raises(DataError, match=r"was not read within the limit of 0.05 s"):
        unpickle.read_weights(path, time_limit_s=0.05)


def test_weights_are_found_under_the_usual_keys():
    weights = {"a": torch.ones(2)}
    for found in (weights, {"model": weights, "step": 3}, {"model": {"state_dict": weights}}):
        assert unpickle.find_weights(found) == weights
    for found in ([weights], {}, {"step": 3}, {"model": {"a": 3}}):
        with pytest.raises(ValueError, match="holds no weights by name"):
            unpickle.find_weights(found)


def test_unreadable_files_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        unpickle.read_weights(tmp_path / "none.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        unpickle.read_weights(tmp_path / "bad.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "good.safetensors")
    assert unpickle.read_weights(tmp_path / "good.safetensors")["a"].sum() == 2
    with pytest.raises(DataError, match="settings file .* does not exist"):
        unpickle.read_settings(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object, got list"):
        unpickle.read_settings(tmp_path / "list.json")
