"""Questions in batches: each is answered as `thinkers.answer` answers it alone."""

import pytest
from model_cases import NAMES
from serving_cases import answer_all, asked, run_of

import thinkers
from thinkers.evaluation.generate import UNFINISHED
from thinkers.models import MODELS
from thinkers.serve.protocol import RequestError
from thinkers.serve.questions import Questions
from thinkers.tasks import TASKS
from thinkers.tasks.text import Text

pytestmark = pytest.mark.extras
pytest.importorskip("openai")  # with the tests of the server, not with those of the core

TASK_NAMES = [name for name, task in TASKS.items() if not issubclass(task, Text)]
SUMS = ("1+2=", "34+9=", "57+68=", "0+0=")
VARIANTS = [
    ("looped", "cups", {"written": True}, ("12 23", "45", "13 14 25 35 12")),
    ("decoder", "add", {"width": "own", "coupled": True}, SUMS),
    ("looped", "multiply", {"scratch": True}, ("12*34=", "3*4=", "99*8=")),
    ("looped", "arithmetic", {"registers": "graded"}, ("1+2*3=", "8-9=", "12*34=")),
    *[(name, "add", {}, SUMS) for name in NAMES if name != "looped"],
]


def prompts_of(task, count=5):
    """Held-out prompts of a task, as text."""
    batch = task.batch(0, count, "test")
    rows = zip(batch.tokens, batch.prompt_lengths, strict=True)
    return [task.decode(row[:length]) for row, length in rows]


def check_alone(run, prompts, **fields):
    """Check the answers to prompts that are asked at once; return the sizes of batches."""
    whole, batches = answer_all(run, [asked(x, echo=True, **fields) for x in prompts])
    answers, _ = answer_all(run, [asked(prompts, **fields)])
    steps, halt = fields.get("num_steps"), fields.get("halt")
    for place, (prompt, own) in enumerate(zip(prompts, whole, strict=True)):
        wanted = thinkers.answer(run, prompt, steps, halt=halt)
        reason = "length" if wanted.endswith(UNFINISHED) else "stop"
        assert own.text() == wanted.removesuffix(UNFINISHED)
        text = answers[0].text(place)
        assert text == text.strip() and own.text().endswith(text)
        assert own.ends[0].reason == answers[0].ends[place].reason == reason
    return batches


@pytest.mark.parametrize("name", TASK_NAMES)
def test_an_answer_in_a_batch_is_the_answer_alone(name):
    run = run_of(name, own={"max_steps": 8})
    assert len(check_alone(run, prompts_of(run[1]))) == (3 if name == "automaton" else 1)


@pytest.mark.parametrize(
    ("model", "name", "settings", "prompts"), VARIANTS, ids=lambda x: str(x)[:30]
)
def test_other_settings_of_tasks_and_other_models(model, name, settings, prompts):
    check_alone(run_of(name, model, **settings), prompts)


@pytest.mark.parametrize("name", ["add", "cups", "links"])
def test_questions_whose_tokens_halt(name):
    run = run_of(name, own={"halting": True})
    prompts = prompts_of(run[1])
    for halt, low, high in ((0.0, 1, 1), (0.5, 1, 4), (1.0, 4, 4)):
        check_alone(run, prompts, halt=halt, num_steps=4)
        answers, _ = answer_all(run, [asked(x, halt=halt, num_steps=4) for x in prompts])
        assert all(low <= answer.ends[0].mean_steps <= high for answer in answers)


def test_a_written_answer_counts_the_steps_of_the_last_state():
    run = run_of("cups", own={"halting": True}, written=True)
    check_alone(run, prompts_of(run[1]), halt=0.5)
    (answer,), _ = answer_all(run, [asked("12 23 34", halt=0.5)])
    assert answer.ends[0].tokens == 1 and 1 <= answer.ends[0].mean_steps <= 2


def test_questions_of_unequal_lengths_and_of_other_steps():
    run = run_of("cups")
    prompts = ["12", "12 23 45 15 24", "13 14", "12 12 12"]
    assert check_alone(run, prompts) == [4]
    requests = [asked(prompts[i], num_steps=steps) for i, steps in enumerate((1, 2, 1, 4))]
    answers, batches = answer_all(run, requests)
    assert sorted(batches) == [1, 1, 2]
    assert [answer.ends[0].mean_steps for answer in answers] == [1, 2, 1, 4]


class Spelled:
    """A run on `add` whose answers are these texts, end token included where they have a blank."""

    def __new__(cls, text):
        model, task = run_of("add")
        tokens = task.without_start(task.encode("0+0=" + text.strip()))[4:]
        tokens += [task.end_token] * text.endswith(" ")

        def answer(rows, lengths, room, **own):
            filled = tokens + [task.end_token if text.endswith(" ") else tokens[-1]] * room
            return rows.new_tensor([filled[:room]] * len(rows))

        model.answer = answer
        return model, task


def test_choices_stop_and_max_tokens_of_an_answer():
    run = Spelled("123 ")
    for fields, text, end in (
        ({}, "123", ("stop", 4)),
        ({"max_tokens": 4}, "123", ("stop", 4)),
        ({"max_tokens": 3}, "123", ("length", 3)),
        ({"stop": ("2", "3")}, "1", ("stop", 3)),
        ({"stop": ("2",), "echo": True}, "1+2=1", ("stop", 3)),
        ({"temperature": 0.0, "top_p": 1.0, "seed": 5, "n": 3}, "123", ("stop", 4)),
    ):
        (answer,), batches = answer_all(run, [asked("1+2=", **fields)])
        assert batches == [1]
        for choice in range(fields.get("n", 1)):
            assert answer.text(choice) == text
            assert (answer.ends[choice].reason, answer.ends[choice].tokens) == end
    (answer,), _ = answer_all(Spelled("12"), [asked("1+2=")])
    assert answer.ends[0].reason == "length"


def test_an_answer_that_the_prompt_begins_is_sent_whole():
    run = run_of("add")
    for echo in (True, False):
        (answer,), _ = answer_all(run, [asked("12+34=6", echo=echo)])
        wanted = thinkers.answer(run, "12+34=6").removesuffix(UNFINISHED)
        assert answer.text() == (wanted if echo else wanted.partition("=")[2])


def test_what_a_question_cannot_have_is_refused_by_the_field():
    engine = Questions(*run_of("add"))
    for request, param in (
        (asked(""), "prompt"),
        (asked("12+"), "prompt"),
        (asked("1" * 99 + "+1="), "prompt"),
        (asked("a+b="), "prompt"),
        (asked(["1+2=", "+"]), "prompt"),
        (asked("1+2=", temperature=0.5), "temperature"),
        (asked("1+2=", top_p=0.5), "top_p"),
        (asked("1+2=", num_steps=99), "num_thinking_steps"),
        (asked("1+2=", halt=0.5), "halt"),
    ):
        with pytest.raises(RequestError) as caught:
            engine.rows(request, print)
        assert caught.value.param == param and caught.value.status == 400


def test_tokens_of_a_prompt_are_counted_without_the_start_token():
    engine = Questions(*run_of("add"))
    assert engine.model.name in MODELS
    assert [row.prompt_tokens for row in engine.rows(asked("1+2="), print)] == [4]
