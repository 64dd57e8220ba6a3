"""`thinkers memory`: what it prints, what it leaves on the disk, and its exit codes."""

import json
import os
import re
import resource
import shlex

import pytest

import thinkers
from thinkers.cli.main import main
from thinkers.memory import LongTermMemory
from thinkers.memory.parts import MemoryPart

SHORT = [
    *("--model.dim=16", "--model.num_heads=2", "--training.num_updates=1"),
    *("--training.batch_size=4", "--training.evaluate_examples=4", "--training.device=cpu"),
]
FACTS = [
    *("--model.index_dim=8", "--task.num_entities=5", "--task.num_relations=5"),
    "--task.num_sections=2",
]
FIRST = "e0 r1 e2 n3 n4 e1 r2 e4\nn0 e2 r3 e3 e1 r1 e0 n5\n"
SECOND = "e3 r1 e1 n3 n4 e4 r4\ne2 n9 e2 r0 e3 n5 n6\n"
QUESTION = "--prompt=e1 r2 ?"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of facts that have learned next to nothing, and one without a memory."""
    place = tmp_path_factory.mktemp("runs")
    for name, recipe, own in (
        ("run", "facts/thinker", FACTS),
        ("other", "facts/thinker", [*FACTS, "--training.seed=1"]),
        ("plain", "add/decoder", []),
    ):
        assert main(["train", recipe, f"--out={place / name}", *SHORT, *own]) == 0
    return place


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    """A working folder with links to the runs, and two files of text."""
    for name in ("run", "other", "plain"):
        (tmp_path / name).symlink_to(runs / name)
    (tmp_path / "a.txt").write_text(FIRST)
    (tmp_path / "b.txt").write_text(SECOND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(text, *more):
    return ["memory", *text.split(), *more]


@pytest.fixture
def store(here):
    """A memory with a topic of each file; the text of the second one is kept."""
    assert main(line("add run a.txt --store m --topic a")) == 0
    assert main(line("add run b.txt --store m --topic=b --keep_text")) == 0
    return here / "m"


def test_files_become_topics_that_are_listed(here, capsys):
    assert main(line("add run a.txt b.txt --store m")) == 0
    assert re.fullmatch(
        r"4 blocks of 30 tokens added to topic default in \d\.\d s; m has 4 blocks in 1 topic\n",
        capsys.readouterr().out,
    )
    assert main(line("add run b.txt --topic two --store m")) == 0
    assert capsys.readouterr().out.endswith("; m has 6 blocks in 2 topics\n")
    assert main(line("list --store m")) == 0
    first, second, *topics = capsys.readouterr().out.splitlines()
    assert first.startswith("m has 6 blocks in 2 topics; 2 latents of 16 numbers (float16)")
    assert second == f"written by the model {LongTermMemory.open('m').fingerprint[:16]}"
    assert [x.split() for x in topics] == [["default", "4"], ["two", "2"]]


def test_sections_of_lines_end_with_them(here, capsys):
    """A line of 6 words, a blank one, one of 11, and words that are none in the fourth."""
    (here / "c.txt").write_text("e0 r1 e2 n3 n4 n5\n\ne1 r2 e4 n0 n1 n2 e1 r1 e0 n3 n4\n")
    assert main(line("add run c.txt --store m --by_line --keep_text")) == 0
    assert capsys.readouterr().out.startswith("3 blocks of 17 tokens added")
    blocks = LongTermMemory.open("m").read([1, 2, 3])
    assert blocks.lines.tolist() == [[1, 1], [3, 3], [3, 3]]
    assert blocks.spans.tolist() == [[0, 6], [6, 14], [14, 17]]
    assert blocks.texts[0] == "e0 r1 e2 n3 n4 n5" and blocks.texts[2] == "e0 n3 n4"
    assert main(line("recompress other --store m")) == 0
    again = LongTermMemory.open("m").read([4, 5, 6])
    assert again.lines.tolist() == blocks.lines.tolist()
    assert again.spans.tolist() == blocks.spans.tolist()
    (here / "c.txt").write_text("e0 r1 e2\n\ne1\n e1 e99\n")
    capsys.readouterr()
    assert main(line("add other c.txt --store m --by-line")) == 3
    assert "found: c.txt:4: word 1 of ' e1 e99' is 'e99'" in capsys.readouterr().err


def test_ask_prints_the_answer_and_what_was_read_for_it(store, capsys):
    capsys.readouterr()
    assert main(line("ask run --store m --top 3 --out a.json", QUESTION)) == 0
    answer, head, *rows = capsys.readouterr().out.splitlines()
    memory = LongTermMemory.open("m", "run")
    model, task = thinkers.open_run("run")
    assert head.split() == ["step", "block", "topic", "source", "weight", "text"]
    blocks = json.loads((store.parent / "a.json").read_text())
    assert blocks["answer"] == answer and len(blocks["blocks"]) == len(rows) == 3
    texts = dict(zip((1, 2, 3, 4), [*FIRST.splitlines(), *SECOND.splitlines()], strict=True))
    for row, block in zip(rows, blocks["blocks"], strict=True):
        number = block["id"]
        topic, last = ("a", number) if number < 3 else ("b", number - 2)
        source = f"{topic}.txt:{last}" if number != 3 else "b.txt:1-2"
        kept = [] if topic == "a" else [text_of(memory, number)]
        step, id, *others = re.split("  +", row.strip())
        assert (step, int(id), others) == (
            "2",
            number,
            [topic, source, f"{block['mass']:.3f}", *kept],
        )
        assert block["text"] == (kept[0] if kept else None) and texts[number]
    scores = [block["score"] for block in blocks["blocks"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(block["mass"] for block in blocks["blocks"]) < 1
    # As many as the model reads by itself, 4, are all that there are.
    assert main(line("ask run --store m", QUESTION)) == 0
    answer, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4 and answer == thinkers.answer("run", "e1 r2 ?", memory=memory)


def text_of(memory, id):
    return memory.read([id]).texts[0]


def test_ask_reads_one_topic_or_some(store, capsys):
    for flags, ids in ((["--topic=b"], {3, 4}), (["--topic=b", "--topic", "a"], {1, 2, 3, 4})):
        capsys.readouterr()
        assert main(line("ask run --store m", QUESTION, *flags)) == 0
        answer, _, *rows = capsys.readouterr().out.splitlines()
        assert {int(row.split()[1]) for row in rows} == ids
        topics = [flag[-1] for flag in flags if flag[-1] in "ab"]
        part = MemoryPart(LongTermMemory.open("m", "run"), topics)
        assert answer == thinkers.answer("run", "e1 r2 ?", memory=part)


def test_an_empty_memory_answers_as_none_does(store, capsys):
    assert main(line("clear --all --store m")) == 0
    capsys.readouterr()
    assert main(line("ask run --store m", QUESTION)) == 0
    plain = thinkers.answer("run", "e1 r2 ?")
    assert capsys.readouterr().out.splitlines() == [plain, "no block was read"]


def test_what_is_cleared_leaves_no_byte(store, capsys):
    text = LongTermMemory.open("m").read([3]).texts[0].encode()
    assert any(text in file.read_bytes() for file in store.iterdir())
    capsys.readouterr()
    assert main(line("clear --topic b --store m")) == 0
    assert capsys.readouterr().out == "2 blocks cleared; m has 2 blocks in 1 topic\n"
    assert not any(text in file.read_bytes() for file in store.iterdir())
    for action in ("verify", "rebuild", "compact"):
        assert main(line(f"{action} --store m")) == 0
        assert capsys.readouterr().out.endswith("m has 2 blocks in 1 topic\n")
    assert main(line("clear --all --store m")) == 0
    assert capsys.readouterr().out == "2 blocks cleared; m has 0 blocks in 0 topics\n"


def test_another_run_compresses_kept_texts_anew(here, capsys):
    assert main(line("add run b.txt --store m --keep-text")) == 0
    assert main(line("ask other --store m", QUESTION)) == 2
    assert "thinkers memory recompress" in capsys.readouterr().err
    assert main(line("recompress other --store m")) == 0
    assert re.fullmatch(
        r"compressed anew in \d\.\d s: m has 2 blocks in 1 topic\n", capsys.readouterr().out
    )
    assert main(line("ask other --store m", QUESTION)) == 0
    assert main(line("ask run --store m", QUESTION)) == 2


REFUSED = [
    ("", "ACTION"),
    ("ad run a.txt --store m", "unknown command 'memory ad'\nexpected: add"),
    ("add run --store m", "FILE"),
    ("add run a.txt", "--store"),
    ("add run a.txt --store", "--store without a value"),
    ("add run a.txt --store m --topics a", "unknown --topics\nexpected: --topic"),
    ("add run a.txt --store m --model.dim 3", "memory add takes no settings"),
    ("add run a.txt --store m --topic=", "an empty topic"),
    ("add missing a.txt --store new", "missing"),
    ("add plain a.txt --store new", "a model without a memory"),
    ("add other a.txt --store m", "written by the model"),
    ("add run a.txt --store run", "found: run, which holds"),
    ("add run a.txt --store a.txt", "found: a.txt, a file\nexpected: a new folder"),
    ("ask run --store m", "--prompt"),
    ("ask run --store m --prompt=x", "word 0 of 'x'"),
    ("ask run --store m --prompt e1_r2", "word 0 of 'e1_r2'"),
    ("ask plain --store m --prompt 1+2=", "a model without a memory"),
    ("ask other --store m --prompt x", "written by the model"),
    ("ask run --store m --prompt x --top 0", "--top 0\nexpected: an integer of at least 1"),
    ("ask run --store m --prompt x --top one", "--top one"),
    ("ask run --store m --prompt x --topic bb", "'bb', which is not in .*\nexpected: .*'b'"),
    ("ask run --store m --prompt x --halt 0.5", "halt 0.5 for thinker without a gate"),
    ("ask run --store run --prompt x", "found: run, which is not a memory"),
    ("ask run --store missing --prompt x", "there is no such folder"),
    ("list --store a.txt", "found: a.txt, which is not a memory"),
    ("clear --store m", "neither of --topic and --all"),
    ("clear --store m --topic a --all", "both of --topic and --all"),
    ("clear --store m --topic c", "topic 'c', which is not in m\nexpected: .* such as '[ab]'"),
    ("recompress run --store m", "found: 2 of 4 blocks, whose text was not kept"),
    ("recompress other --store m", "found: 2 of 4 blocks, whose text was not kept"),
]


@pytest.fixture(scope="module")
def unchanged(runs, tmp_path_factory):
    """A working folder whose memory no test changes."""
    place = tmp_path_factory.mktemp("unchanged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in ("run", "other", "plain"):
            (place / name).symlink_to(runs / name)
        (place / "a.txt").write_text(FIRST)
        assert main(line("add run a.txt --store m --topic a")) == 0
        assert main(line("add run a.txt --store m --topic b --keep_text")) == 0
    return place


@pytest.mark.parametrize(("text", "found"), REFUSED, ids=[text or "memory" for text, _ in REFUSED])
def test_what_cannot_work_is_refused(unchanged, text, found, monkeypatch, capsys):
    monkeypatch.chdir(unchanged)
    before = sorted(path.name for path in unchanged.iterdir())
    assert main(line(text)) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.search(found, err), err
    assert re.fullmatch(r"found: .*\nexpected: .*\nfix: .*\n", err) or "missing" in err, err
    assert sorted(path.name for path in unchanged.iterdir()) == before
    assert LongTermMemory.open("m").topics() == {"a": 2, "b": 2}


def test_a_question_of_one_step_reads_nothing_and_is_refused(unchanged, monkeypatch, capsys):
    monkeypatch.chdir(unchanged)
    assert main(line("ask run --store m --num_steps 1", QUESTION)) == 2
    assert capsys.readouterr().err.startswith("found: num_steps 1 with a memory\nexpected: at leas")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "bad.txt: no such file"),
        (b"", "bad.txt: an empty file"),
        (b" \n\n", "bad.txt: an empty file"),
        (b"e0 r1 e2\ne1 \xff r2", "bad.txt:2:4: byte 0xff is not UTF-8"),
        (
            b"e0 r1 e2\n\n n3 e9 r1\ne8",
            "bad.txt:3: word 1 of ' n3 e9 r1' is 'e9'\nexpected: e0 .. e4",
        ),
        ("folder", "bad.txt: must be a plain file"),
        ("link", "bad.txt: no such file"),
    ],
)
def test_files_that_cannot_be_read_are_named_and_nothing_is_written(here, content, found, capsys):
    if content == "folder":
        (here / "bad.txt").mkdir()
    elif content == "link":
        (here / "bad.txt").symlink_to("nothing")
    elif content is not None:
        (here / "bad.txt").write_bytes(content)
    assert main(line("add run a.txt bad.txt --store m")) == 3
    err = capsys.readouterr().err
    assert re.fullmatch(r"found: .*\nexpected: .*\nfix: .*\n", err) and f"found: {found}" in err
    assert not (here / "m").exists()
    assert main(line("add run a.txt --store m")) == 0
    assert main(line("add run bad.txt --store m")) == 3
    assert LongTermMemory.open("m").topics() == {"default": 2}


def test_a_mark_of_the_byte_order_and_line_ends_of_windows_are_no_text(here, capsys):
    plain = (here / "a.txt").read_bytes()
    (here / "b.txt").write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    assert main(line("add run a.txt b.txt --store m --keep_text")) == 0
    with LongTermMemory.open("m") as memory:
        texts = memory.read(range(1, len(memory) + 1)).texts
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]


def test_a_file_without_rights_is_named(here, capsys):
    (here / "a.txt").chmod(0)
    if os.access(here / "a.txt", os.R_OK):
        pytest.skip("this user may read every file")
    assert main(line("add run a.txt --store m")) == 3
    assert "a.txt: permission denied" in capsys.readouterr().err


def test_damage_is_listed_and_what_is_damaged_is_not_read(store, capsys):
    with LongTermMemory.open("m") as memory:
        latents = memory.read([4]).latents[0, 0].half().numpy().tobytes()
    content = bytearray((store / "memory.db").read_bytes())
    content[content.index(latents)] ^= 1
    (store / "memory.db").write_bytes(content)
    capsys.readouterr()
    assert main(line("verify --store m")) == 4
    out, err = capsys.readouterr()
    assert out.startswith("block 4: ") and "found: m with 2 faults" in err
    assert main(line("ask run --store m", QUESTION)) == 4
    assert "block 4" in capsys.readouterr().err
    assert main(line("ask run --store m --topic a", QUESTION)) == 0


def test_a_lost_record_of_the_last_write_is_accepted_by_rebuild(store, capsys):
    (store / "generation.json").unlink()
    assert main(line("list --store m")) == 4
    capsys.readouterr()
    assert main(line("verify --store m")) == 4
    out, err = capsys.readouterr()
    assert (
        out.startswith("generation.json: ") and "fix: run thinkers memory rebuild --store m" in err
    )
    assert main(line("rebuild --store m")) == main(line("verify --store m")) == 0


def test_a_second_writer_is_refused_and_named(store, capsys):
    with LongTermMemory.open("m", "run") as memory:
        memory.clear("a")
        capsys.readouterr()
        for text in (
            "add run a.txt --store m",
            "clear --all --store m",
            "rebuild --store m",
            "compact --store m",
            "recompress run --store m",
        ):
            assert main(line(text)) == 7
            assert f"m is written to by process {os.getpid()} on" in capsys.readouterr().err
        assert main(line("ask run --store m", QUESTION)) == main(line("list --store m")) == 0


def test_a_full_disk_ends_with_6_and_leaves_the_memory_as_it_was(store, capsys):
    (store.parent / "long.txt").write_text(FIRST * 300)
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
    try:
        code = main(line("add run long.txt --store m"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capsys.readouterr()
    assert code == 6 and out == "" and re.fullmatch(r"found: .*\nexpected: .*\nfix: .*\n", err), err
    memory = LongTermMemory.open("m", "run")
    assert memory.topics() == {"a": 2, "b": 2} and memory.verify() == []


# Inspection


def test_the_command_shows_what_was_read_and_the_page_how_to_repeat_it(
    unchanged, monkeypatch, capsys, plain_pages
):
    monkeypatch.chdir(unchanged)
    words = ["inspect", "run", QUESTION, "--memory=m", "--topic=b", "--top=1"]
    assert main([*words, "--out=a.html"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "report a.html"
    head = next(i for i, line in enumerate(lines) if line.startswith("step  block  topic"))
    names = re.split("  +", lines[head])
    assert names[:6] == ["step", "block", "topic", "source", "score", "weight"]
    assert names[6] == "without it" and names[7].startswith("p(e") and names[8] == "text"
    row = re.split("  +", lines[head + 1].strip())
    assert row[0] == "2" and row[2] == "b" and row[3].startswith("a.txt:")
    assert lines[head + 2].startswith("step 2: ") and lines[head + 3].startswith("answer e")
    page = (unchanged / "a.html").read_text()
    repeat = "".join(re.findall(r"<code>(.*?)</code>", page, re.DOTALL))
    repeat = shlex.split(re.sub(r"<[^>]*>", " ", repeat).replace("&#39;", "'"))
    expected = [*words[:3], "--num_steps=2", *words[3:], "--out=report.html"]
    assert repeat == ["thinkers", *expected]
    assert main([*words, "--out=a.json"]) == 0
    found = json.loads((unchanged / "a.json").read_text())["inspection"]
    assert found["memory"]["topics"] == ["b"] and found["memory"]["top"] == 1
    (block,) = found["memory"]["blocks"]
    assert block["topic"] == "b" and str(block["id"]) == row[1]
    assert found["predictions"][-1] == found["answer"] == found["memory"]["answer"]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--ablate", "--memory=m"], "found: --memory without a prompt"),
        ([QUESTION, "--topic=a"], "found: --topic without --memory"),
        ([QUESTION, "--top=3"], "found: --top without --memory"),
        ([QUESTION, "--memory=m", "--top=0"], "found: --top 0"),
        ([QUESTION, "--memory=m", "--topic=c"], "topic 'c', which is not in "),
        ([QUESTION, "--memory=run"], "found: run, which is not a memory"),
        ([QUESTION, "--memory="], "--memory without a value"),
    ],
)
def test_flags_of_inspect_that_cannot_work_are_refused(
    unchanged, flags, found, monkeypatch, capsys
):
    monkeypatch.chdir(unchanged)
    assert main(["inspect", "run", *flags]) == 2
    assert found in capsys.readouterr().err
