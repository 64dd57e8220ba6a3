"""Intermediate results of products and chains, against plain Python: written, or in registers."""

import re

import pytest
import torch
from working_oracles import parse, registers, working, written

import thinkers
from thinkers.errors import UsageError
from thinkers.models import build_model
from thinkers.tasks import build_task
from thinkers.tasks.number_tokens import COMMA, END, NEGATIVE, PLUS, VOCAB_SIZE

BASE_3 = dict.fromkeys(("min_in_base", "max_in_base", "min_out_base", "max_out_base"), 3)
SIZES = [
    ("multiply", {}),
    ("multiply", dict(max_digits=3, blanks=True)),
    ("multiply", dict(max_digits=4) | BASE_3),
    ("multiply", dict(min_digits=2, max_digits=2)),
    ("arithmetic", {}),
    ("arithmetic", dict(max_digits=3, blanks=True)),
    ("arithmetic", dict(product_share=0.6)),
    ("arithmetic", dict(max_digits=3, min_operators=2) | BASE_3),
]
TINY = dict(dim=16, num_layers=1, num_heads=2, num_steps=3, max_length=80)


def questions(task, batch):
    """Yield each row's question, without blanks."""
    for row, length in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), strict=True):
        yield task.decode(row[:length]).rstrip("=").replace("_", "")


def base_of(own):
    return own.get("min_in_base", 10)


@pytest.mark.parametrize("name, own", SIZES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_intermediate_results_are_written_before_the_answer(name, own, split):
    task = build_task(name, seed=5, scratch=True, **own)
    batch, seen = task.batch(2, 100, split), set()
    columns = batch.tokens, batch.targets, batch.prompt_lengths
    rows = zip(questions(task, batch), *columns, strict=True)
    for question, tokens, targets, length in rows:
        answer = targets[targets != -100].tolist()
        assert tokens[:length].tolist() == task.encode(f"{question}=")
        assert answer[:-1] == tokens[length : length + len(answer) - 1].tolist()
        text = task.with_answer(question, answer)
        assert text == written(name, question, base_of(own))
        assert text == task.with_answer(f"{question}=", answer)
        row = [*tokens[:length].tolist(), *answer]
        assert task.encode(task.decode(row)) == row[:-1]
        assert answer[-1] == END and len(answer) <= task.max_answer_length()
        seen.add("".join(parse(question)[1]))
    assert batch.due is None and task.max_due is None
    assert len(seen) == (1 if name == "multiply" else 9 if "min_operators" in own else 12)


def test_known_examples_in_text():
    multiply, chain = (build_task(x, scratch=True) for x in ("multiply", "arithmetic"))
    assert multiply.decode(multiply.encode("12*34=48,36,408")) == "12*34=48,36,408"
    assert chain.encode("1-2*3=-2*3+1")[6:] == [20, NEGATIVE, 2, 18, 3, PLUS, 1]
    for text in ("3-20*5=-20*5+3,100,-100,-97", "7*8*9=7*8*9,56,56,504,504", "2-9-1=2-9-1,-7,-8"):
        assert written("arithmetic", text.partition("=")[0]) == text
        assert chain.decode(chain.encode(text)) == text


def test_blanks_put_each_intermediate_result_at_one_place():
    task = build_task("arithmetic", scratch=True, blanks=True, max_digits=1)
    row = task.encode("3-4*5=")
    assert len(row) == 7
    batch = task.batch(0, 200)
    ends = batch.prompt_lengths[:, None] + torch.tensor([6, 9, 13, 17])
    one = batch.tokens[(batch.tokens[:, :6] == task.start_token).any(1)]
    assert (one.gather(1, ends) == COMMA).all() and len(one) == 200
    typed = "3-4*5 = -4*5+3,20,-20,___,"
    assert task.read_prompt(typed).tokens == task.encode(typed)
    assert task.with_answer(typed, [NEGATIVE, 7, 1, END]) == "3-4*5=-4*5+3,20,-20,-17"
    with pytest.raises(UsageError, match="an intermediate result of 2 characters, '-8'"):
        task.read_prompt("3-4*2=-4*2+3,_8,-8,")


@pytest.mark.parametrize("name, own", SIZES)
def test_registers_have_the_digits_of_intermediate_results_as_targets(name, own):
    task, free = (build_task(name, seed=5, registers=x, **own) for x in ("graded", "free"))
    size, base = task.config.max_digits, base_of(own)
    for split in ("train", "test"):
        batch, control = task.batch(2, 40, split), free.batch(2, 40, split)
        for field in ("tokens", "prompt_lengths", "lengths", "keys", "due"):
            assert getattr(batch, field).equal(getattr(control, field))
        for i, question in enumerate(questions(task, batch)):
            prompt, length = int(batch.prompt_lengths[i]), int(batch.lengths[i])
            held = registers(name, question, size, base)
            first = prompt - 1 - len(held)
            row = batch.tokens[i, :prompt].tolist()
            assert row[first:] == list(range(VOCAB_SIZE, VOCAB_SIZE + len(held) + 1))
            targets, due = batch.targets[i].tolist(), batch.due[i].tolist()
            plain = build_token(task, held)
            assert targets[first : prompt - 1] == plain, question
            assert due[first : prompt - 1] == [step for _, step in held]
            assert set(due[:first]) == {1} and set(due[length:]) <= {0}
            last = max(step for _, step in held)
            assert set(due[prompt - 1 : length]) == {task.max_due} == {last + 2}
            assert control.targets[i].tolist() == [-100] * (prompt - 1) + targets[prompt - 1 :]
            assert targets[:first] == [-100] * first
    assert task.vocab_size == VOCAB_SIZE + len(held) + 1


def build_token(task, held):
    """Return the tokens of the texts of registers; a sign of an order or result is no operator."""
    symbols = {"+": 16, "-": 17, "*": 18, "_": 23}
    found = [symbols[x] if x in symbols else int(x, 16) for x, _ in held]
    for place, name in enumerate(task.register_names):
        if name.endswith(".sign"):
            found[place] = NEGATIVE if held[place][0] == "-" else PLUS
    return found


@pytest.mark.parametrize("name", ["multiply", "arithmetic"])
def test_forms_have_the_same_questions_in_the_same_splits(name):
    forms = [{}, dict(scratch=True), dict(registers="graded"), dict(registers="free")]
    found = [build_task(name, seed=1, **form) for form in forms]
    for split in ("train", "valid", "test"):
        rows = [list(questions(task, task.batch(0, 50, split))) for task in found]
        assert all(row == rows[0] for row in rows)
    trained = {q for i in range(4) for q in questions(found[2], found[2].batch(i, 500))}
    held = {
        q for batch in found[2].evaluation_batches("test", 200) for q in questions(found[2], batch)
    }
    swapped = {"*".join(reversed(q.split("*"))) for q in held if q.count("*") == 1}
    assert not trained & held and not (name == "multiply" and trained & swapped)


class Writer(torch.nn.Module):
    """A model that answers each prompt with the tokens of `write(question)`."""

    causal = True

    def __init__(self, task, write):
        super().__init__()
        self.task, self.write = task, write
        self.config = type("Config", (), {"takes_steps": True})()

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        found = torch.full((len(tokens), max_new_tokens), 7)
        for row, given, length in zip(found, tokens.tolist(), prompt_lengths, strict=True):
            text = self.task.decode(given[-int(length) :])
            own = self.write(text.rstrip("=").replace("_", ""))
            row[: len(own)] = torch.tensor(own)
        return found


@pytest.mark.parametrize("name, own", SIZES[:1] + SIZES[4:5])
def test_exact_looks_at_the_part_after_the_last_comma(name, own):
    task = build_task(name, scratch=True, **own)

    def right(question):
        text = written(name, question, base_of(own))
        return [*task.encode(text)[task.encode(text).index(20) + 1 :], END]

    def changed(row):  # an intermediate result that is shorter, and wrong
        return row[1:]

    def last_wrong(row):
        return [*row[:-2], (row[-2] + 1) % 10, END]

    def unfinished(row):
        return row[:-1]

    def silent(row):
        return row[len(row) - row[::-1].index(COMMA) :]

    shares = {}
    for alter in (list, changed, last_wrong, unfinished, silent):
        scores = task.score(Writer(task, lambda q, alter=alter: alter(right(q))), "test", 40)
        shares[alter] = scores["exact"]
        grades = task.grade(Writer(task, lambda q, alter=alter: alter(right(q))), "test", 40)
        assert float(grades.mean()) == scores["exact"]
        assert (scores["per_token"] == 1) == (alter is list)
    assert shares == {list: 1, changed: 1, last_wrong: 0, unfinished: 0, silent: 1}


@pytest.mark.parametrize("form", ["graded", "free"])
def test_exact_looks_at_the_answer_after_registers_alone(form):
    task = build_task("multiply", registers=form)

    def right(question):
        a, b = question.split("*")
        return [*(int(x) for x in reversed(str(int(a) * int(b)))), END]

    scores = task.score(Writer(task, right), "test", 70)
    assert scores == {"exact": 1.0, "per_token": 1.0}
    assert task.score(Writer(task, right), "test", 70, "due") == scores
    assert task.score(Writer(task, lambda q: right(q)[1:]), "test", 70)["exact"] == 0


def untrained(task, name="looped", **own):
    torch.manual_seed(0)
    return build_model(name, vocab_size=task.vocab_size, **(TINY | own)).double()


@pytest.mark.parametrize("name", ["multiply", "arithmetic"])
def test_registers_are_never_written(name):
    task = build_task(name, registers="graded")
    model = untrained(task)
    favoured = torch.arange(task.vocab_size) >= VOCAB_SIZE
    model.head.register_forward_hook(lambda module, given, logits: logits + 1e3 * favoured)
    question = "12*34"
    text = thinkers.answer((model, task), question)
    assert text.startswith("12*34=") and "[" not in text
    prompt = task.read_prompt(question)
    assert prompt.tokens == task.encode("12*34=") == task.read_prompt("12*34=").tokens
    batch = next(task.evaluation_batches("test", 8))
    ((found, _),) = thinkers.tasks.answers.generated_answers(
        model, [batch], 6, task.num_output_tokens
    )
    assert int(found.max()) < VOCAB_SIZE
    seen = thinkers.inspect((model, task), question)
    assert int(seen.answers.tokens.max()) < VOCAB_SIZE


def test_registers_have_names():
    task = build_task("multiply", registers="graded")
    names = [f"p{j}.{i}" for j in range(2) for i in range(3)] + ["go"]
    assert [task.token_name(token) for token in task.registers] == names
    seen = thinkers.inspect((untrained(task), task), "12*34=")
    labels = [seen.label(token) for token in seen.tokens]
    assert labels[:7] == ["[start]", "2", "1", "*", "4", "3", "="]
    assert labels[7:14] == [f"[{name}]" for name in names]
    assert task.decode([*task.encode("12*34="), 8, 0, 4, END]) == "12*34=408"
    chain = build_task("arithmetic", registers="graded", max_digits=1)
    assert [chain.token_name(token) for token in chain.registers][:6] == [
        *("order.sign", "order.x.0", "order.op1", "order.y.0", "order.op2", "order.z.0")
    ]


def test_a_question_may_end_without_its_equals_sign():
    scratch = build_task("arithmetic", scratch=True)
    assert scratch.read_prompt("12-3*4 ").tokens == scratch.encode("12-3*4=")
    begun = scratch.read_prompt("12-3*4=-3*4+12,")
    assert begun.begun == 8 and begun.tokens == scratch.encode("12-3*4=-3*4+12,")
    for wrong in ("12-", "12,4", "", "12*(4"):
        with pytest.raises(UsageError):
            scratch.read_prompt(wrong)


@pytest.mark.parametrize("name", ["multiply", "arithmetic"])
def test_longer_numbers_than_those_of_training(name):
    prompt = build_task(name, scratch=True).read_prompt("12345*678=")
    assert prompt.longest > len(written(name, "12345*678").partition("=")[2])
    with pytest.raises(UsageError, match="a number of 3 digits in '678"):
        build_task(name, registers="free").read_prompt("678*1=")


@pytest.mark.parametrize("name", ["looped", "decoder", "thinker"])
def test_micro_batches_have_the_loss_of_the_whole(name):
    task = build_task("arithmetic", registers="graded", max_digits=1)
    own = dict(step_loss="due") if name != "decoder" else {}
    model, batch = untrained(task, name, **own), task.batch(0, 6)
    whole, counts = model.loss(batch), model.counts(batch)
    assert counts["next_token"] == int((batch.targets != -100).sum())
    parts = [batch.rows(slice(0, 2)), batch.rows(slice(2, 6))]
    total = sum(model.loss(part, counts=counts).total for part in parts)
    assert torch.allclose(total, whole.total, rtol=1e-12)


def test_a_register_is_graded_after_each_step_from_its_due_on():
    task = build_task("multiply", registers="graded")
    model, batch = untrained(task, step_loss="due", num_steps=4), task.batch(0, 3)
    thought = model(batch.tokens, lengths=batch.lengths, keep_states=True)
    logs = model.read_out(thought.states).log_softmax(-1)
    expected, count = 0.0, 0
    for i, j in (batch.targets != -100).nonzero().tolist():
        first = 1 if j < batch.prompt_lengths[i] - 1 else 3
        steps = range(first, 5)
        expected -= sum(logs[i, k - 1, j, batch.targets[i, j]] for k in steps) / len(steps)
        count += 1
    assert torch.allclose(model.loss(batch).total, expected / count, rtol=1e-12)


def test_products_have_their_share_in_training_alone():
    task = build_task("arithmetic", min_operators=2, product_share=0.6)
    for split, share in (("train", 0.6), ("test", 1 / 3)):
        rows = [q for i in range(2) for q in questions(task, task.batch(i, 800, split))]
        operators = [x for q in rows for x in parse(q)[1]]
        assert operators.count("*") / len(operators) == pytest.approx(share, abs=0.03)
        assert operators.count("+") == pytest.approx(operators.count("-"), rel=0.2)


def test_settings_that_do_not_fit_are_refused():
    for own, name in (
        (dict(scratch=True, registers="free"), "multiply"),
        (dict(scratch=True, max_out_base=11), "multiply"),
        (dict(registers="graded", min_in_base=2), "arithmetic"),
        (dict(registers="held"), "multiply"),
        (dict(scratch=True, max_operators=3), "arithmetic"),
        (dict(product_share=1.0), "arithmetic"),
        (dict(product_share=0.5, operators="+-"), "arithmetic"),
    ):
        with pytest.raises(UsageError, match="|".join(own)):
            build_task(name, **own)


def test_working_of_the_oracle():
    """The oracle itself, by hand."""
    assert working("multiply", "12*304") == {"p": ["48", "0", "36"]}
    assert written("arithmetic", "10-4*56") == "10-4*56=-4*56+10,24,20,-224,-214"
    held = "".join(text for text, _ in registers("arithmetic", "3-4*5", 1))
    assert re.fullmatch(r"-4\*5\+3" + "02" + "-02" + "000", held)
