"""Retrofitted models: at first the model that was given, and in steps what the equations say."""

import copy
import json
import threading

import pytest
import torch
from model_cases import ids
from retrofit_cases import CASES, T, V, pretrained
from safetensors.torch import load_file, save_file

import thinkers
from thinkers.errors import DataError, UsageError
from thinkers.testing import check_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extras
X = ids(3, 41)
LENGTHS = torch.tensor([41, 7, 23])


def opened(case, gate=0.5, layers=(2, 4), **own):
    """A retrofitted model in float64 with this gate."""
    model = thinkers.retrofit(pretrained(case).double(), layers, **own)
    model.gate.data.fill_(gate)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_with_a_gate_of_zero_every_step_count_is_the_untouched_model_bit_for_bit(case, dtype):
    given = pretrained(case).to(dtype)
    before = copy.deepcopy(given.state_dict())
    model = thinkers.retrofit(given, (2, 4), 4)
    wanted = given(X).logits
    assert model.gate == 0 and model.step_counts == (1, 2, 4, 8, 16) and not model.training
    for steps in model.step_counts:
        assert torch.equal(model(X, num_steps=steps).logits, wanted), steps
    model.gate.data.fill_(0.5)
    assert torch.equal(model(X, num_steps=1).logits, wanted)
    assert not torch.allclose(model(X, num_steps=2).logits, wanted, rtol=1e-3)
    for x in model.parameters():
        x.data.zero_()
    for name, x in given.state_dict().items():  # the weights are copies
        assert torch.equal(x, before[name]), name


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_prompts_of_any_length_are_continued_alike_with_a_cache_and_alone(case):
    model = opened(case)
    told = dict(num_steps=4, return_logits=True)
    out, logits = model.generate(X, 9, prompt_lengths=LENGTHS, **told)
    other, others = model.generate(X, 9, prompt_lengths=LENGTHS, use_cache=False, **told)
    assert torch.equal(out, other)
    torch.testing.assert_close(logits, others, rtol=0, atol=1e-10 * others.abs().max().item())
    for row, length in enumerate(LENGTHS.tolist()):
        alone, found = model.generate(X[row : row + 1, 41 - length :], 9, **told)
        assert torch.equal(alone[0, length:], out[row, 41:])
        torch.testing.assert_close(found[0], logits[row], rtol=0, atol=1e-10)


@pytest.mark.misuse
@pytest.mark.parametrize("case", ["llama, grouped, tied, biased", "gpt2", "decoder"])
def test_a_retrofitted_model_has_every_property(case):
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if case == "gpt2" else {}
    model = thinkers.retrofit(pretrained(case, **off).double(), (1, 3), 2, max_steps=3)
    model.gate.data.fill_(0.5)
    check_model(model)


@torch.no_grad()
def test_the_states_are_those_of_the_equations():
    """With the modules of transformers, without a line of ours."""
    given = pretrained("llama, grouped, tied, biased").double()
    model = thinkers.retrofit(given, (2, 4), 4)
    model.gate.data.fill_(0.3)
    inner = given.model
    e = inner.embed_tokens(X)
    table = inner.rotary_emb(e, position_ids=torch.arange(41)[None])

    def run(x, layers):
        for layer in layers:
            x = layer(x, position_embeddings=table)
        return x

    x = run(run(e, inner.layers[:2]), inner.layers[2:4])
    for step in (1, 2, 3, 4):
        if step > 1:
            x = x + 0.3 * (run(x, inner.layers[2:4]) - x)
        states = run(x, inner.layers[4:])
        thought = model(X, num_steps=4, keep_states=True)
        assert torch.equal(thought.states[:, step - 1], states)
        wanted = given.lm_head(inner.norm(states))
        read = model.read_out(thought.states[:, step - 1 : step])  # of equal shape: equal bits
        assert torch.equal(read[:, 0], wanted)
        assert torch.equal(model(X, num_steps=step).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("case", ["llama", "gpt2", "decoder"])
def test_one_step_writes_what_transformers_writes(case):
    given = pretrained(case).double()
    model = thinkers.retrofit(given, (2, 4))
    mask = (torch.arange(41) >= 41 - LENGTHS[:, None]).long()
    wanted = given.generate(
        X, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(model.generate(X, 9, 4, LENGTHS)[:, 41:], wanted[:, 41:])


def test_threads_that_take_other_steps_do_not_disturb_each_other():
    model = opened("llama")
    wanted = {steps: model.generate(X, 12, steps) for steps in (1, 2, 4, 7)}
    found = {}

    def write(steps):
        found[steps] = [model.generate(X, 12, steps) for _ in range(2)]

    threads = [threading.Thread(target=write, args=(steps,)) for steps in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, out in wanted.items():
        assert all(torch.equal(x, out) for x in found[steps]), steps


@pytest.mark.parametrize(
    "case", ["llama, grouped, tied, biased", "gpt2", "decoder, grouped, untied"]
)
def test_a_model_from_a_folder_keeps_its_dtype(case, tmp_path):
    pretrained(case).bfloat16().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model = thinkers.retrofit(tmp_path, (2, 4))
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model(X).logits, loaded(X).logits)
    double = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(thinkers.retrofit(double)(X).logits, double(X).logits)


def test_an_exported_decoder_is_retrofitted_as_its_own_file_loads_it(tmp_path):
    """A class of the file beside the weights, as where the library was not imported before."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    pretrained("decoder").save_pretrained(tmp_path)
    kind = get_class_from_dynamic_module("modeling_thinkers.ThinkersForCausalLM", str(tmp_path))
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded).__module__.startswith("transformers_modules")
    model = thinkers.retrofit(loaded, (2, 4))
    assert torch.equal(model(X).logits, loaded(X).logits)
    assert model.config == thinkers.retrofit(tmp_path, (2, 4)).config


@pytest.mark.parametrize("case", ["llama", "gpt2", "decoder, grouped, untied"])
def test_a_saved_folder_holds_the_configuration_as_data_and_no_path(case, tmp_path):
    (tmp_path / "given").mkdir()
    pretrained(case).double().save_pretrained(tmp_path / "given")
    model = thinkers.retrofit(tmp_path / "given", (2, 4), 3, trainable="gate")
    model.gate.data.fill_(0.25)
    model.save(tmp_path / "out")
    names = sorted(x.name for x in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors"]
    text = (tmp_path / "out" / "config.json").read_text()
    assert "given" not in text and str(tmp_path) not in text
    found = json.loads(json.loads(text)["config"]["hf_config"])
    assert found["model_type"] == json.loads(model.config.hf_config)["model_type"]
    again = thinkers.load(tmp_path / "out")
    assert again.config == model.config and again.gate == 0.25
    assert torch.equal(again(X).logits, model(X).logits)
    learned = [name for name, x in again.named_parameters() if x.requires_grad]
    assert learned == ["gate"]


def test_what_is_trained_is_chosen():
    given = pretrained("gpt2")
    for trainable, wanted in (("core", {"core", "gate"}), ("gate", {"gate"})):
        model = thinkers.retrofit(given, (2, 4), trainable=trainable)
        learned = {n.partition(".")[0] for n, x in model.named_parameters() if x.requires_grad}
        assert learned == wanted
    model = thinkers.retrofit(given, trainable="all")
    assert all(x.requires_grad for x in model.parameters()) and model.config.core == (1, 5)
    assert model.config.max_length == T and model.config.vocab_size == V


def tampered(kind):
    """A model whose own forward pass is not that of its type."""
    model = pretrained("llama")
    if kind == "forward":
        forward = model.forward
        model.forward = lambda *args, **named: _scaled(forward(*args, **named))
    if kind == "adapter":
        model.model.layers[0].self_attn.q_proj.lora = torch.nn.Linear(2, 2)
    if kind == "meta":
        model.to("meta")
    return model


def _scaled(output):
    output.logits = output.logits / 0.9
    return output


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.GPTNeoXForCausalLM, "must be a model of transformers or its folder"),
        (
            lambda: torch.nn.Linear(2, 2),
            "must be a model of transformers or its folder, got Linear",
        ),
        (lambda: "meta-llama/Llama-3.2-1B", r"(?s)which is no folder.*nothing is downloaded"),
        (lambda: small("gpt_neox"), "found: a Hugging Face model of the type 'gpt_neox'\n.*llama"),
        (lambda: small("mixtral"), "of the type 'mixtral'"),
        (lambda: small("mistral", sliding_window=8), "a mistral model with a sliding window"),
        (
            lambda: small("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "a qwen2 model with layers of the types ..sliding_attention",
        ),
        (
            lambda: small("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
            "rotary positions of the type 'dynamic'",
        ),
        (lambda: pretrained("gpt2", add_cross_attention=True), "add_cross_attention"),
        (lambda: tampered("forward"), "must compute what transformers computes"),
        (lambda: tampered("adapter"), r"(?s)a weight prelude.0.self_attn.q_proj.lora.*adapters"),
        (lambda: tampered("meta"), "without values"),
    ],
)
def test_what_cannot_be_looped_is_refused_with_the_reason(make, message):
    with pytest.raises(UsageError, match=message):
        thinkers.retrofit(make())


def small(kind, **own):
    sizes = dict(vocab_size=V, hidden_size=32, intermediate_size=56, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=T)
    config = transformers.AutoConfig.for_model(kind, **sizes | own)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", ["looped", "window"])
def test_of_exported_models_only_decoders_are_looped(name):
    from model_cases import tiny

    from thinkers.hf import from_model

    model = tiny("looped") if name == "looped" else tiny("decoder", {"window": 3})
    with pytest.raises(UsageError, match="found: an exported 'looped'|a decoder without a window"):
        thinkers.retrofit(from_model(model))


def test_a_folder_without_a_model_is_an_error_of_data(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="thinkers export hf"):
        thinkers.retrofit(tmp_path)


@pytest.mark.parametrize("case", ["llama", "gpt2", "decoder, grouped, untied"])
def test_a_folder_that_lacks_weights_is_no_model_of_random_ones(case, tmp_path):
    pretrained(case).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = next(x for x in whole if ".2." in x and x.endswith(".weight"))
    for change, wanted in (
        ({name: None}, f"no (weight )?{name} "),
        ({name: whole[name][:4].clone()}, f"{name} of shape "),
        ({"other.weight": torch.ones(3)}, "a weight that the model does not have, other.weight"),
    ):
        changed = {key: x for key, x in (whole | change).items() if x is not None}
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(DataError, match=wanted):
            thinkers.retrofit(tmp_path)
    save_file(whole, file, {"format": "pt"})
    thinkers.retrofit(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"found: .*model\.safetensors, which is damaged"):
        thinkers.retrofit(tmp_path)


def test_a_file_of_weights_of_torch_that_is_cut_is_an_error_of_data(tmp_path):
    given = pretrained("llama")
    given.config.save_pretrained(tmp_path)
    torch.save(given.state_dict(), tmp_path / "pytorch_model.bin")
    thinkers.retrofit(tmp_path)
    data = (tmp_path / "pytorch_model.bin").read_bytes()
    for size in (0, 9, len(data) // 2):
        (tmp_path / "pytorch_model.bin").write_bytes(data[:size])
        with pytest.raises(DataError, match="transformers can load"):
            thinkers.retrofit(tmp_path)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_model_without_a_head_is_refused_also_from_its_folder(case, tmp_path):
    base = pretrained(case).base_model
    message = f"(?s)found: a {type(base).__name__}.*a causal language model.*AutoModelForCausalLM"
    with pytest.raises(UsageError, match=message):
        thinkers.retrofit(base)
    if case == "llama":  # the head of gpt2 is its embedding
        base.save_pretrained(tmp_path)
        with pytest.raises(DataError, match="found: no weight lm_head.weight in "):
            thinkers.retrofit(tmp_path)
    kind = transformers.AutoModelForSequenceClassification
    with pytest.raises(UsageError, match="found: a .*Classification, which has no lm_head"):
        thinkers.retrofit(kind.from_config(base.config))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"layers": (4, 4)}, r"(?s)found: layers \(4, 4\)\n.*first < last.*layers=\(4, 5\)"),
        ({"layers": (3, 1)}, r"(?s)found: layers \(3, 1\)\n.*first < last"),
        ({"layers": range(2, 4)}, r"layers must be a tuple or a list, .*got range\(2, 4\)"),
        ({"layers": 3}, "layers must be a tuple or a list, .*got 3"),
        ({"layers": (0, 7)}, r"layers\[1\] must be an integer in 0 .. 6 \(num_layers\), got 7"),
        ({"layers": (-1, 2)}, r"layers\[0\] must be an integer in 0 .. 5"),
        ({"layers": (1, 2, 3)}, "layers must be two numbers"),
        ({"num_steps": 0}, "num_steps"),
        ({"max_length": T + 1}, r"max_length must be .*max_position_embeddings of hf_config"),
        ({"trainable": "head"}, "trainable must be one of"),
        ({"trainable": "gate", "num_steps": 1}, "the gate has no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(own, message):
    with pytest.raises(UsageError, match=message):
        thinkers.retrofit(pretrained("llama"), **own)
