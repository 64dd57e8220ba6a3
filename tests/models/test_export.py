"""Models as programs of torch.export and ONNX, for any number of rows of any length."""

import importlib.util

import pytest
import torch
from model_cases import NAMES, SIZE, ids, tiny

pytestmark = pytest.mark.unchecked
LONGEST = SIZE["max_length"]
ONNX = ("onnx", "onnxscript", "onnxruntime")
SECTION = 8
DEAR = ("thinker", "multi_token", "pause")
"""The last two run the layers of the decoder, after which they are exported in slow tests."""


def small(name):
    own = {"section": SECTION} if name == "thinker" else {}
    return tiny(name, own, num_layers=1)


def shapes_of(name):
    """Bounds of the length, and shapes within them; the first is the example.

    A Thinker has other operations for less than two sections.
    """
    least = 2 * SECTION if name == "thinker" else 1
    return least, ((3, 37), (1, least), (7, 33), (2, LONGEST), (4, 2 * SECTION))


def dynamic(least):
    return ({0: torch.export.Dim("b"), 1: torch.export.Dim("t", min=least, max=LONGEST)},)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if x in DEAR else ()) for x in NAMES]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_model_takes_any_number_of_rows_of_any_length(name):
    model, (least, shapes) = small(name), shapes_of(name)
    # The sections of a Thinker are counted by a division, about which torch proves little.
    deferred = name == "thinker"
    exported = torch.export.export(
        model,
        (ids(*shapes[0]),),
        dynamic_shapes=dynamic(least),
        prefer_deferred_runtime_asserts_over_guards=deferred,
    ).module()
    for shape in shapes:
        found, wanted = (m(ids(*shape)) for m in (exported, model))
        torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
        assert found.extra.keys() == wanted.extra.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "thinker"])
@pytest.mark.skipif(
    any(importlib.util.find_spec(part) is None for part in ONNX),
    reason="needs the extra: pip install 'thinkers[onnx]'",
)
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_logits_of_any_number_of_rows_of_any_length(name):
    import onnxruntime

    model, (least, shapes) = small(name), shapes_of(name)
    program = torch.onnx.export(
        model, (ids(*shapes[0]),), dynamo=True, dynamic_shapes=dynamic(least), verbose=False
    )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    for shape in shapes:
        tokens = ids(*shape)
        found = torch.from_numpy(session.run(None, {given.name: tokens.numpy()})[0])
        torch.testing.assert_close(found, model(tokens).logits, rtol=0, atol=1e-5)
