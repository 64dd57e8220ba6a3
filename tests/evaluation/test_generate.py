"""`answer`: prompts are read whole or refused, and answers are printed whole or refused."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import tiny
from number_oracles import solve
from torch import nn

import thinkers
from thinkers.errors import UsageError
from thinkers.evaluation.generate import UNFINISHED, fit_prompt
from thinkers.models import MODELS
from thinkers.tasks import TASKS, build_task
from thinkers.tasks.babi import MARKS
from thinkers.tasks.number_task import NumberTask
from thinkers.tasks.number_tokens import END, EQUALS

NUMBERS = [name for name, task in TASKS.items() if issubclass(task, NumberTask)]


class Sized:
    def __init__(self, max_length):
        self.max_length = max_length


class Right(nn.Module):
    """Model that continues every prompt of a number task rightly, token by token."""

    causal = True

    def __init__(self, name, task, max_length=None):
        super().__init__()
        self.name, self.task = name, task
        self.config = Sized(max_length or task.max_length)
        self.weight = nn.Parameter(torch.zeros(1))

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        assert tokens.shape[1] + max_new_tokens <= self.config.max_length
        row = tokens[0].tolist()
        end = row.index(EQUALS) + 1
        question = self.task.decode(row[:end])
        right = [*self.task.encode(question + solve(self.name, question))[end:], END]
        rest = right[len(row) - end :]
        out = torch.full((1, max_new_tokens), END)
        count = min(len(rest), max_new_tokens)
        out[0, :count] = torch.tensor(rest[:count])
        return out


def ask(prompt, name="add", max_length=None, **own):
    task = build_task(name, **own)
    return thinkers.answer((Right(name, task, max_length), task), prompt)


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("12+34=", "12+34=46"),
        ("12+34=6", "12+34=46"),
        ("57+68=25", "57+68=125"),
        ("57+68=125", "57+68=125"),
        ("99+1=0", "99+1=100"),
        ("99+1=00", "99+1=100"),
        ("12 + 34 =", "12+34=46"),
        (" 12+ 34 = 6\n", "12+34=46"),
    ],
)
def test_prompt_and_answer_are_decoded_as_one(prompt, whole):
    assert ask(prompt) == ask(prompt, blanks=True) == whole


@pytest.mark.parametrize(
    ("name", "prompt", "whole"),
    [
        ("subtract", "12-34=", "12-34=-22"),
        ("subtract", "12 - 34 = -2", "12-34=-22"),
        ("multiply", "12*34=08", "12*34=408"),
        ("arithmetic", "12-3*45=", "12-3*45=-123"),
        ("arithmetic", "12-3*45=-23", "12-3*45=-123"),
        ("factorise", "360=", "360=2^3*3^2*5"),
        ("factorise", "360=2^3*", "360=2^3*3^2*5"),
        ("copy", "1205=12", "1205=1205"),
        ("reverse", "314=4", "314=413"),
        ("rotate", "3141,2=", "3141,2=4131"),
        ("jump", "2010=12", "2010=1202"),
    ],
)
def test_every_number_task_prints_the_whole_text(name, prompt, whole):
    assert ask(prompt, name) == whole


def test_bases_and_lower_case_digits_are_read():
    bases = dict(min_in_base=2, max_in_base=16)
    assert ask("16>10: a + 3 =", **bases) == "16>10:A+3=13"
    assert ask("2>10:11+1=", **bases) == "2>10:11+1=4"


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NUMBERS), st.integers(0, 200), st.data())
def test_any_beginning_of_the_answer_gives_the_same_text(name, row, data):
    task = build_task(name)
    batch = task.batch(row, 1, "test")
    question = task.decode(batch.tokens[0, : batch.prompt_lengths[0]])
    answer = task.without_start(task.encode(solve(name, question)))
    begun = task.decode([*task.encode(question), *answer[: data.draw(st.integers(0, len(answer)))]])
    spaced = re.sub(r"([-+*,=])", r" \1 ", begun)
    assert ask(begun, name) == ask(spaced, name) == question + solve(name, question)


@pytest.mark.parametrize(
    ("name", "prompt", "place"),
    [
        ("add", "12+34==", 6),
        ("add", "=", 0),
        ("add", "012+34=", 1),
        ("add", "00+1=", 1),
        ("add", "1+2=3=", 5),
        ("add", "1+2+3=", 3),
        ("add", "+1=", 0),
        ("add", "-1+2=", 0),
        ("add", "12=", 2),
        ("add", "1++2", 2),
        ("add", "1 2+3=", 1),
        ("add", "1+2=-3", 4),
        ("add", "_1+2=", 0),
        ("add", "1+2=3=x", 5),
        ("add", "10>10:1+2=", 2),
        ("add", "1+2=_", 4),
        ("subtract", "3--4=", 2),
        ("subtract", "3-4=--1", 5),
        ("arithmetic", "12=", 2),
        ("arithmetic", "1+*2=", 2),
        ("arithmetic", "1+2-=", 4),
        ("factorise", "12*3=", 2),
        ("factorise", "1234=", 3),
        ("factorise", "12=2^2^2", 6),
        ("factorise", "12=*", 3),
        ("copy", "=", 0),
        ("copy", "1=2=3", 3),
        ("sort", "3,1=", 1),
        ("rotate", "314=", 3),
        ("rotate", "314,12=", 5),
        ("rotate", "314,7=", 4),
        ("jump", "205=", 2),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_first_wrong_character(name, prompt, place):
    with pytest.raises(UsageError, match=rf"character {place} of {re.escape(repr(prompt))}"):
        ask(prompt, name)


def test_a_chain_has_the_operators_of_its_task():
    assert ask("1-2=", "arithmetic", operators="-") == "1-2=-1"
    with pytest.raises(UsageError, match="character 1"):
        ask("1+2=", "arithmetic", operators="-")


@pytest.mark.parametrize("number", ["0", "1"])
def test_a_number_without_factors_is_refused(number):
    with pytest.raises(UsageError, match=f"at least 2, got {number}"):
        ask(f"{number}=", "factorise")


# limits


@pytest.mark.parametrize(
    ("name", "prompt", "needed"),
    [
        ("add", "123+456=", 9 + 5),
        ("subtract", "100-999=", 9 + 5),
        ("multiply", "1000*1000=", 11 + 9),
        ("arithmetic", "9*9*9*9*9*9=", 13 + 7),
        ("copy", "12345678901=", 13 + 12),
        ("rotate", "12345678901,1=", 15 + 12),
    ],
)
def test_an_answer_is_whole_or_refused(name, prompt, needed):
    task = {"add": {"max_digits": 2}}.get(name, {})
    assert ask(prompt, name, max_length=needed, **task) == prompt + solve(name, prompt)
    for limit in (needed - 1, len(prompt) + 2):
        with pytest.raises(UsageError, match=rf"at most {limit} together, the max_length"):
            ask(prompt, name, max_length=limit, **task)


def test_an_answer_in_a_smaller_base_is_whole_or_refused():
    own = dict(min_in_base=16, max_in_base=16, min_out_base=2, max_out_base=2, max_length=2)
    task = build_task("copy", **own)
    read, room = fit_prompt(Right("copy", task, max_length=99), task, "F0A=")
    assert read.longest == 3 * 4 + 1 == room


@pytest.mark.parametrize("prompt", ["12+34=0046", "12+34=0123456789"])
def test_a_prompt_that_holds_a_whole_answer_is_refused(prompt):
    with pytest.raises(UsageError, match="fewer than 4, the most"):
        ask(prompt, max_digits=2, max_length=99)


def test_an_answer_without_its_end_says_so():
    task = build_task("add", max_digits=2)
    model = tiny("decoder", vocab_size=task.vocab_size, max_length=task.max_length)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # every token is 0
    assert thinkers.answer((model, task), "1+2=") == "1+2=0000" + UNFINISHED
    assert UNFINISHED not in ask("99+99=", max_digits=2)


def test_examples_with_longer_answers_than_the_task_says_are_not_graded():
    class Short(TASKS["copy"]):
        def max_answer_length(self):
            return 3

    task = Short(TASKS["copy"].Config(max_length=5))
    with pytest.raises(UsageError, match="max_answer_length must be at least 6, .* got 3"):
        task.score(Right("copy", task), num_examples=50)


# ids that the task has no name for


WIDE = [
    *((name, {}) for name in MODELS),
    ("thinker", {"output": "parallel"}),
]


def prefer_ids_from(first, model):
    """Make the tokens from `first` on the likeliest."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim and len(weight) == model.config.vocab_size:
                weight[first:] *= 20


@pytest.mark.parametrize(("name", "own"), WIDE)
def test_ids_beyond_the_vocabulary_of_the_task_are_never_chosen(name, own):
    task = build_task("add", max_digits=2)
    model = tiny(name, own, vocab_size=9 * task.vocab_size, max_length=task.max_length)
    prefer_ids_from(task.vocab_size, model)
    row, length = torch.tensor([task.encode("12+34=")]), torch.tensor([7])
    assert model.answer(row, length, 4).max() >= task.vocab_size  # as the model itself may
    for prompt in ("1+2=", "12+34=", "98+7=6"):
        thinkers.answer((model, task), prompt)
        seen = thinkers.inspect((model, task), prompt)
        assert seen.answers.tokens.max() < task.vocab_size
    graded = []

    def recorded(*args, **more):
        graded.append(type(model).answer(model, *args, **more))
        return graded[-1]

    model.answer = recorded
    task.score(model, num_examples=20)
    assert graded[0].max() < task.vocab_size


def test_a_non_causal_model_chooses_a_word_of_the_task():
    task = build_task("babi", answers="chosen", num_stories=20, num_held_out=4)
    model = tiny(
        "thoughtsformer", {"causal": False}, vocab_size=5 * task.vocab_size, max_length=100
    )
    prefer_ids_from(task.vocab_size, model)
    row = torch.tensor([task.encode("Anna ran to the attic. Where is Anna?")])
    assert model.answer(row, torch.tensor([row.shape[1]]), 1).max() >= task.vocab_size
    said = thinkers.answer((model, task), "Anna ran to the attic. Where is Anna?")
    word = said.removeprefix("Anna ran to the attic. Where is Anna?").strip()
    assert word in (*MARKS, *task.words)
    assert task.score(model, num_examples=10)["exact"] <= 1


def test_samples_of_a_text_hold_no_ids_beyond_its_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("some words on a line\n" * 40)
    task = build_task("text", path=str(tmp_path / "text.txt"), vocabulary="character", context=8)
    model = tiny("decoder", vocab_size=20 * task.vocab_size, max_length=16)
    for temperature in (0.0, 2.0):
        (text,) = thinkers.generate(
            (model, task), "some", max_new_tokens=40, temperature=temperature, top_k=50
        )
        assert len(text) == 44 and set(text) <= set("some words on a line\n")


# other texts


def star(prompt, max_length=99, **own):
    task = build_task("star_graph", **(dict(path_length=3, num_labels=20) | own))

    class Path(Right):
        def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
            return torch.tensor([[12, 9, task.end_token][-max_new_tokens:]])

    return thinkers.answer((Path("", task, max_length), task), prompt)


def test_labels_of_a_path_are_not_joined_to_those_of_the_prompt():
    graph = "3,7|12,9|3,12|7,4|/3,9="
    assert star(f"{graph}3") == f"{graph}3,12,9"


@pytest.mark.parametrize(
    "graph",
    [
        "3,7|12,9|3,12|7,4|/3,8=",
        "3,7|12,9|3,12|7,4|/3,3=",
        "3,7|12,9|5,12|7,4|/3,9=",
        "3,7|7,9|3,9|7,4|/3,9=",
        "3,7|7,3|/3,7=",
        "/3,9=",
        "3,7|12,9|3,12|7,4|/3,9",
        "3,12",
    ],
)
def test_what_is_no_star_is_refused(graph):
    with pytest.raises(UsageError):
        star(graph)


def test_a_path_longer_than_those_of_training_is_whole_or_refused():
    graph = "3,7|7,4|4,9|9,1|1,2|/3,2="
    assert len(build_task("star_graph", num_labels=20).encode(graph)) == 20
    with pytest.raises(UsageError, match="answer and its end may take 7\nexpected: at most 26"):
        star(graph, max_length=26)
    star(graph, max_length=27)


@pytest.mark.parametrize(
    "story", ["Anna ran to the attic.", "Anna", "?"[:0], "Where is Anna? attic. the"]
)
def test_a_story_needs_a_question_and_room_for_its_answer(story):
    task = build_task("babi", num_stories=20, num_held_out=4)
    with pytest.raises(UsageError):
        thinkers.answer((Right("", task), task), story)


def test_a_story_is_printed_as_it_was_typed_with_its_answer_after_a_space():
    task = build_task("babi", num_stories=20, num_held_out=4)

    class Word(Right):
        def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
            return torch.tensor([[*task.without_start(task.encode("attic")), task.end_token]])

    story = "Anna ran to the Attic. Where is Anna?"
    assert thinkers.answer((Word("", task), task), story + "\n") == f"{story} attic"
