"""Files of JSON lines: whole after a kill, whole with several writers."""

from thinkers.comparison.workers import run_each
from thinkers.files import append_line, read_lines


def writes(file, number):
    for place in range(50):
        append_line(file, {"job": number, "place": place})


def test_two_processes_may_add_lines_to_one_file(tmp_path):
    file = tmp_path / "lines.jsonl"
    list(run_each(writes, [(file, number) for number in range(3)], 3))
    lines = read_lines(file)
    for number in range(3):
        assert [x["place"] for x in lines if x["job"] == number] == list(range(50))


def test_lines_are_whole_whenever_a_writer_is_killed(tmp_path):
    file = tmp_path / "lines.jsonl"
    append_line(file, {"a": 1})
    with file.open("ab") as stream:
        stream.write(b'{"b": ')
    assert read_lines(file) == [{"a": 1}]
    append_line(file, {"c": 2})
    assert read_lines(file) == [{"a": 1}, {"c": 2}]
