"""The harness on tasks from a folder: its figures are those of a loop over score and generate."""

import json
import random

import pytest
import torch
from hf_cases import PlainText
from model_cases import tiny

import thinkers
from thinkers.cli.main import main
from thinkers.data.tokenizers import CharacterTokenizer
from thinkers.models import Model
from thinkers.tasks.text import Text

pytest.importorskip("transformers")
pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NEW = 5
CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
"""
KINDS = {
    "multiple_choice": 'doc_to_choice: "{{choices}}"\nmetric_list:\n'
    "  - metric: acc\n  - metric: acc_norm\n",
    "generate_until": "generation_kwargs: {until: [STOP], max_gen_toks: 5, do_sample: false}\n"
    "metric_list:\n  - metric: exact_match\n",
}


def letters() -> PlainText:
    """A text of few characters, which has no token for padding or for an end."""
    return PlainText(CharacterTokenizer("\n abcdefgh"))


def pair_of(name: str, task_name: str):
    task = letters() if task_name == "text" else thinkers.build_task("copy", max_length=12)
    model = tiny(name, None, vocab_size=task.vocab_size)
    for x in model.parameters():
        x.data *= 2
    return model.eval(), task


def documents(task, symbols: str, count: int = 30):
    """Questions with choices of several lengths, the right one at random."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        question = "".join(draw.choices(symbols, k=draw.randint(2, 6)))
        # The harness moves spaces at the end of a question to its answers.
        question = question.rstrip() + ("b" if isinstance(task, Text) else "=")
        choices = ["".join(draw.choices(symbols, k=draw.randint(1, 4))) for _ in range(3)]
        found.append({"question": question, "choices": choices, "answer": draw.randint(0, 2)})
    return found


@pytest.fixture
def folder(tmp_path):
    """Writes the tasks `choose` and `write` about these documents into a folder."""

    def write(docs, answers, stop):
        for name, kind in (("choose", "multiple_choice"), ("write", "generate_until")):
            rows = docs
            if name == "write":
                rows = [{**x, "answer": y} for x, y in zip(docs, answers, strict=True)]
            file = tmp_path / f"{name}.json"
            file.write_text("\n".join(json.dumps(row) for row in rows))
            text = CHOICE.format(name=name, file=file, kind=kind) + KINDS[kind]
            (tmp_path / f"{name}.yaml").write_text(text.replace("STOP", json.dumps(stop)))
        return tmp_path

    return write


def chosen(model: Model, task, doc, steps: int) -> tuple[float, float]:
    """acc and acc_norm of a document: sums of `Model.score` over each choice."""
    begun, sums = len(task.encode(doc["question"])), []
    for choice in doc["choices"]:
        row = torch.tensor([task.encode(doc["question"] + choice)])
        sums.append(float(model.score(row, num_steps=steps).detach()[0, begun - 1 :].sum()))
    norms = [x / len(choice) for x, choice in zip(sums, doc["choices"], strict=True)]
    return tuple(float(x.index(max(x)) == doc["answer"]) for x in (sums, norms))


def written(model: Model, task, tokenizer, doc, steps: int, stop: str) -> str:
    """What `Model.generate` writes after a question, up to the text that stops it."""
    tokens = task.encode(doc["question"])
    row, lengths = torch.tensor([tokens]), torch.tensor([len(tokens)])
    end = None if isinstance(task, Text) else task.end_token
    out = model.generate(row, NEW, steps, lengths, stop_token=end, pad_token=end or 0)
    ids = out[0, len(tokens) :].tolist()
    if end in ids:
        ids = ids[: ids.index(end)]
    return tokenizer.decode(ids, skip_special_tokens=True).split(stop)[0]


@pytest.mark.parametrize(
    ("name", "task_name"), [("looped", "text"), ("thinker", "copy"), ("reasoning_tokens", "text")]
)
def test_figures_are_those_of_a_loop_over_score_and_generate(name, task_name, folder):
    from thinkers.hf.lm_eval import evaluate

    model, task = pair_of(name, task_name)
    tokenizer = thinkers.hf.tokenizer_of(task)
    docs = documents(task, "abcdefgh " if task_name == "text" else "0123456789")
    stop = "a" if task_name == "text" else "3"
    counts = [0, 2] if name == "reasoning_tokens" else [1, 2, 4]
    answers = [
        written(model, task, tokenizer, doc, counts[i % 2], stop) for i, doc in enumerate(docs)
    ]
    state = torch.get_rng_state(), random.getstate()
    rows = evaluate((model, task), ["choose", "write"], folder(docs, answers, stop), counts)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert [row["num_steps"] for row in rows] == counts
    seen = set()
    for row, steps in zip(rows, counts, strict=True):
        right = [chosen(model, task, doc, steps) for doc in docs]
        acc, norm = (sum(x) / len(docs) for x in zip(*right, strict=True))
        made = [written(model, task, tokenizer, doc, steps, stop) for doc in docs]
        exact = sum(x == y for x, y in zip(made, answers, strict=True)) / len(docs)
        assert row["scores"]["choose"]["acc"] == pytest.approx(acc)
        assert row["scores"]["choose"]["acc_norm"] == pytest.approx(norm)
        assert row["scores"]["write"]["exact_match"] == pytest.approx(exact)
        assert 0 < row["scores"]["choose"]["acc_stderr"] < 0.2
        seen.add((acc, exact))
    assert len(seen) > 1  # other steps, other figures


def test_halting_is_that_of_the_call(folder):
    from thinkers.hf.lm_eval import evaluate

    task = letters()
    model = tiny("looped", {"halting": True}, vocab_size=task.vocab_size)
    for x in model.parameters():
        x.data *= 2
    docs = documents(task, "abcdefgh ", 20)
    place = folder(docs, ["a"] * len(docs), "\n")
    (halted,) = evaluate((model, task), ["choose"], place, [4, 4], halt=0.0)
    (one,) = evaluate((model, task), ["choose"], place, 1)
    assert halted["scores"] == one["scores"] and halted["halt"] == 0.0  # all stop at step 1
    with pytest.raises(ValueError, match="without a gate"):
        evaluate((tiny("decoder"), task), ["choose"], place, halt=0.5)


def test_an_unknown_task_or_folder_and_an_empty_context_are_errors(folder, tmp_path):
    from thinkers.hf.lm_eval import evaluate

    run = pair_of("looped", "text")
    docs = [{"question": "", "choices": ["a", "b"], "answer": 0}]
    place = folder(docs, ["a"], "\n")
    with pytest.raises(ValueError, match="unknown task 'chose' of the harness\nexpected: choose"):
        evaluate(run, ["chose"], place)
    for names in ([], [""], ["choose", ""]):
        with pytest.raises(ValueError, match=r"(?s)found: tasks .* of the harness.*--harness A B"):
            evaluate(run, names, place)
    with pytest.raises(ValueError, match="no folder"):
        evaluate(run, ["choose"], tmp_path / "nothing")
    with pytest.raises(ValueError, match="an empty context"):
        evaluate(run, ["choose"], place, 1)


def test_the_command_prints_a_row_for_each_number_of_steps(folder, capsys, monkeypatch):
    task = thinkers.build_task("copy")
    docs = documents(task, "0123456789", 12)
    place = folder(docs, ["1"] * len(docs), "5")
    monkeypatch.chdir(place)
    short = "--training.num_updates=1 --training.batch_size=4 --training.evaluate_examples=4"
    sizes = "--model.dim=16 --model.num_heads=2 --training.device=cpu"
    assert main(["train", "copy/looped", "--out=run", *short.split(), *sizes.split()]) == 0
    capsys.readouterr()
    printed = []
    for tasks in ("choose write", "choose,write"):
        line = f"evaluate run --harness {tasks} --include_path . --num_steps 1,4 --out scores.json"
        assert main(line.split()) == 0
        printed.append(capsys.readouterr().out.splitlines())
    lines, others = printed
    assert lines == others
    assert lines[0].split() == ["steps", "choose", "acc", "choose", "acc_norm", "write"] + [
        "exact_match"
    ]
    assert [row.split()[0] for row in lines[1:]] == ["1", "4"]
    found = json.loads((place / "scores.json").read_text())["scores"]
    assert lines[2].split()[1] == f"{found['4']['scores']['choose']['acc']:.4f}"
    for more, reason in (
        ("--num_steps due", "numbers of steps"),
        ("--tools calculator", "--tools with --harness"),
        ("--task.seed 3", "--task.seed"),
    ):
        assert main(["evaluate", "run", "--harness", "choose", *more.split()]) == 2
        assert reason in capsys.readouterr().err
    assert main(["evaluate", "run", "--include_path", "."]) == 2
    assert "--harness" in capsys.readouterr().err
