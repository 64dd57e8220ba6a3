"""`memory=` of answer, generate and stream: what a model reads besides the prompt."""

import pytest
import torch
from model_cases import tiny
from reading_cases import facts, letters, sensitive, written

import thinkers
from thinkers.errors import UsageError
from thinkers.memory import LongTermMemory
from thinkers.models.generation import ids_below

QUESTIONS = [f"e{i} r{j} ?" for i in range(5) for j in range(5)]


@pytest.fixture(scope="module")
def run():
    return facts()


@pytest.fixture(scope="module")
def memory(run, tmp_path_factory):
    made = written(tmp_path_factory.mktemp("memory") / "m", run, *"abc")
    yield made
    made.close()


def test_an_answer_is_that_of_the_model_with_the_memory(run, memory):
    model, task = run
    rows = torch.tensor([task.encode(question) for question in QUESTIONS])
    ends = torch.full((len(rows),), 3)

    def answers(**given):
        with ids_below(task.num_output_tokens):
            return model.answer(rows, ends, 1, **given)[:, 0]

    for part in (memory, memory.part(["b"])):
        with_it = answers(memory=part)
        expected = [task.with_answer(q, [x]) for q, x in zip(QUESTIONS, with_it, strict=True)]
        for given in (part, [part]):
            found = [thinkers.answer(run, question, memory=given) for question in QUESTIONS[:5]]
            assert found == expected[:5]
    assert (answers(memory=memory) != answers()).any()


def test_an_empty_memory_is_no_memory(run, tmp_path):
    with LongTermMemory.create(tmp_path / "m", run) as empty:
        for question in QUESTIONS[:5]:
            plain = thinkers.answer(run, question)
            assert thinkers.answer(run, question, memory=empty) == plain
            assert thinkers.answer(run, question, memory=[None]) == plain


def test_samples_of_a_text_read_each_its_own_memory(tmp_path):
    run = letters(tmp_path)
    memory = LongTermMemory.create(tmp_path / "m", run)
    memory.write(["hgfe dcba " * 4])
    # Beyond the first window too; a row does not depend on those beside it.
    asked = dict(max_new_tokens=20, seed=3, temperature=0)
    alone = thinkers.generate(run, "abc", **asked, memory=memory)
    plain = thinkers.generate(run, "abc", **asked)
    mixed = thinkers.generate(run, "abc", **asked, num_samples=3, memory=[None, memory, None])
    assert mixed == [*plain, *alone, *plain] and alone != plain
    assert (
        "".join(x[0] for x in thinkers.stream(run, "abc", **asked, memory=memory)) == alone[0][3:]
    )
    with pytest.raises(UsageError, match="memory must be that of 2 rows, got that of 1"):
        thinkers.generate(run, "abc", num_samples=2, memory=[memory])


@pytest.mark.parametrize("call", [thinkers.answer, thinkers.generate])
def test_a_model_without_memory_takes_none(call, memory):
    task = thinkers.build_task("add", max_digits=2)
    model = tiny("decoder", vocab_size=task.vocab_size, max_length=task.max_length)
    if call is thinkers.generate:
        task = thinkers.build_task("text", path=__file__, vocabulary="byte", context=16)
        model = tiny("decoder", vocab_size=task.vocab_size)
    for given in (memory, [None]):
        with pytest.raises(UsageError) as error:
            call((model, task), "12+34=", memory=given)
        assert str(error.value).splitlines() == [
            "found: a memory for decoder without one",
            "expected: thinker, trained with memory (--model.memory blocks)",
            "fix: leave memory out, or train such a model",
        ]


def test_what_cannot_be_read_is_refused(run, memory):
    with pytest.raises(UsageError, match="found: num_steps 1 with a memory\nexpected: at least 2"):
        thinkers.answer(run, QUESTIONS[0], 1, memory=memory)
    with pytest.raises(UsageError, match="found: num_steps 1 with a memory"):
        thinkers.answer(facts(num_steps=1), QUESTIONS[0], memory=[None])
    with pytest.raises(UsageError, match="written by the model .*\n.*\n.*recompress") as error:
        thinkers.answer(facts(mixing=4), QUESTIONS[0], memory=memory)
    assert error.value.exit_code == 2
    with pytest.raises(TypeError, match="memory must be a LongTermMemory"):
        thinkers.answer(run, QUESTIONS[0], memory="folder")


@pytest.mark.parametrize("own", [{}, {"written": True}])
def test_tasks_whose_answers_stand_at_the_prompt_read_it_too(own, tmp_path):
    task = thinkers.build_task("cups", **own)
    run = sensitive({"vocab_size": task.vocab_size, "section": 4}), task
    prompts = [f"{a}{b} {b}{a} {a}3" for a in (1, 2) for b in (4, 5)]
    with LongTermMemory.create(tmp_path / "m", run) as memory:
        memory.write(["12 23 34 45", "54 43 32 21"])
        without = [thinkers.answer(run, prompt) for prompt in prompts]
        assert [thinkers.answer(run, prompt, memory=memory) for prompt in prompts] != without
