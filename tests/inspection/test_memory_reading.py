"""What was read from a long-term memory, against the model and searches of the memory."""

import re
from dataclasses import replace

import pytest
import torch
from html_reader import stands_alone
from model_cases import tiny
from reading_cases import facts, letters, written

import thinkers
from thinkers.errors import UsageError
from thinkers.inspection import memory_inspection
from thinkers.inspection.inspect import inspect
from thinkers.inspection.memory_page import memory_lines
from thinkers.inspection.memory_reading import ask
from thinkers.inspection.page import inspection_lines, write
from thinkers.memory import LongTermMemory
from thinkers.models.generation import ids_below

PROMPT = "e1 r2 ?"


@pytest.fixture(scope="module")
def run():
    return facts()


@pytest.fixture(scope="module")
def memory(run, tmp_path_factory):
    """Six blocks, which no test changes."""
    made = written(tmp_path_factory.mktemp("memory") / "m", run, *"abc", keep_text=True)
    yield made
    made.close()


def forward(run, memory, steps, top=None):
    """The pass that reads `top` blocks, all of them if None, and its latents."""
    model, task = run
    before, model.config = model.config, replace(model.config, memory_top=top)
    tokens = torch.tensor([task.encode(PROMPT)])
    with torch.no_grad():
        found = model(
            tokens,
            num_steps=steps,
            prompt_lengths=torch.tensor([3]),
            keep_states=True,
            memory=memory,
        )
    model.config = before
    return found


@pytest.mark.parametrize("steps", [2, 3])
def test_blocks_scores_and_attention_are_those_of_the_pass(run, memory, steps):
    seen = inspect(run, PROMPT, steps, memory=memory)
    thought, every = forward(run, memory, steps, 2), forward(run, memory, steps)
    read = seen.memory
    assert read.size == 6 and [(x.section, x.step) for x in read.steps] == [
        (None, s) for s in range(2, steps + 1)
    ]
    for s in range(1, steps):
        blocks = [x for x in read.blocks if x.step == s + 1]
        # The latents of the step before ask; the memory searches by itself.
        found = memory.search(thought.extra["latents"][:, s - 1], 2)
        assert [x.id for x in blocks] == found.ids[0].tolist()
        assert [x.score for x in blocks] == pytest.approx(found.scores[0].tolist(), abs=1e-4)
        ids = thought.extra["blocks"][0, s].tolist()
        masses = dict(zip(ids, thought.extra["block_mass"][0, s].tolist(), strict=True))
        assert {x.id: x.mass for x in blocks} == pytest.approx(masses)
        (step,) = [x for x in read.steps if x.step == s + 1]
        assert step.mass == pytest.approx(sum(masses.values()))
        # Of a pass that reads all, the share of those that the index would choose in it.
        best = memory.search(every.extra["latents"][:, s - 1], 2).ids[0]
        order, mass = every.extra["blocks"][0, s], every.extra["block_mass"][0, s]
        share = mass[torch.isin(order, best)].sum() / mass.sum()
        assert step.covered == pytest.approx(float(share), rel=1e-4)
    kept = memory.read([x.id for x in read.blocks])
    assert [x.text for x in read.blocks] == list(kept.texts)
    assert [x.place for x in read.blocks] == [
        f"{topic}.txt:{line}" for topic, line in zip(kept.topics, kept.lines[:, 0], strict=True)
    ]


def test_the_answer_without_each_block_is_that_of_a_memory_without_it(run, memory):
    model, task = run
    read = inspect(run, PROMPT, memory=memory).memory
    assert read.folder == str(memory.store.folder) and read.topics is None
    by_mass = sorted(read.blocks, key=lambda x: -x.mass)
    assert [x.id for x in read.without] == [x.id for x in by_mass]
    tokens, end = torch.tensor([task.encode(PROMPT)]), torch.tensor([3])
    (value,) = task.encode(read.answer)
    parts = [(memory, read.answer, read.chance)]
    parts += [(memory.part(without=[x.id]), x.answer, x.chance) for x in read.without]
    parts += [(None, read.alone.answer, read.alone.chance)]
    for part, answer, chance in parts:
        given = {} if part is None else {"memory": part}
        assert thinkers.answer(run, PROMPT, **given) == f"{PROMPT} {answer}"
        with torch.no_grad(), ids_below(task.num_output_tokens):
            logits = model(tokens, prompt_lengths=end, **given).logits[0, -1]
        chances = logits[: task.num_output_tokens].double().softmax(0)
        assert chance == pytest.approx(float(chances[value]), rel=1e-5)
    assert len({x.chance for x in read.without} | {read.chance, read.alone.chance}) == 4


def test_only_a_part_is_read_and_as_many_blocks_as_asked(run, memory):
    model = run[0]
    for top, topics, number in ((1, None, 1), (5, None, 5), (9, None, 6), (5, ["b"], 2)):
        part = memory if topics is None else memory.part(topics)
        found = ask(run, PROMPT, part, top=top).blocks
        assert len(found) == number and all(x.topic == "b" or not topics for x in found)
    seen = inspect(run, PROMPT, memory=[part], top=5).memory
    assert seen.blocks == found and seen.topics == ("b",) and seen.top == 5
    assert model.config.memory_top == 2
    asked = ask(run, PROMPT, memory)
    assert asked.answer == thinkers.answer(run, PROMPT, memory=memory)
    assert asked.blocks == inspect(run, PROMPT, memory=memory).memory.blocks


def test_what_cannot_be_compared_or_left_out_is_said(run, memory, monkeypatch):
    monkeypatch.setattr(memory_inspection, "MOST_COMPARED", 5)
    monkeypatch.setattr(memory_inspection, "MOST_LEFT_OUT", 1)
    read = inspect(run, PROMPT, memory=memory).memory
    assert [x.covered for x in read.steps] == [None] and len(read.without) == 1
    text = "\n".join(memory_lines(read))
    assert text.count("not left out") == 1 and "2 blocks that were read, of 6" in text


def test_an_empty_memory_is_read_without_a_block(run, tmp_path):
    with LongTermMemory.create(tmp_path / "m", run) as empty:
        seen = inspect(run, PROMPT, out=tmp_path / "a.html", memory=empty)
        assert ask(run, PROMPT, empty).blocks == seen.memory.blocks == ()
    assert seen.memory.answer == seen.memory.alone.answer == seen.answer
    assert "no block was read, of 0" in inspection_lines(seen)


def test_the_sections_of_a_text_read_each_their_own(tmp_path):
    run = letters(tmp_path)
    memory = LongTermMemory.create(tmp_path / "m", run)
    memory.write(["hgfe dcba " * 4], keep_text=True)
    seen = inspect(run, "abcdefgh", memory=memory, out=tmp_path / "a.html")
    read = seen.memory
    assert [(x.section, x.step) for x in read.steps] == [(1, 2), (2, 2)]
    thought = run[0](torch.tensor([seen.tokens]), memory=memory)
    for section in (1, 2):
        ids = {x.id for x in read.blocks if x.section == section}
        assert ids == set(thought.extra["blocks"][0, section - 1, 1].tolist())
    assert read.answer == seen.predictions[-1] and read.chance == pytest.approx(
        float(seen.answers.probabilities[-1, -1, 0]), rel=1e-5
    )
    assert "section 2, step 2: " in "\n".join(memory_lines(read))
    assert ask(run, "abcdefgh", memory).answer == thinkers.answer(run, "abcdefgh", memory=memory)


def test_a_block_of_a_higher_level_has_the_text_of_its_sections(tmp_path):
    run = facts(memory_levels=2, memory_group=2, read_level=2, memory_top=3)
    memory = written(tmp_path / "m", run, "a", "b", keep_text=True)
    blocks = {x.topic: x for x in ask(run, PROMPT, memory).blocks}
    assert {x.level for x in blocks.values()} == {2} and blocks["b"].lines == (1, 2)
    assert blocks["b"].text == "e1 r1 e2 n3 n4 e1 r2 e4\nn0 e1 r1 e1"
    memory.write(["e0 r0 e0"], "c")
    (single,) = [x for x in ask(run, PROMPT, memory).blocks if x.topic == "c"]
    assert single.level == 1 and single.text is None and single.place == "line:1"


def test_what_cannot_be_read_is_refused(run, memory):
    with pytest.raises(UsageError, match="memory must be that of 1 row, got that of 2"):
        inspect(run, PROMPT, memory=[memory, memory])
    with pytest.raises(UsageError, match="top must be None without a memory"):
        inspect(run, PROMPT, top=3)
    with pytest.raises(UsageError, match="num_steps 1 with a memory"):
        inspect(run, PROMPT, 1, memory=memory)
    for call in (inspect, ask):
        with pytest.raises(UsageError, match="top must be an integer at least 1, got 0"):
            call(run, PROMPT, memory=memory, top=0)
    task = thinkers.build_task("add", max_digits=2)
    plain = tiny("decoder", vocab_size=task.vocab_size, max_length=task.max_length), task
    for call in (inspect, ask):
        with pytest.raises(UsageError, match="found: a memory for decoder without one"):
            call(plain, "1+2=", memory=memory)
    assert run[0].config.memory_top == 2


def test_texts_of_blocks_add_no_element_to_a_page(run, memory, tmp_path):
    seen = inspect(run, PROMPT, memory=memory)
    hostile = "</td></tr></table><script>window.hit=1</script>\x1b[31m\u202e"
    blocks = [replace(x, text=hostile, topic=hostile, source=hostile) for x in seen.memory.blocks]
    counts = []
    for read in (seen.memory, replace(seen.memory, blocks=tuple(blocks))):
        write(tmp_path / "a.html", replace(seen, memory=read))
        page = (tmp_path / "a.html").read_text()
        assert stands_alone(page)
        counts.append([len(re.findall(rf"<{name}\b", page)) for name in ("tr", "td", "script")])
    assert counts[0] == counts[1]
    assert all(x.isprintable() for x in memory_lines(replace(seen.memory, blocks=tuple(blocks))))
