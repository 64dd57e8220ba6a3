"""The line of waiting rows, without a model and without a server: who runs with whom, and when."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkers.serve.batching import ModelError, Scheduler, Stopping
from thinkers.serve.rows import Ended, Failed, Row

pytestmark = pytest.mark.extras
pytest.importorskip("openai")  # with the tests of the server, not with those of the core

TURN = 5


class Counted(Row):
    """A row of so many tokens, which notes the time of each."""

    def __init__(self, kind, left, fails_at=None):
        super().__init__([0], 1, self.listen, True)
        self.kind, self.left, self.fails_at = kind, left, fails_at
        self.events, self.times = [], []

    def listen(self, event):
        self.events.append(event)

    def __repr__(self):
        return f"{self.kind}{self.left}"


class Clock:
    """An engine whose time is the number of tokens that batches have written so far."""

    def __init__(self):
        self.now, self.batches, self.open = 0, [], 0
        self.at_time = lambda now: None

    def key(self, row):
        return row.kind

    def run(self, rows):
        self.batches.append((self.now, list(rows)))
        self.open += 1
        alive = list(rows)
        try:
            while alive:
                for row in alive:
                    if row.left == row.fails_at:
                        raise RuntimeError("a bad row")
                for row in alive:
                    row.times.append(self.now)
                    row.left -= 1
                    if not row.left:
                        row.end("length", len(row.times), 1.0)
                self.now += 1
                self.at_time(self.now)
                yield
                alive = [row for row in alive if not row.is_gone]
        finally:
            self.open -= 1


def scheduler(**own):
    clock, lines = Clock(), []
    made = Scheduler(clock, **{"turn": TURN, "log": lambda line, trace: lines.append(line)} | own)
    made.lines = lines
    return clock, made


def run_all(made):
    """Run what waits, in this thread."""
    while made.counts() != (0, 0):
        made._run_next()


def test_equal_kinds_run_together_and_rows_that_end_leave():
    clock, made = scheduler()
    rows = [Counted("a", 3), Counted("b", 2), Counted("a", 1), Counted("a", 4)]
    made.submit(rows)
    run_all(made)
    assert [(at, batch) for at, batch in clock.batches] == [
        (0, [rows[0], rows[2], rows[3]]),
        (4, [rows[1]]),
    ]
    assert [row.times for row in rows] == [[0, 1, 2], [4, 5], [0], [0, 1, 2, 3]]
    assert all(len(row.events) == 1 and isinstance(row.events[0], Ended) for row in rows)


def test_a_batch_has_at_most_so_many_rows_and_the_first_come_first():
    clock, made = scheduler(most_rows=2)
    rows = [Counted("a", 2) for _ in range(5)]
    made.submit(rows)
    run_all(made)
    assert [batch for _, batch in clock.batches] == [rows[:2], rows[2:4], rows[4:]]


def test_a_long_text_delays_one_of_another_kind_by_a_turn():
    clock, made = scheduler()
    long, short = Counted("a", 1000), Counted("b", 3)
    clock.at_time = lambda now: made.submit([short]) if now == 102 else None
    made.submit([long])
    run_all(made)
    assert short.times[0] == 102  # the long one has had its turn long ago
    late = Counted("b", 3)
    clock, made = scheduler()
    clock.at_time = lambda now: made.submit([late]) if now == 2 else None
    made.submit([Counted("a", 1000)])
    run_all(made)
    assert late.times[0] == TURN


def test_a_text_that_is_alone_is_never_broken_off():
    clock, made = scheduler()
    made.submit([Counted("a", 1000)])
    run_all(made)
    assert len(clock.batches) == 1


def test_rows_join_once_they_are_as_many_as_those_that_run():
    clock, made = scheduler()
    first, others = Counted("a", 4), [Counted("a", 4) for _ in range(3)]
    clock.at_time = lambda now: made.submit(others) if now == 1 else None
    made.submit([first])
    run_all(made)
    assert [at for at, _ in clock.batches] == [0, 1]
    assert set(map(id, clock.batches[1][1])) == set(map(id, [first, *others]))


def test_fewer_rows_wait_for_the_turn():
    clock, made = scheduler()
    first = [Counted("a", 9) for _ in range(3)]
    clock.at_time = lambda now: made.submit([Counted("a", 2)]) if now == 1 else None
    made.submit(first)
    run_all(made)
    assert [at for at, _ in clock.batches] == [0, TURN]


def test_a_cancelled_row_leaves_before_its_next_token_and_one_that_waits_never_begins():
    clock, made = scheduler()
    gone, stays, waits = Counted("a", 9), Counted("a", 9), Counted("b", 9)
    clock.at_time = lambda now: made.cancel([gone, waits]) if now == 2 else None
    made.submit([gone, stays, waits])
    run_all(made)
    assert len(gone.times) == 2 and len(stays.times) == 9 and not waits.times
    assert not gone.events and not waits.events


def test_an_error_ends_the_row_alone_that_raises_it():
    clock, made = scheduler()
    rows = [Counted("a", 6), Counted("a", 6, fails_at=3), Counted("a", 6), Counted("b", 2)]
    made.submit(rows)
    run_all(made)
    assert [len(row.times) for row in rows] == [6, 3, 6, 2]
    assert isinstance(rows[1].events[0], Failed) and len(rows[1].events) == 1
    assert isinstance(rows[1].events[0].error, ModelError)
    assert all(isinstance(rows[i].events[0], Ended) for i in (0, 2, 3))
    assert "its 3 rows are run again" in made.lines[0] and len(made.lines) == 2
    assert clock.open == 0


@pytest.mark.parametrize("error", [SystemExit, MemoryError, KeyboardInterrupt])
def test_no_error_ends_the_thread(error):
    clock, made = scheduler()

    def fail(now):
        raise error

    clock.at_time = fail
    made.start()
    failed = Counted("a", 3)
    made.submit([failed])
    made.stop(9)
    assert made.join(9) and isinstance(failed.events[0], Failed)


def test_stopping_lets_rows_end_and_takes_no_more():
    clock, made = scheduler()
    row = Counted("a", 50)
    made.submit([row])
    made.stop(60)
    with pytest.raises(Stopping):
        made.submit([Counted("a", 1)])
    made.start()
    assert made.join(9) and len(row.times) == 50 and isinstance(row.events[0], Ended)


def test_rows_that_take_too_long_end_when_the_time_to_stop_is_over():
    clock, made = scheduler()
    endless, waits = Counted("a", 10**9), Counted("b", 3)
    begun = threading.Event()
    clock.at_time = lambda now: begun.set()
    made.start()
    made.submit([endless])
    begun.wait(9)
    made.submit([waits])
    made.stop(0)
    assert made.join(9)
    for row in (endless, waits):
        assert isinstance(row.events[-1].error, Stopping) and len(row.events) == 1
    assert clock.open == 0 and made.counts() == (0, 0)


ROWS = st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(0, 60), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=25), st.integers(1, 6))
def test_every_row_gets_its_tokens_in_bounded_time(asked, most_rows):
    clock, made = scheduler(most_rows=most_rows)
    rows = [Counted(kind, left) for kind, left, _, _ in asked]
    wanted = [row.left for row in rows]
    begins, leaves = [at for *_, at, _ in asked], [gone for *_, gone in asked]

    def arrive(now):
        made.submit([row for row, at in zip(rows, begins, strict=True) if at == now])
        halves = zip(rows, wanted, leaves, strict=True)
        made.cancel([x for x, count, goes in halves if goes and len(x.times) == count // 2 > 0])

    clock.at_time = arrive
    arrive(0)
    while clock.now < 61 or made.counts() != (0, 0):
        if made.counts() == (0, 0):
            clock.now += 1
            arrive(clock.now)
        else:
            made._run_next()
    for row, count, at, goes in zip(rows, wanted, begins, leaves, strict=True):
        if goes and count > 1:
            assert len(row.times) == count // 2 and not row.events
            continue
        assert len(row.times) == count and len(row.events) == 1
        # Between two tokens, each other row may have its turn once, and the row's own batch.
        gaps = [b - a for a, b in zip([at - 1, *row.times], row.times, strict=False)]
        assert max(gaps) <= TURN * (len(rows) + 1) + 1
    for _, batch in clock.batches:
        assert len(batch) <= most_rows and len({row.kind for row in batch}) == 1
    assert clock.open == 0
