"""Star graphs, checked by a solver that reads only their text."""

import itertools

import numpy as np
import pytest
import torch

import thinkers
from thinkers.config.experiment import build
from thinkers.errors import UsageError
from thinkers.models import Batch
from thinkers.prng import Draws, row_keys
from thinkers.tasks.star_graph import StarGraph, distinct

SMALL = StarGraph.Config(degree=3, path_length=4, num_labels=13, num_graphs=500)


def solve(text):
    """Return the path, followed backwards from the goal, and {node: the node before it}."""
    edges, ask = text.rstrip("=").split("/")
    start, goal = ask.split(",")
    before = {}
    for edge in edges.rstrip("|").split("|"):
        a, b = edge.split(",")
        assert b not in before, "two edges lead to one node"
        before[b] = a
    path = [goal]
    while path[-1] != start:
        path.append(before[path[-1]])
    return ",".join(reversed(path)), before


def texts(task, batch):
    """Yield (question, answer) of every row, as text."""
    for row in range(len(batch)):
        n = int(batch.prompt_lengths[row])
        answer = batch.targets[row][n - 1 :]
        assert (batch.targets[row][: n - 1] == -100).all()
        assert answer[-1] == task.end_token
        assert torch.equal(batch.tokens[row][n:], answer[:-1])
        yield task.decode(batch.tokens[row][:n]), task.decode(answer)


@pytest.mark.parametrize("config", [StarGraph.Config(), SMALL])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_answers_are_those_of_the_solver(config, split):
    task = StarGraph(config, seed=3)
    for question, answer in texts(task, task.batch(5, 101, split)):
        path, before = solve(question)
        assert answer == path
        assert len(path.split(",")) == config.path_length
        nodes = set(before) | set(before.values())
        assert len(nodes) == config.num_nodes and len(before) == config.num_nodes - 1
        assert all(0 <= int(node) < config.num_labels for node in nodes)
        start = path.split(",")[0]
        assert sum(a == start for a in before.values()) == config.degree
        ends = set(before) - set(before.values())
        assert len(ends) == config.degree and path.split(",")[-1] in ends
        for end in ends:  # all arms are equally long
            assert len(solve(question.split("/")[0] + f"/{start},{end}=")[0].split(",")) == len(
                path.split(",")
            )


def test_rows_are_a_function_of_seed_update_and_row():
    task, again = StarGraph(SMALL, seed=3), StarGraph(SMALL, seed=3)
    for update in (7, 0, 7, 4000):
        one, other = task.batch(update, 11), again.batch(update, 11)
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.keys, other.keys)
        again.batch(update + 1, 11)
    seen = [StarGraph(SMALL, seed=s).batch(u, 11).tokens for s, u in ((3, 0), (3, 1), (4, 0))]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    # Writing to a batch does not change the next one.
    task.batch(7, 11).tokens.zero_()
    assert torch.equal(task.batch(7, 11).tokens, again.batch(7, 11).tokens)


def test_the_training_set_has_num_graphs_graphs_at_any_seed():
    task = StarGraph(SMALL)
    edges, paths = task.graphs(np.arange(500))
    known = {text(e, p) for e, p in zip(edges, paths, strict=True)}
    assert len(known) == 500
    again, _ = task.graphs(np.array([17, 3]))
    assert (again == edges[[17, 3]]).all()
    seen = set()
    for seed in (0, 1):
        batch = StarGraph(SMALL, seed).batch(0, 3000)
        seen |= {question for question, _ in texts(task, batch)}
    assert seen <= known and len(seen) > 490


def text(edges, path):
    return "|".join(f"{a},{b}" for a, b in edges) + f"|/{path[0]},{path[-1]}="


def test_held_out_graphs_are_disjoint_whatever_the_order_of_edges():
    config = StarGraph.Config(degree=2, path_length=3, num_labels=7, num_graphs=900)
    task = StarGraph(config, seed=1)
    found = {}
    for split in ("train", "valid", "test"):
        for seed in (1, 2):
            rows = StarGraph(config, seed).batch(0, 2500, split).tokens
            edges = rows[:, 1 : 1 + 3 * task.num_edges].reshape(len(rows), -1, 3)[:, :, :2].tolist()
            ends = rows[:, task.prompt_length - 3 : task.prompt_length - 1].tolist()
            for pairs, ask in zip(edges, ends, strict=True):
                content = (frozenset(map(tuple, pairs)), tuple(ask))
                found.setdefault(content, set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())
    shares = [sum(splits == {name} for splits in found.values()) for name in ("valid", "test")]
    assert all(share > 0.07 * len(found) for share in shares)
    assert len(found) > 1000


def test_neither_order_nor_label_gives_the_arm_away():
    """The first edge from the start, or the smaller label, is right one time in two."""
    task = StarGraph()
    first = smaller = total = 0
    for question, answer in texts(task, task.batch(0, 2000)):
        path = answer.split(",")
        pairs = [edge.split(",") for edge in question.split("/")[0].rstrip("|").split("|")]
        begins = [b for a, b in pairs if a == path[0]]
        first += begins[0] == path[1]
        smaller += min(begins, key=int) == path[1]
        total += 1
    assert abs(first / total - 0.5) < 0.04 and abs(smaller / total - 0.5) < 0.04


def test_distinct_numbers_are_different_and_uniform():
    draws = Draws(row_keys(0, 0, np.arange(1), 3000)[0])
    for high, width in ((7, 3), (7, 7), (2, 1)):
        found = distinct(draws, high, width)
        assert found.shape == (3000, width)
        assert all(len(set(row)) == width for row in found.tolist())
        counts = np.bincount(found[:, 0], minlength=high)
        assert abs(counts - 3000 / high).max() < 6 * (3000 / high) ** 0.5


class SolverModel(torch.nn.Module):
    """Model that answers with `change` of the solver's answer."""

    def __init__(self, task, change):
        super().__init__()
        self.task, self.change = task, change

    def answer(self, tokens, prompt_lengths, max_new_tokens, num_steps=None):
        rows = []
        for row, n in zip(tokens, prompt_lengths, strict=True):
            path, _ = solve(self.task.decode(row[len(row) - int(n) :]))
            answer = self.task.without_start(self.task.encode(self.change(path)))
            rows.append([*answer, self.task.end_token])
        return torch.tensor(rows)


def test_a_score_is_the_share_of_whole_paths():
    task = StarGraph(SMALL)

    def spoil(path):
        nodes = path.split(",")
        if int(nodes[0]) % 2:
            nodes[1] = "0" if nodes[1] != "0" else "1"
        return ",".join(nodes)

    assert task.score(SolverModel(task, str), num_examples=701) == {"exact": 1.0, "per_token": 1.0}
    grades = task.grade(SolverModel(task, spoil), num_examples=701)
    assert grades.dtype == torch.float64 and len(grades) == 701
    scores = task.score(SolverModel(task, spoil), num_examples=701)
    assert scores["exact"] == pytest.approx(float(grades.mean()))
    assert 0.3 < scores["exact"] < 0.7
    assert scores["per_token"] == pytest.approx(1 - (1 - scores["exact"]) / 5)


def test_a_model_is_trained_and_scored_on_it():
    task = thinkers.build_task("star_graph", path_length=3, num_labels=20)
    model = thinkers.build_model(
        "decoder", vocab_size=task.vocab_size, max_length=task.max_length, dim=16
    )
    loss = model.loss(task.batch(0, 8))
    assert loss.counts["next_token"] == 8 * 4
    assert task.score(model, num_examples=20)["exact"] <= 1
    assert len(task.batch(0, 8)) == 8 and isinstance(task.batch(0, 8), Batch)


def test_text_and_tokens_are_inverse():
    task = StarGraph(SMALL)
    for question, answer in texts(task, task.batch(0, 20)):
        assert task.decode(task.encode(question + answer)) == question + answer
        assert task.decode([*task.encode(question), task.pad_token]) == question
    tokens = [task.start_token, 3, 7, 13, 12, 9, 13, 14, 3, 9, 15, 3, 12]
    assert task.encode("3,7|12,9|/3,9=3,12") == tokens
    assert task.decode([3, 12, task.end_token, 4]) == "3,12"
    assert task.encode("") == [task.start_token] and task.decode([]) == ""


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("3,7|x,9|/3,9=", ("character 4", "'x'")),
        ("3,13|/3,13=", ("label 13", "0 .. 12")),
        ("3,7/3,7=", ("must be written", "3,7/3,7=")),
        ("3,7|3=", ("must be written",)),
        ("3,,7", ("must be written",)),
        ("3,7|/3,7", ("must be written",)),
        ("3 7", ("character 1", "' '")),
        ("٣", ("character 0",)),
        ("3\n", ("character 1",)),
    ],
)
def test_text_of_another_form_is_refused(wrong, words):
    with pytest.raises(UsageError) as caught:
        StarGraph(SMALL).encode(wrong)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "own, words",
    [
        ({"degree": 0}, ("degree", "0")),
        ({"path_length": 1}, ("path_length", "1")),
        ({"num_labels": 8}, ("num_labels", "at least 9", "8")),
        ({"num_labels": 20.0}, ("num_labels", "20.0")),
        ({"num_graphs": 0}, ("num_graphs", "0")),
        ({"path_length": 2, "num_labels": 3, "num_graphs": 1}, ("num_graphs", "1000", "of 6")),
        ({"path_length": 2}, ("num_graphs", "200000 of 117600")),
    ],
)
def test_an_invalid_configuration_is_refused(own, words):
    with pytest.raises(UsageError) as caught:
        StarGraph.Config(**own)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda task: task.batch(-1, 3), ("update", "-1")),
        (lambda task: task.batch(0, 0), ("batch_size", "0")),
        (lambda task: task.batch(0, 3, "exam"), ("split", "'exam'")),
        (lambda task: task.decode([99]), ("token 0", "99")),
    ],
)
def test_invalid_arguments_are_refused(call, words):
    with pytest.raises(UsageError) as caught:
        call(StarGraph(SMALL))
    assert all(word in str(caught.value) for word in words)


def test_a_score_of_no_examples_is_refused():
    with pytest.raises(UsageError, match="num_examples must be an integer at least 1, got 0"):
        StarGraph(SMALL).score(SolverModel(None, str), num_examples=0)


def test_the_decoder_recipe_has_equal_data_and_more_parameters():
    one, other = (thinkers.RECIPES[f"star_graph/{name}"]() for name in ("decoder", "deepsight"))
    assert one.task == other.task == StarGraph.Config()
    assert one.training.num_updates == other.training.num_updates
    assert one.training.batch_size == other.training.batch_size
    sizes = []
    for config in (one, other):
        _, model = build(config)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes[0] > 1.5 * sizes[1]
