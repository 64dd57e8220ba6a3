"""Shards: parts of a comparison, made by processes that share its folder alone."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from thinkers.comparison import plan, shards
from thinkers.comparison.plan import Plan
from thinkers.comparison.runner import compare
from thinkers.errors import UsageError
from thinkers.runs import trackers

pytestmark = pytest.mark.usefixtures("plain_pages")
SMALL = {"task.max_digits": 1, "model.dim": 8, "model.num_heads": 2, "training.batch_size": 4}
BUDGET = 5e6


@pytest.fixture(autouse=True)
def few_checkpoints(monkeypatch):
    monkeypatch.setattr(plan, "POINTS", 2)


def small(out, **own):
    asked = dict(budget=BUDGET, seeds=2, num_examples=11, settings=SMALL, out=out)
    return compare("add", ["decoder", "looped"], **(asked | own))


def test_shards_of_a_folder_make_the_comparison_of_one_process(tmp_path):
    out, alone = tmp_path / "shared", small(tmp_path / "alone")
    first = small(out, shard="1/2")
    assert not first.is_complete and not (out / "report.html").exists()
    assert small(out, shard="1/2").is_complete is False  # nothing is left for this part
    second = small(out, shard="2/2")
    assert second.is_complete and (out / "report.html").exists()
    for name in ("decoder", "looped"):
        found, wanted = (x.results[name] for x in (second, alone))
        assert [x.record["score"] for x in found] == [x.record["score"] for x in wanted]
    with pytest.raises(UsageError, match="seeds"):
        small(out, shard="1/2", seeds=1)


def test_the_shard_that_ends_last_sends_the_means(tmp_path, monkeypatch):
    sent = []

    class Recording(trackers.Tracker):
        module = "json"

        def __init__(self, folder, record):
            self.name = folder.name

        def send(self, lines):
            sent.append((self.name, lines))

        def finish(self, status):
            sent.append((self.name, status))

    monkeypatch.setitem(trackers.TRACKERS, "recording", Recording)
    out = tmp_path / "shared"
    small(out, shard="1/2", tracking="recording")
    assert [x for name, x in sent if name == "shared"] == ["FINISHED"]
    found = small(out, shard="2/2", tracking="recording")
    means = {"update": 2, "test": found.mean_scores}
    assert [x for name, x in sent if name == "shared"] == ["FINISHED", [means], "FINISHED"]


def test_of_two_parts_that_begin_at_once_one_writes_the_plan(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(shards, "AGAIN", 0.01)
    asked = dict(task="add", models=["decoder"], budget=BUDGET, seeds=1, num_examples=31)
    empty = dict(match=None, lrs=[], controls=[], settings=SMALL)
    made = Plan.of(**asked, **empty)
    write = Plan.write

    def slow(self, folder):
        written.append(self)
        time.sleep(0.2)
        write(self, folder)

    monkeypatch.setattr(Plan, "write", slow)
    with ThreadPoolExecutor(2) as pool:
        parts = [shards.Shard.of(f"{n}/2", []) for n in (1, 2)]
        found = list(pool.map(lambda part: part.plan(tmp_path, made, asked | empty), parts))
    assert len(written) == 1 and found[0].asked() == found[1].asked() == made.asked()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_shard_of_another_form_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="I/N"):
        small(tmp_path / "out", shard=text)
    with pytest.raises(UsageError, match="--lrs"):
        small(tmp_path / "out", shard="1/2", lrs=[0.1])
    assert not (tmp_path / "out").exists()
