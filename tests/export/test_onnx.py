"""Runs as ONNX files: checked before they are written, or refused with the reason."""

import pytest
import torch
from model_cases import ids, tiny

import thinkers
from thinkers.cli.main import main
from thinkers.export import onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "looped.onnx"
    model = tiny("looped", None, num_layers=1)
    return model, onnx.export(model, file, num_steps=3)


def test_a_file_gives_the_logits_at_its_number_of_steps(exported):
    model, found = exported
    session = onnxruntime.InferenceSession(found.file, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["model"], facts["num_steps"]) == ("looped", "3")
    for shape in ((4, 20), (1, 2)):
        tokens = ids(*shape)
        (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
        with torch.no_grad():
            right, other = (model(tokens, num_steps=k).logits for k in (3, 2))
        torch.testing.assert_close(torch.from_numpy(logits), right, rtol=0, atol=1e-5)
        assert (right - other).abs().max() > 1e-3
    assert 0 < found.difference < 1e-5 and (1, 67) in found.shapes


def test_a_file_that_differs_is_not_written(exported, tmp_path, monkeypatch):
    model, found = exported
    content = found.file.read_bytes()
    monkeypatch.setattr(onnx, "convert", lambda _: content)
    other = tiny("looped", None, num_layers=1)
    other.norm.weight.data *= 1.01
    with pytest.raises(ValueError, match="that differ by [0-9.e-]+ of the largest") as error:
        onnx.export(other, tmp_path / "out.onnx", num_steps=3)
    assert len(str(error.value).splitlines()) == 3 and not list(tmp_path.iterdir())
    onnx.export(model, tmp_path / "out.onnx", num_steps=3)


def test_a_thinker_is_refused_at_once_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "convert", None)
    with pytest.raises(ValueError, match="found: a thinker, the number of whose sections") as error:
        onnx.export(tiny("thinker", {"section": 8}, num_layers=1), tmp_path / "out.onnx")
    assert len(str(error.value).splitlines()) == 3


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\nno operator for this\nand 100 more lines")

    with monkeypatch.context() as patched:
        patched.setattr(torch.onnx, "export", fails)
        with pytest.raises(ValueError, match="cannot export: no operator for this\nexpected"):
            onnx.export(tiny("looped"), tmp_path / "out.onnx")
    task = thinkers.build_task("add", coupled=True)
    coupled = tiny("decoder", None, vocab_size=task.vocab_size)
    with pytest.raises(ValueError, match="coupled positions"):
        onnx.export((coupled, task), tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="num_steps"):
        onnx.export(tiny("looped"), tmp_path / "out.onnx", num_steps=99)
    assert not list(tmp_path.iterdir())


def test_the_command(exported, tmp_path, monkeypatch, capsys):
    model, found = exported
    content = found.file.read_bytes()
    model.save(tmp_path / "model")
    monkeypatch.setattr(onnx, "convert", lambda _: content)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "onnx", "model", "--out", "a.onnx", "--num_steps", "3"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "looped at 3 steps, ONNX file a.onnx"
    assert second.startswith("logits within ") and "1 x 67" in second
    assert (tmp_path / "a.onnx").read_bytes() == content
    assert main(["export", "onnx", "model", "--out", "missing/a.onnx"]) == 2
