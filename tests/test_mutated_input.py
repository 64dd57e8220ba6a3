"""Changed bytes in what is parsed: the benchmark, in short, and the faults that it notices."""

import json
import mmap
import random
import time

import mutations
import parser_cases
import parsers
import pytest
from file_cases import Case
from parser_cases import PARSERS

from thinkers.cli import main
from thinkers.errors import DamagedError

CASES = {"configuration file": 8, "flags": 20, "run, forged": 15, "model, forged": 25}
"""Cases of parsers that are slower than the others, of which there are 100."""
LONG = ("comparison", "plan, forged", "run", "model", "manifest, forged")
"""Parsers that `make test` leaves out: each trains a run of its own, and is much like another."""


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """What the benchmark sets for its process is undone after each test."""
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(main, "command_line", main.command_line)


@pytest.mark.parametrize("name", [x for x in PARSERS if x not in LONG])
def test_changed_input_is_read_or_refused_soon(name, tmp_path):
    cases = CASES.get(name, 100)
    found = parsers.measure(name, cases, tmp_path)
    assert found["failed"] == [] and found["cases"] == cases
    assert parsers.measure(name, cases, tmp_path) == found  # cases of earlier calls count


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_a_thousand_changes_of_each(name, tmp_path):
    assert parsers.measure(name, 1000, tmp_path)["failed"] == []


def spin():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


def refuse():
    raise DamagedError("refused")


@pytest.mark.parametrize(
    ("parse", "must_be_refused", "reason"),
    [
        ({}.popitem, False, "KeyError"),
        (lambda: None, True, "accepted"),
        (spin, False, " s"),
        (lambda: None, False, None),
        (refuse, True, None),
    ],
)
def test_every_kind_of_fault_is_noticed(parse, must_be_refused, reason, monkeypatch):
    monkeypatch.setattr(parsers, "MOST_SECONDS", 0.05)
    with parsers.alarm():
        found, _ = parsers.run(Case(b"", parse, must_be_refused))
    assert found is None if reason is None else reason in found


def test_a_case_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(parsers, "STOPPED_AFTER", 0.05)

    def forever():
        while True:
            pass

    with parsers.alarm():
        assert "stopped" in parsers.run(Case(b"", forever))[0]


def test_memory_is_counted_and_failures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(parsers, "MOST_MB", 8)
    held = []

    def grow():
        # Not of the heap, where memory that earlier tests freed would be used again.
        held.append(mmap.mmap(-1, 1 << 20))
        held[-1].write(bytes([9]) * (1 << 20))

    monkeypatch.setitem(PARSERS, "large", lambda folder: lambda rng: Case(b"9", grow))
    found = parsers.measure("large", 50, tmp_path)
    assert "MB were taken" in found["failed"][0]
    assert (tmp_path / "large-49").read_bytes() == b"9"


def test_changes_are_functions_of_the_seed_and_differ():
    value = json.loads(json.dumps(parser_cases.REQUEST))
    made = [
        (
            mutations.change_bytes(random.Random(seed), [b"abc" * 9, b"{}"]),
            json.dumps(mutations.change_value(random.Random(seed), value)),
            mutations.change_words(random.Random(seed), parser_cases.LINES),
        )
        for seed in (*range(30), *range(30))
    ]
    assert made[:30] == made[30:] and value == parser_cases.REQUEST
    for column in zip(*made[:30], strict=True):
        assert len(set(map(str, column))) > 20
