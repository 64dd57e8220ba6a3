"""Values are read from tensors at the edge alone: models compile, and do not wait for a device."""

import pytest
import torch
import torch._dynamo
from model_cases import CASES, NAMES, ids, lesson, tiny
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.unchecked
READING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}
"""Operations that read a value, or whose result has a shape that depends on values."""
T = 19
LENGTHS, PROMPTS = torch.tensor([T, 7, 12]), torch.tensor([4, 7, 3])


class NoReading(TorchDispatchMode):
    """Refuses every operation that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in READING or any(x is not None and x.dtype == torch.bool for x in indices):
            raise AssertionError(f"{name} reads a value from a tensor")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out what is checked and read at the edge, as torch.compile does."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()


@torch.no_grad()
@pytest.mark.parametrize("name, own", CASES)
def test_no_value_is_read_in_a_forward_pass(name, own, unchecked):
    model = tiny(name, own)
    with NoReading():
        model(ids(3, T), num_steps=model.step_counts[-1])
        model(ids(3, T), lengths=LENGTHS, prompt_lengths=PROMPTS)


@pytest.mark.parametrize("name, own", CASES)
def test_no_value_is_read_in_a_loss_once_its_terms_are_counted(name, own, unchecked, monkeypatch):
    model, batch = tiny(name, own).train(), lesson(tiny(name), 3, T)
    counts = model.counts(batch)
    monkeypatch.setattr(model, "count_terms", lambda batch: counts)
    with NoReading():
        total = model.loss(batch).total
    total.backward()


@torch.no_grad()
@pytest.mark.parametrize("name, own", CASES)
def test_no_value_is_read_by_a_cache(name, own, unchecked):
    model = tiny(name, own)
    if not model.causal:
        return
    for lengths, prompted in ((torch.tensor([9, 2, 5]), True), (torch.full((3,), 9), False)):
        with NoReading():
            _, cache = model.prefill(ids(3, 9), lengths, model.step_counts[-1], prompted, 30)
            for token in range(9):
                model.extend(ids(3, seed=token), cache)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_forward_pass_of_ragged_prompts_is_one_graph(name):
    model, tokens = tiny(name, num_layers=1).double(), ids(3, T)
    settings = {"num_steps": 1, "lengths": LENGTHS, "prompt_lengths": PROMPTS}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, wanted = (m(tokens, **settings).logits for m in (compiled, model))
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[row, :length], wanted[row, :length], rtol=0, atol=1e-12)


def check_compiled(model, backend, *shapes, dynamic=None):
    """Compare values and every gradient of the model's one graph with those of the model."""
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), backend=backend, fullgraph=True, dynamic=dynamic)
    parameters = dict(model.named_parameters())
    for shape in shapes:
        found, wanted = (m(ids(*shape)).logits for m in (compiled, model))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
        grads, expected = (
            torch.autograd.grad((x * weights).sum(), [*parameters.values()], allow_unused=True)
            for x in (found, wanted)
        )
        for key, x, y in zip(parameters, grads, expected, strict=True):
            assert (x is None) == (y is None), key
            if x is not None:
                limit = 1e-5 * max(1e-3, y.abs().max().item())
                torch.testing.assert_close(x, y, rtol=0, atol=limit, msg=key)


OPERATORS = ("reasoning_tokens", "thoughtsformer")
"""Models with operations of ours; all models are in slow tests."""


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_has_the_values_and_every_gradient_of_the_model(name):
    check_compiled(tiny(name, num_layers=1), "aot_eager", (3, T), dynamic=False)


VARIANTS = [
    ("looped", {"injection": "add", "time_code": True, "backprop_steps": 1}),
    ("reasoning_tokens", {"prediction": "all", "window": 2, "far_key": 0.5, "near_query": -2.0}),
    ("reasoning_tokens", {"variant": "published", "far_value": (0.0, 1.0, 0.5, 1.0)}),
    ("thinker", {"mixing": 3, "num_input_layers": 1, "section": 5}),
    ("thoughtsformer", {"thoughts": "words"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, own", [*((name, {}) for name in NAMES), *VARIANTS])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_of_any_length_has_the_values_and_every_gradient(name, own):
    check_compiled(tiny(name, own), "aot_eager", (3, T), (2, T + 14), (4, T + 30))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_generated_code_has_the_values_and_every_gradient(name):
    check_compiled(tiny(name), "inductor", (3, T), (2, T + 14))


@pytest.mark.parametrize("t", [1, 2, T])
@pytest.mark.parametrize(
    "own", [{}, *(own for name, own in VARIANTS if name == "reasoning_tokens")]
)
def test_the_operator_of_compiled_models_has_the_gradients_of_the_attention(own, t, monkeypatch):
    model, tokens = tiny("reasoning_tokens", own).double(), ids(3, t)
    parameters = [*model.parameters()]
    model(tokens).logits.square().sum().backward()
    wanted = [x.grad for x in parameters]
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    found = torch.autograd.grad(model(tokens).logits.square().sum(), parameters, allow_unused=True)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_a_value_that_is_read_is_found(unchecked):
    model = tiny("decoder")
    for read in (lambda x: int(x.sum()), lambda x: x[x > 0], lambda x: bool((x > 0).any())):
        answer = model._answer
        model._answer = lambda x, read=read, answer=answer: (read(x), answer(x))[1]
        with pytest.raises(AssertionError, match="reads a value"), NoReading():
            model(ids(1, 3))
        model._answer = answer


WHOLE = [
    ("thoughtsformer", {}, "plain"),
    ("thoughtsformer", {"causal": False}, "padded"),
    ("thinker", {"section": 5, "num_knowledge": 2, "backprop_steps": 1}, "plain"),
    ("thinker", {"memory_steps": 1, "read_steps": 1, "mixing": 3}, "prompted"),
]
"""Models whose store or chain has a form of its own for compilers: (name, settings, call)."""


@pytest.mark.parametrize("name, own, kind", WHOLE)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_gives_the_logits_and_the_gradients(name, own, kind):
    model, tokens = tiny(name, own, num_layers=1).double(), ids(3, T)
    given = {
        "plain": {},
        "padded": {"lengths": LENGTHS},
        "prompted": {"lengths": LENGTHS, "prompt_lengths": PROMPTS},
    }[kind]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, expected = (m(tokens, num_steps=2, **given).logits for m in (compiled, model))
    real = torch.arange(T) < given.get("lengths", torch.full((3,), T))[:, None]
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-12)
    parameters = [x for x in model.parameters() if x.requires_grad]
    gradients = [
        torch.autograd.grad(x[real].square().sum(), parameters, allow_unused=True)
        for x in (found, expected)
    ]
    for x, y in zip(*gradients, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_a_published_thinker_with_prompts_refuses_to_be_compiled(unchecked):
    model = tiny("thinker", {"variant": "published", "output": "parallel"})
    with pytest.raises(ValueError, match="prompt_lengths of a Thinker .* cannot be compiled"):
        model(ids(3, T), prompt_lengths=PROMPTS)
