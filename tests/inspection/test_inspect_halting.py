"""Inspection of models whose tokens halt: the steps under each token."""

import json
import re

import pytest
import torch
from halting_cases import GATED, halting

import thinkers
from thinkers.errors import UsageError
from thinkers.inspection.inspect import inspect
from thinkers.inspection.page import inspection_lines


def add_with(name):
    task = thinkers.build_task("add", max_digits=2)
    return halting(task, name), task


@pytest.fixture(scope="module")
def case():
    return add_with("looped")


@pytest.mark.parametrize("name", GATED)
def test_each_token_has_the_steps_of_the_forward_pass(name):
    model, task = case = add_with(name)
    seen = inspect(case, "12+34=", 6, halt=0.5)
    row, prompt = torch.tensor([seen.tokens]), torch.tensor([7])
    said = model.answer(row[:, :7], prompt, task.max_answer_length(), 6, halt=0.5)[0]
    assert seen.tokens[7:] == said[: len(seen.tokens) - 7].tolist()
    with torch.no_grad():
        thought = model(row, num_steps=6, prompt_lengths=prompt, halt=0.5, keep_states=True)
    assert torch.equal(seen.taken, thought.steps[0]) and len(seen.taken.unique()) > 1
    assert seen.mean_steps == pytest.approx(float(thought.steps[0, 1:].double().mean()))
    best = model.read_out(thought.states)[0].argmax(-1)
    assert torch.equal(seen.answers.tokens[..., 0], best) and seen.num_steps == 6
    lines = inspection_lines(seen)
    at = next(i for i, line in enumerate(lines) if line.startswith("token "))
    assert lines[at].split()[1:8] == ["[start]", "2", "1", "+", "4", "3", "="]
    assert [int(x) for x in lines[at + 1].split()[1:]] == seen.taken.tolist()
    ends = [[m.end() for m in re.finditer(r"\S+", line)] for line in lines[at : at + 2]]
    assert ends[0] == ends[1]
    assert f"After at most 6 thinking steps, {seen.mean_steps:.2f} in the mean, " in lines[-1]


def test_tokens_that_have_halted_attend_to_nothing_more(case):
    seen = inspect(case, "12+34=", 6, halt=0.5)
    whole = inspect(case, "12+34=", 6, halt=1.0)
    plain = inspect(case, "12+34=", 6)
    assert whole.taken.tolist() == plain.taken.tolist() == [6] * len(plain.tokens)
    for name, weights in plain.attention.items():
        torch.testing.assert_close(whole.attention[name], weights)
        found = seen.attention[name]
        core = found.sum(-1)
        for t, n in enumerate(seen.taken.tolist()):
            # Where a token still thinks, weights are of all attention at the step; then of the
            # coda alone, which reads out every step.
            torch.testing.assert_close(core[:n, t], torch.ones_like(core[:n, t]))
            assert (core[n:, t] < 1).all()


def test_the_page_has_the_steps_and_the_command(case, tmp_path):
    seen = inspect(case, "12+34=", 6, tmp_path / "a.html", halt=0.5)
    page = (tmp_path / "a.html").read_text()
    column = [int(x) for x in re.findall(r'<td class="plain taken">(\d+)</td>', page)]
    assert column == seen.taken.tolist()
    assert len(re.findall(r'<td class="p\d[ f]* h"', page)) == sum(6 - n for n in column)
    assert f"{seen.mean_steps:.2f} in the mean with halt 0.5" in page
    inspect(case, "12+34=", 6, tmp_path / "b.html")
    assert not re.search(
        r'"plain taken"|in the mean|class="p\d h', (tmp_path / "b.html").read_text()
    )
    assert "halt" not in json.dumps(inspection_lines(inspect(case, "12+34=", 6)))


def test_a_long_text_takes_several_lines(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question. " * 40)
    task = thinkers.build_task("text", path=str(tmp_path / "a.txt"), context=12)
    model = halting(task, max_length=199)
    seen = inspect((model, task), "to be or not to be, that is the question. " * 2, 5, halt=0.5)
    lines = inspection_lines(seen)
    shown = [line.split()[1:] for line in lines if line.startswith("steps ")]
    assert len(shown) > 1 and [int(x) for x in sum(shown, [])] == seen.taken.tolist()
    assert max(map(len, lines[6:-1])) <= 100
    assert seen.mean_steps == pytest.approx(float(seen.taken.double().mean()))


def test_a_model_without_a_gate_is_refused(case):
    model = thinkers.build_model("looped", vocab_size=case[1].vocab_size, max_length=20, dim=8)
    with pytest.raises(UsageError, match="without a gate"):
        inspect((model, case[1]), "1+2=", halt=0.5)
