"""Inspection and ablation: numbers against a slow reference, and usage errors."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from model_cases import CASES, NAMES, ids, thinks, tiny
from torch import nn

import thinkers
from thinkers.cli import main
from thinkers.errors import UsageError
from thinkers.inspection.ablate import REPLACEMENTS, ReplacedThoughts, ablate, count_thoughts
from thinkers.inspection.inspect import inspect, principal_plane
from thinkers.inspection.page import inspection_lines
from thinkers.inspection.results import is_end, label
from thinkers.models.base import Config, Model, Thought

THINKING = [name for name in NAMES if thinks(tiny(name))]


def adder(name, **own):
    task = thinkers.build_task("add", max_digits=2)
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    return tiny(name, own, **sizes), task


class Lines(thinkers.Task):
    """A task without answers, as texts are: token i is the i-th letter."""

    Config = SimpleNamespace
    vocab_size, max_length, primary_metric, higher_is_better = 13, 67, "loss", False

    def encode(self, text):
        return ["abcdefghijkl ".index(x) for x in text]

    def decode(self, tokens):
        return "".join("abcdefghijkl "[int(x)] for x in tokens)

    def batch(self, update, batch_size, split="train"):
        raise AssertionError

    def score(self, model, split="test", num_examples=2000, num_steps=None):
        raise AssertionError

    def grade(self, model, split="test", num_examples=2000, num_steps=None):
        tokens = ids(num_examples, 23, seed=3)
        with torch.no_grad():
            return -model.score(tokens, num_steps=num_steps).mean(1).double()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [None, 3])
def test_an_inspection_agrees_with_the_model(name, steps):
    model, task = adder(name)
    steps = steps if thinks(model) else None
    seen = inspect((model, task), "12+34=", steps)
    assert seen.tokens[:7] == task.encode("12+34=") and seen.first == 6
    said = model.answer(
        torch.tensor([seen.tokens[:7]]), torch.tensor([7]), task.max_answer_length(), steps
    )[0]
    assert seen.answer == task.decode(said)
    assert seen.tokens[7:] == said[: len(seen.tokens) - 7].tolist()
    with torch.no_grad():
        lengths = torch.tensor([7])
        thought = model(
            torch.tensor([seen.tokens]), num_steps=steps, prompt_lengths=lengths, keep_states=True
        )
        states, chances = thought.states[0], model.read_out(thought.states)[0].softmax(-1)
    assert seen.num_steps == len(states) == model.check_steps(steps)
    for k in range(seen.num_steps):
        for t in range(len(seen.tokens)):
            order = chances[k, t].argsort(descending=True)
            assert seen.answers.tokens[k, t].tolist() == order[:5].tolist()
            exact = [float(x) for x in chances[k, t].double()]
            entropy = -sum(p * math.log2(p) for p in exact if p)
            assert float(seen.answers.entropy[k, t]) == pytest.approx(entropy, abs=1e-4)
            if not k:
                assert seen.distance[k, t] == 0 and not seen.flips[k, t]
                continue
            a, b = states[k - 1, t].double(), states[k, t].double()
            assert float(seen.distance[k, t]) == pytest.approx(float((b - a).norm()), rel=1e-6)
            assert float(seen.moved[k, t]) == pytest.approx(
                float((b - a).norm() / a.norm()), rel=1e-6
            )
            cosine = float(a @ b / a.norm() / b.norm())
            assert float(seen.cosine[k, t]) == pytest.approx(cosine, abs=1e-6)
            assert bool(seen.flips[k, t]) == bool(
                chances[k, t].argmax() != chances[k - 1, t].argmax()
            )
    best = seen.answers.tokens[..., 0]
    for t, settled in enumerate(seen.settled.tolist()):
        assert (best[settled - 1 :, t] == best[-1, t]).all()
        assert settled == 1 or best[settled - 2, t] != best[-1, t]


@pytest.mark.parametrize(
    ("task", "own", "prompt"),
    [("add", {}, "12+34="), ("cups", {}, "12 35 14"), ("cups", {"written": True}, "12 35 14")],
)
def test_the_predictions_after_the_last_step_are_the_answer(task, own, prompt):
    """Finished or not, of one token or several; written rows show their states as well."""
    task = thinkers.build_task(task, **own)
    model = tiny("looped", vocab_size=task.vocab_size, max_length=max(67, task.max_length))
    seen = inspect((model, task), prompt)
    assert seen.predictions[-1].split()[-1] == seen.answer.split()[-1]
    assert own or seen.predictions[-1] == seen.answer


@pytest.mark.parametrize(("name", "own"), CASES)
def test_every_variant_can_be_inspected_on_a_text_and_gets_a_page(name, own, tmp_path):
    if name == "thoughtsformer" and own.get("num_classes"):
        pytest.skip("classes are no tokens")
    model, task = tiny(name, own), Lines(SimpleNamespace())
    seen = inspect((model, task), "abc cab jag", None, tmp_path / "a.html")
    assert seen.answer is None and seen.first == 0 and len(seen.tokens) == 11
    page = (tmp_path / "a.html").read_text()
    assert "next token after the prompt" in page and len(page) < 300_000
    assert any(" predicts " in line for line in inspection_lines(seen))
    assert model.training is False


def test_the_plane_holds_the_directions_of_largest_variance():
    torch.manual_seed(0)
    states = torch.randn(3, 5, 7, dtype=torch.float64) * torch.tensor([9, 1, 4, 1, 1, 1, 1.0])
    plane, explained = principal_plane(states)
    flat = states.flatten(0, 1) - states.flatten(0, 1).mean(0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    share = s[:2] ** 2 / (s**2).sum()
    assert explained == pytest.approx(share.tolist())
    expected = (u * s)[:, :2]
    found = plane.flatten(0, 1)
    torch.testing.assert_close(found.abs(), expected.abs())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (3, 4, 1)])
def test_a_plane_of_too_few_states_is_flat(shape):
    plane, explained = principal_plane(torch.ones(shape, dtype=torch.float64))
    assert plane.shape == (*shape[:2], 2) and not plane.any() and explained == (0.0, 0.0)


def test_a_model_can_be_inspected_with_no_steps(tmp_path):
    model, task = adder("reasoning_tokens")
    seen = inspect((model, task), "1+1=", 0, tmp_path / "a.html")
    assert seen.requested_steps == 0 and seen.num_steps == 1
    assert inspection_lines(seen)[-1].startswith("Without thinking, reasoning_tokens answers")


def test_tokens_without_a_text_have_a_label():
    task = thinkers.build_task("add", max_digits=2)
    start, one = task.encode("1+1=")[:2]
    (end,) = [x for x in range(task.vocab_size) if is_end(task, x, one)]
    assert label(task, end, one) == "[end]" and label(task, one, one) == "1"
    assert label(task, start, one) == "[start]"
    silent = [x for x in range(task.vocab_size) if not task.decode([x]) and x not in (start, end)]
    assert [label(task, x, one) for x in silent] == [f"[{x}]" for x in silent]
    assert label(Lines(SimpleNamespace()), 12, 0) == "␣"


def test_prompts_and_steps_that_cannot_be_read_are_refused():
    model, task = adder("looped")
    with pytest.raises(UsageError, match="an empty prompt"):
        inspect((model, task), "")
    with pytest.raises(UsageError, match="must be one of"):
        inspect((model, task), "12*34=")
    with pytest.raises(ValueError, match="num_steps must be an integer in 1 .. 4"):
        inspect((model, task), "1+1=", 5)
    with pytest.raises(UsageError, match="a model without its task"):
        inspect(model, "1+1=")
    with pytest.raises(UsageError, match="a prompt of 68 tokens"):
        inspect((tiny("looped"), Lines(SimpleNamespace())), "a" * 68)


def test_a_long_prompt_makes_a_page_of_bounded_pictures(tmp_path):
    model = tiny("thoughtsformer", max_length=331, max_steps=16)
    text = "abc hij " * 41
    inspect((model, Lines(SimpleNamespace())), text, 16, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', page)[1])
    words, thoughts = data["attention"]
    assert words["rows"] == words["columns"] == 164 and thoughts["columns"] == 15
    assert len(page) < 3_000_000


# Ablation ---------------------------------------------------------------------------------------


class Echo(Model):
    """Passes on two thoughts, [row, step, 1], and keeps those that it gets back."""

    name = "echo"
    Config = Config

    def __init__(self):
        super().__init__(Config(vocab_size=5, num_steps=2))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, tokens, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False):
        b = len(tokens)
        self.seen = []
        for step in range(2):
            thought = torch.stack(
                [torch.arange(b) * 1.0, torch.full((b,), step * 1.0), torch.ones(b)], -1
            )[:, None]
            self.seen.append(self.thought_hook(thought, step)[:, 0])
        return Thought(torch.zeros(b, tokens.shape[1], 5))

    def prefill(self, *args):
        raise AssertionError

    extend = read_out = flops = prefill


@pytest.mark.parametrize("way", REPLACEMENTS)
def test_each_replacement_is_as_described(way):
    model = Echo()
    ReplacedThoughts(model, way)(torch.zeros(4, 3, dtype=torch.int64))
    first, second = model.seen
    own = [torch.tensor([[0.0, s, 1], [1, s, 1], [2, s, 1], [3, s, 1]]) for s in (0.0, 1.0)]
    if way == "zeros":
        assert not first.any() and not second.any()
    elif way == "another example's":
        assert torch.equal(first, own[0][[3, 0, 1, 2]]) and torch.equal(
            second, own[1][[3, 0, 1, 2]]
        )
    elif way == "shuffled steps":
        assert torch.equal(first, own[1]) and torch.equal(second, own[0])
    else:
        assert (first[:, 1] == 0).all() and (second[:, 1:] == 1).all()
        assert first[:, 0].std() > 0.1 and not torch.equal(first[:, 0], second[:, 0])
    assert model._replacement is None


def test_noise_has_the_mean_and_the_standard_deviation_of_the_thoughts():
    thought = torch.randn(500, 7, 3) * torch.tensor([1.0, 5, 0.1]) + torch.tensor([0.0, 3, -2])
    drawn = REPLACEMENTS["noise"]([thought], 0, torch.Generator().manual_seed(1)).flatten(0, 1)
    thought = thought.flatten(0, 1)
    torch.testing.assert_close(drawn.std(0), thought.std(0), rtol=0.05, atol=0)
    assert ((drawn - thought).mean(0).abs() < 0.1 * thought.std(0)).all()
    assert not torch.allclose(drawn, thought)


def test_a_donor_is_never_the_example_itself():
    with pytest.raises(UsageError, match="a batch of one example"):
        REPLACEMENTS["another example's"]([torch.ones(1, 4, 3)], 0, torch.Generator())


def test_the_count_thoughts_a_pass_are_counted():
    assert count_thoughts(tiny("looped"), 3) == 2  # between steps
    assert count_thoughts(tiny("thinker"), 3) == 3  # the last one is written from, too
    for name in THINKING:
        assert 1 <= count_thoughts(tiny(name), 3) <= 3


@pytest.mark.parametrize("name", THINKING)
def test_ablation_grades_the_same_examples_with_and_without_thoughts(name):
    model, task = adder(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = ablate((model, task), 3, 37)
    assert found.metric == "exact" and found.num_examples == 37 and found.num_steps == 3
    assert found.score == pytest.approx(task.score(model, num_examples=37, num_steps=3)["exact"])
    ways = [way for way in REPLACEMENTS if way != "shuffled steps" or count_thoughts(model, 3) > 1]
    assert [effect.replacement for effect in found.effects] == ways
    for effect in found.effects:
        assert effect.loss.value == pytest.approx(found.score - effect.score)
        assert effect.loss.low <= effect.loss.value <= effect.loss.high
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found == ablate((model, task), 3, 37)


def test_a_higher_loss_is_worse():
    model, task = tiny("thoughtsformer"), Lines(SimpleNamespace())
    found = ablate((model, task), 3, 41)
    for effect in found.effects:
        assert effect.loss.value == pytest.approx(effect.score - found.score)
    assert any(effect.loss.value for effect in found.effects)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_thoughts_is_refused(name):
    model, task = adder(name)
    steps = model.step_counts[0]
    if count_thoughts(model, steps):
        assert thinks(model)
        return
    with pytest.raises(UsageError, match=f"{name} at {steps} step"):
        ablate((model, task), steps, 10)


# The command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    words = ["train", "add/looped", "--out", str(folder), "--training.num_updates", "2"]
    assert main.main([*words, "--model.dim", "32", "--training.evaluate_examples", "5"]) == 0
    return folder


def test_the_command_prints_each_step_and_writes_a_page(run, tmp_path, capsys):
    out = tmp_path / "report.html"
    words = ["inspect", str(run), "--prompt", "12+34=", "--num-steps", "3", "--out", str(out)]
    assert main.main([*words, "--ablate", "--num_examples", "11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "prediction"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[4].startswith("After 3 thinking steps looped answers")
    assert sum(line.startswith(tuple(REPLACEMENTS)) for line in lines) == 4
    assert lines[-1] == f"report {out}"
    page = out.read_text()
    assert "Does the thought matter?" in page and "Thinking steps on 12+34=" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--prompt TEXT, or --ablate"),
        (["--prompt", "1+1=", "--num_examples", "5"], "--num_examples without --ablate"),
        (["--prompt="], "an empty prompt"),
        (["--prompt", "1+x="], "must be one of"),
        (["--prompt", "1+1=", "--num_steps", "99"], "num_steps must be an integer in 1 .. "),
        (["--prompt", "1+1=", "--num_steps", "x"], "an integer"),
        (["--ablate", "--num_steps", "1"], "no thought to replace"),
        (["--ablate", "--num_examples", "1"], "at least 2"),
        (["--promt", "1+1="], "--prompt"),
        (["--prompt", "1+1=", "--out", "/none/at/all.html"], "a folder that exists"),
        (["--ablate", "--out", "/tmp"], "a folder that exists"),
    ],
)
def test_usage_errors_have_three_lines(run, words, message, capsys):
    assert main.main(["inspect", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 3


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main.main(["inspect", str(tmp_path), "--prompt", "1+1="]) == 2
    assert "must be the folder of a run" in capsys.readouterr().err
