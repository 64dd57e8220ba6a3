"""Runs as folders of Hugging Face: what they hold, and what their cards say, works."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hf_cases import LENGTHS, MASK, PROMPTS, PlainText, pair
from model_cases import NAMES, tiny

import thinkers
from thinkers.cli.main import main
from thinkers.data.tokenizers import CharacterTokenizer, distinct_characters
from thinkers.evaluation.generate import answered
from thinkers.models.unused_weights import keep_unread
from thinkers.tasks import Task

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extras

SMALL = {
    "copy": {"max_length": 4},
    "add": {"max_digits": 3},
    "cups": {"max_length": 4},
    "links": {"max_length": 8, "max_depth": 4},
    "automaton": {"width": 6},
    "babi": {},
    "star_graph": {},
    "facts": {},
}
"""Tasks with small sizes."""


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Where Hugging Face keeps the files of classes that it loads from folders."""
    from transformers import dynamic_module_utils as dynamic

    (tmp_path / "modules").mkdir()
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def exported(run, out="out"):
    from thinkers.export.hf import export

    return export(run, out)


def small_pair(name, task_name):
    task = thinkers.build_task(task_name, **SMALL[task_name])
    sizes = {"vocab_size": task.vocab_size, "max_length": 120, "max_steps": 8}
    return tiny(name, None, **sizes), task


def printed(folder, capsys):
    """What the code of a card prints."""
    blocks = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.S | re.M)
    capsys.readouterr()
    exec("\n".join(blocks), {})
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_exported_as_save_pretrained_saves_it(name, tmp_path):
    model, copy = pair(name)
    found = exported(model)
    copy.save_pretrained(tmp_path / "saved")
    ours, theirs = (
        json.loads((folder / "config.json").read_text())
        for folder in (found.folder, tmp_path / "saved")
    )
    assert ours == theirs
    loaded = transformers.AutoModelForCausalLM.from_pretrained(found.folder)
    # MKL's last bit depends on where a matrix begins in memory, and a mapped file begins anywhere.
    for weights in loaded.parameters():
        weights.data = weights.data.clone()
    with torch.no_grad():
        assert torch.equal(loaded(PROMPTS).logits, copy(PROMPTS).logits)
    call = {"attention_mask": MASK, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(PROMPTS, **call), copy.generate(PROMPTS, **call))
    steps = model.config.num_steps if model.config.takes_steps else None
    assert getattr(loaded.generation_config, "num_thinking_steps", None) == steps
    assert found.notes[0].startswith("no tokenizer: the task of a model outside a run")
    card = (found.folder / "README.md").read_text()
    assert f"# {name}\n" in card and "Not measured." in card and "| dim | 32 |" in card


@pytest.mark.parametrize("task_name", SMALL)
def test_the_code_of_a_card_gives_the_answer_of_the_library(task_name, capsys):
    model, task = small_pair("looped", task_name)
    found = exported((model, task))
    prompt = task.decode(task.batch(0, 1, "test").tokens[0, : prompt_end(task)])
    shown = printed(found.folder, capsys)
    response = answered(model, task, prompt, None)[1]
    if found.notes:
        assert task_name == "add" and "no tokenizer" in found.notes[0]
        assert json.loads(shown) == response.row
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    tokens = response.answer if task_name in ("links", "automaton") else response.row
    assert shown == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_place_where_no_folder_can_be_made_is_named_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "afile").write_text("")
    with pytest.raises(thinkers.ThinkersError, match=r"(?s)found: --out .*afile is no folder\n"):
        exported(tiny("looped"), tmp_path / "afile" / "x" / "y")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(thinkers.ThinkersError, match="dangling is no folder\n"):
        exported(tiny("looped"), tmp_path / "dangling" / "x")
    with pytest.raises(thinkers.ThinkersError, match="found: --out /proc/x, where no folder can"):
        exported(tiny("looped"), "/proc/x")


def test_the_code_of_a_card_asks_nothing_where_the_library_is_absent(tmp_path):
    folder = exported(small_pair("looped", "copy")).folder
    blocks = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.S | re.M)
    without = "import sys\nsys.modules['thinkers'] = None\n"
    child = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join([without, *blocks])],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert "custom code" not in child.stdout and len(child.stdout.splitlines()) == 1


@pytest.mark.parametrize("text", ["Then the end. ", "abc\n"])
def test_the_card_of_a_text_continues_it(text, capsys):
    task = PlainText(CharacterTokenizer(distinct_characters([text])))
    model = tiny("decoder", None, vocab_size=task.vocab_size, max_length=30)
    folder = exported((model, task)).folder
    prompt = torch.tensor([task.encode("The " if "T" in text else "\n")])
    new = 30 - prompt.shape[1]
    right = task.decode(model.generate(prompt, new, 1, LENGTHS[:1] * 0 + prompt.shape[1])[0])
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.S | re.M)
    capsys.readouterr()
    exec("\n".join(blocks), {})
    assert capsys.readouterr().out == right + "\n"
    assert "no token for padding" in card and "takes one step" in card


def prompt_end(task: Task) -> int | None:
    ends = task.batch(0, 1, "test").prompt_lengths
    return None if ends is None else int(ends[0])


@pytest.mark.parametrize(("name", "own"), [("thinker", {}), ("looped", {"halting": True})])
def test_a_card_states_what_is_else_than_in_the_library(name, own):
    task = thinkers.build_task("copy", max_length=4)
    model = tiny(name, own, vocab_size=task.vocab_size)
    card = (exported((model, task)).folder / "README.md").read_text()
    if name == "thinker":
        assert "writes from the end of the prompt" in card and "section by section" in card
        assert 'pip install "thinkers[hf]"' in card and "trust_remote_code" not in card
    else:
        assert "saves no arithmetic" in card and "`halt=0.5`" in card


def test_a_memory_and_a_policy_are_named_as_limits():
    model = tiny("thinker", {"policy": True, "memory": "blocks"})
    card = (exported(model).folder / "README.md").read_text()
    assert "neither read nor written" in card and "policy is not asked" in card


def test_coupled_positions_are_refused_before_anything_is_written(tmp_path):
    task = thinkers.build_task("add", coupled=True)
    model = tiny("looped", None, vocab_size=task.vocab_size)
    with pytest.raises(thinkers.ThinkersError, match="coupled positions") as error:
        exported((model, task))
    assert len(str(error.value).splitlines()) == 3
    assert not (tmp_path / "work" / "out").exists()


def test_equal_runs_are_equal_bytes_and_an_earlier_export_is_replaced():
    run = small_pair("looped", "copy")
    first = {p.name: p.read_bytes() for p in exported(run).folder.iterdir()}
    again = {p.name: p.read_bytes() for p in exported(run).folder.iterdir()}
    assert first == again and "tokenizer.json" in first
    exported(small_pair("looped", "add"))
    assert not (exported(small_pair("looped", "add")).folder / "tokenizer.json").exists()


def test_weights_that_no_pass_reads_are_left_out():
    model = tiny("decoder")
    keep_unread(model, "some.weight", torch.ones(3))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported(model).folder)
    with torch.no_grad():
        assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_ids_that_a_task_never_writes_are_not_written():
    task = thinkers.build_task("multiply", registers="graded")
    assert task.num_output_tokens < task.vocab_size
    model = tiny("looped", None, vocab_size=task.vocab_size)
    folder = exported((model, task)).folder
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["suppress_tokens"] == list(range(task.num_output_tokens, task.vocab_size))
    assert (config["bos_token_id"], config["eos_token_id"]) == (task.start_token, task.end_token)


def test_the_command_exports_a_run_with_its_scores(capsys):
    short = "--training.num_updates=1 --training.batch_size=4 --training.evaluate_examples=4"
    sizes = "--model.dim=16 --model.num_heads=2 --training.device=cpu"
    assert main(["train", "copy/looped", "--out=run", *short.split(), *sizes.split()]) == 0
    score = float(re.search(r"exact ([\d.]+)", capsys.readouterr().out)[1])
    assert main(["export", "hf", "run", "--out", "hf"]) == 0
    assert re.match(r"looped with [\d,]+ parameters, folder of Hugging Face hf\n\Z",
                    capsys.readouterr().out)  # fmt: skip
    with open("hf/README.md") as card:
        assert f"| exact | {score:.4f} |" in card.read()
    with open("hf/notes.txt", "w") as other:
        other.write("mine")
    assert main(["export", "hf", "run", "--out", "hf"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert main(["export", "hf", "nowhere", "--out", "new"]) == 2
