"""All problems of a set of settings, whose constructor raises only the first of them.

`find_problems` gives the field that an error is about another value and constructs again, until no
error is left. So a `__post_init__` need not collect its errors, and the problems of a class that a
user wrote are found all the same.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from thinkers.errors import UsageError, join_errors

Values = dict[str, Any]
SECONDS = 2.0
"""Time in which other values are tried; it is a thousand times that of a usual constructor."""


class Collector:
    """Context manager that keeps the UsageErrors of several checks, to raise them as one.

    Each check has a block of its own:

        problems = Collector()
        with problems:
            check_sizes()
        with problems:
            check_depth()
        problems.raise_all()
    """

    def __init__(self) -> None:
        self.found: list[UsageError] = []

    def __enter__(self) -> "Collector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, UsageError):
            return False
        self.found += error.problems
        return True

    def raise_all(self) -> None:
        """Raise what was found, if anything was, as one error."""
        if self.found:
            raise join_errors(self.found)


def find_problems(
    construct: Callable[[Values], Any],
    values: Mapping[str, Any],
    stand_ins: Mapping[str, Sequence[Any]],
    reported: Collection[str] = (),
) -> tuple[Any, list[Exception]]:
    """Construct from values, and from others in the place of those that errors are about.

    An error that another value of a field reported before would prevent is left out: with
    num_steps -1 and max_steps 2 only num_steps is reported, since 2 is enough for 1 step. Nor is
    more looked for once a slow constructor has taken SECONDS.

    Args:
        construct: Function of the values; its ValueErrors and TypeErrors are the problems.
        stand_ins: {field: other values to try, the most usual one first}.
        reported: Fields whose problems are known, and whose values here are no longer those given.

    Returns:
        The object, or None if some problem is of no single field, so that others may be hidden;
        and the problems.
    """
    search = _Search(construct, dict(values), stand_ins)
    problems: dict[str, Exception] = {}
    known = set(reported)
    for _ in range(2 * len(stand_ins) + 2):
        made, error = search.attempt(search.trial)
        if error is None:
            return made, search.without_consequences(problems, values, reported)
        names = search.fields_in(error)
        # About a value that stands in for another: what it conflicts with may be right.
        is_consequence = bool(names) and names[0] in known
        others = [name for name in values if name not in names]
        field = search.replace([x for x in [*names, *others] if x not in known], error)
        if field is None:
            return None, [*problems.values()] + ([] if is_consequence else [error])
        if not is_consequence:
            problems[field] = error
        known.add(field)
    return None, [*problems.values()]


class _Search:
    """The values that are tried instead of those given."""

    def __init__(
        self,
        construct: Callable[[Values], Any],
        trial: Values,
        stand_ins: Mapping[str, Sequence[Any]],
    ):
        self.construct, self.trial, self.stand_ins = construct, trial, stand_ins
        self.end = time.monotonic() + SECONDS

    def attempt(self, values: Values) -> tuple[Any, Exception | None]:
        """Return the object and no error, or no object and the error."""
        try:
            return self.construct(values), None
        except (ValueError, TypeError) as error:
            return None, error

    def error_of(self, others: Values) -> BaseException | None:
        """Return the error of values that nobody gave, of any class: they are only tried."""
        try:
            return self.attempt(others)[1]
        except (Exception, SystemExit) as error:
            return error

    def fields_in(self, error: Exception) -> list[str]:
        """Return the fields that an error names, in order; it is about the first of them."""
        return list(dict.fromkeys(x for x in re.findall(r"\w+", str(error)) if x in self.stand_ins))

    def replace(self, names: Sequence[str], error: Exception) -> str | None:
        """Give one of these fields a value that prevents an error; return the field, or None."""
        before, rule = self.fields_in(error)[:1], _rule(error)
        # The second choice: an error follows, by another rule, about the same or the new field.
        weaker = None
        for name, changed in self._changes(names):
            other = self.error_of(changed)
            if not isinstance(other, ValueError | TypeError | None):
                continue
            about = [] if other is None else self.fields_in(other)[:1]
            if other is None or (_rule(other) != rule and about not in ([name], before)):
                self.trial = changed
                return name
            if _rule(other) != rule and weaker is None:
                weaker = name, changed
        if weaker is None:
            return None
        self.trial = weaker[1]
        return weaker[0]

    def _changes(self, names: Sequence[str]) -> Iterator[tuple[str, Values]]:
        for name in names:
            for value in self.stand_ins[name]:
                if time.monotonic() < self.end:
                    yield name, self.trial | {name: value}

    def without_consequences(
        self,
        problems: Mapping[str, Exception],
        values: Mapping[str, Any],
        reported: Collection[str],
    ) -> list[Exception]:
        """Return the problems that no other value of a field reported before would prevent."""
        kept, before = [], list(reported)
        for name, error in problems.items():
            given = self.trial | {name: values[name]} if name in values else self.trial
            if not any(
                self.error_of(given | {other: value}) is None
                for other in before
                for value in self.stand_ins.get(other, ())
                if time.monotonic() < self.end
            ):
                kept.append(error)
                before.append(name)
        return kept


def _rule(error: Exception) -> str:
    """Return an error without the value that it found."""
    return str(error).partition(", got ")[0]
