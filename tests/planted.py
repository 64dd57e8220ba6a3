"""A defect that is planted in a copy of the package, with the tests that must notice it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """A change of one place of a file that a test must notice.

    Args:
        room: Room of `thinkers/`, or "halting", which is spread over several.
        file: File in `thinkers/`.
        what: What is wrong afterwards.
        old: Text that the file holds once.
        new: Text in its place.
        tests: Files or ids in `tests/`, of tests that `make test` runs.
        needs: Package without which these tests are left out; None where `make test` has it.
    """

    room: str
    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]
    needs: str | None = None

    def __str__(self) -> str:
        return f"{self.file.removesuffix('.py')}:{self.what}".replace(" ", "-")
