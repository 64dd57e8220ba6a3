"""The file that an exported decoder or looped model carries: the library's numbers without it."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from hf_cases import LENGTHS, MASK, PROMPTS, asked, pair, rules, written
from model_cases import ALONE, NAMES, ids

pytest.importorskip("transformers")
pytestmark = pytest.mark.extras

MORE = [
    ("decoder", {"tie_head": False, "window": 2, "num_kv_heads": 2, "rotary_base": 50.0}),
    ("looped", {"num_prelude_layers": 2, "step_loss": "every"}),
    ("looped", {"step_loss": "wait", "wait_token": 3, "num_coda_layers": 0}),
    ("looped", {"halting": True, "window": 3, "time_code": True}),
]
CASES = [("decoder", {}), ("looped", {}), *MORE]
CASES += [(name, own) for name, own in ALONE if name in ("decoder", "looped")]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    from thinkers.hf.modeling_file import join

    file = tmp_path_factory.mktemp("standalone") / "modeling_thinkers.py"
    file.write_text(join())
    spec = importlib.util.spec_from_file_location("standalone_file", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def alone(module, name, own):
    """A model of the library, and the same one of the file."""
    model, copy = pair(name, own)
    made = module.ThinkersForCausalLM(
        module.ThinkersConfig(model=name, settings=copy.config.settings)
    )
    made.double().load_state_dict(copy.state_dict())
    return model, made.eval()


def test_it_is_one_source_of_torch_and_transformers():
    from thinkers.hf.modeling_file import join

    tree = ast.parse(join())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            found.add(node.module.partition(".")[0])
    assert found == {"torch", "transformers", "types"}
    names = [x.name for x in tree.body if isinstance(x, ast.ClassDef | ast.FunctionDef)]
    assert len(names) == len(set(names)) and "ThinkersForCausalLM" in names


@pytest.mark.parametrize(("name", "own"), CASES)
def test_it_gives_the_logits_and_tokens_of_the_library(module, name, own):
    model, made = alone(module, name, own)
    for steps in model.step_counts:
        for halt in rules(model):
            for cache in (True, False):
                tokens, logits = written(
                    made, 4, num_thinking_steps=steps, use_cache=cache, **asked(halt)
                )
                options = {"return_logits": True, "use_cache": cache, **asked(halt)}
                out, right = model.generate(PROMPTS, 4, steps, LENGTHS, **options)
                assert torch.equal(tokens, out[:, 7:])
                if halt is None:
                    assert torch.equal(logits, right)
                # The library packs tokens that still think, so that its sums have another order.
                assert (logits - right).abs().max() <= 1e-10 * right.abs().max()


def test_errors_name_the_argument_that_was_given(module):
    _, made = alone(module, "looped", {})
    for call in (made, made.generate):
        with pytest.raises(ValueError, match="^found: num_thinking_steps 99\nexpected: an integer"):
            call(PROMPTS, num_thinking_steps=99)


@pytest.mark.parametrize(("name", "own"), [("decoder", {"window": 3}), ("looped", {"window": 3})])
def test_it_drops_keys_that_have_left_a_window_when_the_library_does(module, name, own):
    model, made = alone(module, name, own)
    tokens, logits = written(made, 50)
    out, right = model.generate(PROMPTS, 50, None, LENGTHS, return_logits=True)
    assert torch.equal(logits, right) and torch.equal(tokens, out[:, 7:])


@pytest.mark.parametrize(("name", "own"), CASES)
def test_it_gives_the_loss_gradients_and_states_of_the_library(module, name, own):
    model, made = alone(module, name, own)
    for steps in model.step_counts:
        with torch.no_grad():
            thought = model(PROMPTS, num_steps=steps, keep_states=True)
            found = made(PROMPTS, num_thinking_steps=steps, output_hidden_states=True)
        assert torch.equal(found.logits, thought.logits)
        assert torch.equal(torch.stack(found.hidden_states, 1), thought.states)
        if own.get("halting"):
            with pytest.raises(ValueError, match="learns when to halt"):
                made(PROMPTS, labels=PROMPTS)
            continue
        right = model.loss(PROMPTS, num_steps=steps).total
        loss = made(PROMPTS, labels=PROMPTS, num_thinking_steps=steps).loss
        assert loss == right
        model.zero_grad(), made.zero_grad()
        right.backward(), loss.backward()
        grads = {key: x.grad for key, x in model.named_parameters()}
        for key, x in made.model.named_parameters():
            assert x.grad is grads[key] is None or torch.equal(x.grad, grads[key]), key


@pytest.mark.parametrize(
    ("name", "own", "halt"),
    [
        ("decoder", {}, 0.5),
        ("looped", {}, 0.5),
        ("looped", {"halting": True}, 1.5),
        ("looped", {"halting": True}, "answered"),
        ("looped", {"halting": True}, "policy"),
        ("looped", {"step_loss": "wait", "wait_token": 3}, "answered"),
    ],
)
def test_it_refuses_to_halt_where_the_library_does(module, name, own, halt):
    model, made = alone(module, name, own)
    with pytest.raises(ValueError):
        model.generate(PROMPTS, 2, None, LENGTHS, halt=halt)
    for call in (made, made.generate):
        with pytest.raises(ValueError, match="fix: "):
            call(PROMPTS, halt=halt)


def test_it_can_be_trained_from_scratch(module):
    _, made = alone(module, "looped", {"tie_head": False})
    torch.manual_seed(0)
    fresh = module.ThinkersForCausalLM(made.config)
    logits = fresh(ids(4, 20)).logits
    assert logits.isfinite().all() and logits.abs().max() < 2
    fresh(ids(4, 20), labels=ids(4, 20)).loss.backward()


CHILD = """
import json, sys

class NoLibrary:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "thinkers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoLibrary())
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
found = {}
for folder, case in torch.load("cases.pt").items():
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        found[folder] = str(error)
        continue
    out = model.generate(**case["call"])
    with torch.no_grad():
        same = torch.equal(model(case["call"]["input_ids"]).logits, case["logits"])
        model.save_pretrained("again-" + folder)
        model = AutoModelForCausalLM.from_pretrained("again-" + folder, trust_remote_code=True)
        same = same and torch.equal(model(case["call"]["input_ids"]).logits, case["logits"])
    found[folder] = same and torch.equal(out, case["out"])
assert "thinkers" not in sys.modules
print(json.dumps(found))
"""


def test_it_is_loaded_where_the_library_cannot_be_imported_and_the_others_say_what_they_need(
    tmp_path,
):
    cases = {}
    call = {"input_ids": PROMPTS, "attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
    call["num_thinking_steps"] = 3
    for name in NAMES:
        _, copy = pair(name)
        copy.save_pretrained(tmp_path / name)
        given = call if 3 in range(copy.config.settings["max_steps"] + 1) else dict(call)
        if given is not call:
            del given["num_thinking_steps"]
        with torch.no_grad():
            logits = copy(PROMPTS).logits
        cases[name] = {"call": given, "logits": logits, "out": copy.generate(**given)}
    torch.save(cases, tmp_path / "cases.pt")
    (tmp_path / "child.py").write_text(CHILD)
    environment = {key: x for key, x in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-I", "child.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert found.pop("decoder") is True and found.pop("looped") is True
    for name, message in found.items():
        assert message.splitlines()[-1] == 'fix: pip install "thinkers[hf]"', (name, message)
