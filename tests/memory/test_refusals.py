"""What a memory refuses: by its exit code, in three lines, and without a change."""

import os
import re
from dataclasses import replace

import pytest
import torch
from memory_cases import FakeModel, Words, filled, latents, rows, text

from thinkers.errors import DamagedError, DataError, LockedError, UsageError
from thinkers.memory import LongTermMemory


def lines(error):
    return str(error.value).splitlines()


def refuses(match, error=UsageError):
    return pytest.raises(error, match=match)


def test_a_memory_of_another_model_is_refused(tmp_path):
    filled(tmp_path / "m", {"a": 3}).close()
    with refuses("thinkers memory recompress") as error:
        LongTermMemory.open(tmp_path / "m", FakeModel(seed=1))
    assert [x.partition(":")[0] for x in lines(error)] == ["found", "expected", "fix"]
    memory = LongTermMemory.open(tmp_path / "m", FakeModel())
    with refuses("written by the model"):
        memory.check(FakeModel(seed=1))
    memory.check(FakeModel())
    with torch.no_grad():
        memory.model.tokens += 1  # trained further since
    for call in (lambda: memory.write(rows(1)), lambda: memory.search(latents(1))):
        with refuses("written by the model"):
            call()
    assert len(memory) == 3


def test_a_memory_that_was_compressed_anew_is_refused_by_the_old_model(tmp_path):
    old = LongTermMemory.create(tmp_path / "m", FakeModel(), Words())
    old.write([text(20)], keep_text=True)
    old.close()
    LongTermMemory.recompress(tmp_path / "m", FakeModel(seed=1), Words()).close()
    with refuses("written by the model"):
        old.topics()


def test_a_vocabulary_that_means_something_else_is_refused(tmp_path):
    class Others(Words):
        def decode(self, tokens):
            return super().decode(tokens).upper()

    filled(tmp_path / "m", {"a": 3}).close()
    with refuses("tokens mean something else"):
        LongTermMemory.open(tmp_path / "m", FakeModel(), Others())
    # Tokens alone have no meaning; the first text decides.
    memory = LongTermMemory.create(tmp_path / "n", FakeModel())
    memory.write(rows(1))
    memory.close()
    with LongTermMemory.open(tmp_path / "n", FakeModel(), Words()) as memory:
        memory.write([text(3)])
    with refuses("tokens mean something else"):
        LongTermMemory.open(tmp_path / "n", FakeModel(), Others())


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A memory that no test changes."""
    memory = filled(tmp_path_factory.mktemp("stories") / "m", {"stories": 3, "x": 2})
    yield memory
    memory.close()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.clear("stories_"), "such as 'stories'"),
        (lambda m: m.search(latents(1), 4, ["stores"]), "such as 'stories'"),
        (lambda m: m.search(latents(1), 4, "stories"), "topics must be a list of names"),
        (lambda m: m.search(latents(1), 0), "k must be an integer at least 1, got 0"),
        (lambda m: m.search(latents(1)[0], 4), "latent must be"),
        (lambda m: m.search("x", 4), "latent must be"),
        (lambda m: m.read([99]), "block 99 of"),
        (lambda m: m.read([0]), "id must be an integer at least 1"),
        (lambda m: m.write("a text"), "texts must be a list of texts"),
        (lambda m: m.write(["w1"], ""), "an empty topic"),
        (lambda m: m.write(["w1"], "a\nb"), "printable characters"),
        (lambda m: m.write(["w1"], "x" * 201), "printable characters"),
        (lambda m: m.write(["w1"], 3), "topic must be a text"),
        (lambda m: m.write(["w1"], sources=["a", "b"]), "sources must be a list of 1 names"),
        (lambda m: m.write(rows(2, t=9)), "at most 8 tokens"),
        (lambda m: m.write(rows(2) + 100), "must be in 0 .. 39"),
        (lambda m: m.write(rows(2).float()), "must be an int64 tensor"),
        (lambda m: m.store.search(torch.randn(1, 8), 4, level=2), "level must be"),
        (lambda m: m.store.search(torch.randn(1, 7), 4), "shape"),
    ],
)
def test_what_cannot_work_is_refused_and_changes_nothing(stories, call, match):
    with refuses(match):
        call(stories)
    assert stories.topics() == {"stories": 3, "x": 2}


@pytest.mark.parametrize(
    ("bad", "line", "found"),
    [
        ("", None, ", which is empty"),
        ("  ", None, ", which is empty"),
        ("w1 hello", 1, ": the word 'hello'"),
        ("w1\nw2 w3\n\nw99 hello", 4, ": the word 'w99'"),
        (7, None, ": it must be a text"),
    ],
)
def test_texts_that_cannot_be_read_are_errors_of_the_data(stories, bad, line, found):
    in_file, in_text = (f":{line}", f", line {line}") if line else ("", "")
    for sources, place in ((["x", "a.txt"], f"a.txt{in_file}"), (None, f"text 1{in_text}")):
        with refuses(f"found: {place}{found}", DataError) as error:
            stories.write(["w1", bad], "x", sources=sources)
        assert len(lines(error)) == 3 and error.value.exit_code == 3
    assert stories.topics() == {"stories": 3, "x": 2}


def test_latents_that_are_not_finite_are_refused(tmp_path):
    class Diverged(FakeModel):
        value = torch.nan

        def compress(self, sections, lengths):
            found = super().compress(sections, lengths)
            found[-1, 1, 3] = self.value
            return found

    for dtype in ("float16", "int8"):
        memory = LongTermMemory.create(tmp_path / dtype, Diverged(), dtype=dtype)
        for value in (torch.nan, torch.inf, 1e38):
            Diverged.value = value
            if dtype == "int8" and value == 1e38:
                continue  # finite, with factors in float32
            with refuses("block 2 .* no finite latent|key of length", DamagedError) as error:
                memory.write(rows(3))
            assert error.value.exit_code == 4 and len(lines(error)) == 3
        assert len(memory) == 0 and memory.verify() == []


def test_a_model_or_task_that_is_missing_is_asked_for(tmp_path):
    filled(tmp_path / "m", {"a": 3}).close()
    memory = LongTermMemory.open(tmp_path / "m")
    for call in (lambda: memory.write(rows(1)), lambda: memory.search(latents(1))):
        with refuses("opened without a model"):
            call()
    assert memory.clear("a") == 3
    memory.close()
    memory = LongTermMemory.open(tmp_path / "m", FakeModel())
    with refuses("without a task"):
        memory.write(["w1"])

    class Plain(torch.nn.Module):
        pass

    for call in (LongTermMemory.create, LongTermMemory.open):
        with refuses("a model without a memory"):
            call(tmp_path / "n", Plain())


def test_folders_that_are_no_memory(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    filled(tmp_path / "m", {}).close()
    for name, match in (("file", "not a memory"), ("folder", "not a memory"), ("no", "no such")):
        with refuses(match):
            LongTermMemory.open(tmp_path / name)
    for name, match in (("file", "a file"), ("folder", "holds notes.txt"), ("m", "holds a memory")):
        with refuses(match):
            LongTermMemory.create(tmp_path / name, FakeModel())
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "no").exists()


def test_a_second_writer_is_refused_and_named_the_first(tmp_path):
    first = filled(tmp_path / "m", {"a": 3})
    second = LongTermMemory.open(tmp_path / "m", FakeModel())
    calls = (
        lambda: second.write(rows(1)),
        second.clear,
        second.compact,
        second.rebuild,
        lambda: LongTermMemory.recompress(tmp_path / "m", FakeModel()),
    )
    for call in calls:
        with refuses(f"process {os.getpid()} on", LockedError) as error:
            call()
        assert error.value.exit_code == 7 and len(lines(error)) == 3
    assert second.topics() == {"a": 3}  # reading needs no lock
    first.close()
    second.write(rows(1))
    with refuses("is written to by", LockedError):
        first.write(rows(1))
    second.close()
    first.write(rows(1))
    assert first.topics() == {"a": 3, "default": 2}
    first.close()
    first.close()


def test_a_memory_that_is_dropped_lets_others_write(tmp_path):
    memory = filled(tmp_path / "m", {"a": 1})
    del memory
    with LongTermMemory.open(tmp_path / "m", FakeModel()) as memory:
        memory.write(rows(1))


def test_names_are_those_of_the_contract():
    names = "create open write search read topics clear compact verify rebuild recompress close"
    assert all(callable(getattr(LongTermMemory, name)) for name in f"{names} view check".split())
    assert re.fullmatch(r"[0-9a-f]{64}", FakeModel().memory_fingerprint())


@pytest.mark.misuse
@pytest.mark.parametrize(
    "latent",
    [
        latents(2)[:, 1:],
        latents(2)[0],
        latents(2)[:0],
        latents(2)[:, None][:, :0],
        latents(2).long(),
        latents(2).tolist(),
        None,
    ],
    ids=["size", "vector", "rows", "none", "integers", "list", "None"],
)
def test_latents_that_ask_nothing_are_refused(tmp_path, latent):
    with filled(tmp_path / "m", {"a": 3}) as memory, refuses("latent must be"):
        memory.search(latent)


def test_latents_of_other_types_of_numbers_ask_the_same(tmp_path):
    with filled(tmp_path / "m", {"a": 9}) as memory:
        expected = memory.search(latents(2)).ids
        assert torch.equal(memory.search(latents(2).double()).ids, expected)
        assert memory.search(latents(2).bfloat16()).ids.shape == expected.shape


@pytest.mark.misuse
@pytest.mark.parametrize("ids", [1, None, "1", ["1"], [1.0], [True], [0], [-1], [2**63], [[1]]])
def test_what_is_no_list_of_ids_is_refused(tmp_path, ids):
    with filled(tmp_path / "m", {"a": 3}) as memory:
        for call in (memory.read, lambda x: memory.part(without=x)):
            with refuses("ids? must be "):
                call(ids)
        with refuses("ids must be a list"):
            memory.read(torch.tensor(1))
        assert memory.read(range(1, 3)).ids.tolist() == [1, 2]


@pytest.mark.misuse
def test_what_is_no_name_of_a_topic_is_refused(tmp_path):
    with filled(tmp_path / "m", {"a": 3}) as memory:
        for topics in (3, "a", [3], [None], {"a"}, [b"a"]):
            for call in (lambda x: memory.search(latents(1), topics=x), memory.part):
                with refuses("topics must be a list of names or None"):
                    call(topics)
        for topic in (3, b"a", ["a"], True):
            with refuses("topic must be a text"):
                memory.clear(topic)
            with refuses("topic must be a text"):
                memory.write(rows(1), topic)
        for sources in (3, "a", ["a", "b"], {0: "a"}, {"a"}):
            with refuses("sources must be a list of 1 names"):
                memory.write(rows(1), sources=sources)
        assert memory.topics() == {"a": 3}


@pytest.mark.misuse
def test_what_is_no_task_is_refused(tmp_path):
    filled(tmp_path / "m", {"a": 3}).close()
    for task in (3, "facts", Words, FakeModel()):
        with refuses("task must be a Task"):
            LongTermMemory.open(tmp_path / "m", FakeModel(), task)
        with refuses("task must be a Task"):
            LongTermMemory.create(tmp_path / "n", FakeModel(), task)
    assert not (tmp_path / "n").exists()


@pytest.mark.misuse
def test_blocks_too_large_for_a_memory_are_refused_before_one_is_made(tmp_path):
    large = FakeModel()
    large.config = replace(large.config, memory_levels=16, memory_group=8)
    with refuses(r"2 \* 4\^15 latents in a block of level 16\nexpected: at most 1,048,576"):
        LongTermMemory.create(tmp_path / "n", large)
    assert not (tmp_path / "n").exists()
