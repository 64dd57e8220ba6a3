"""The search for all problems, in classes whose constructors are slow or raise other errors."""

import time

import pytest

from thinkers import problems

STAND_INS = {"size": [2, 1, 0], "share": [1]}


def test_errors_of_values_that_nobody_gave_are_not_reported():
    def construct(values):
        if values["size"] != 5:
            table = {2: 10, 7: 3}  # 1 is missing, and 0 ends the program
            if values["size"] == 0:
                raise SystemExit(0)
            raise ValueError(f"size must divide {table[values['size']]}, got {values['size']}")

    made, found = problems.find_problems(construct, {"size": 7, "share": 1}, STAND_INS)
    assert made is None and [str(x) for x in found] == ["size must divide 3, got 7"]
    with pytest.raises(KeyError):  # values that were given
        problems.find_problems(construct, {"size": 9, "share": 1}, STAND_INS)


def test_a_slow_constructor_is_not_called_for_ever(monkeypatch):
    calls = []

    def construct(values):
        calls.append(values)
        time.sleep(0.01)
        raise ValueError("never")

    names = [f"field_{i}" for i in range(40)]
    stand_ins = {name: list(range(5)) for name in names}
    monkeypatch.setattr(problems, "SECONDS", 0.05)
    _, found = problems.find_problems(construct, dict.fromkeys(names, 9), stand_ins)
    assert [str(x) for x in found] == ["never"] and len(calls) < 10
