"""One torch thread for every test, and the tests in which annotated shapes are checked."""

import gc
import sys
from pathlib import Path

import jaxtyping
import pytest
import shape_checks
import torch

torch.set_num_threads(1)  # two workers share two cores

OF_EXTRAS = ("hf_looped", "reasoning_gym")
"""Names in MODELS and TASKS that are there with an extra only."""
ROOMS = [Path(__file__).parent / name for name in ("models", "nn")]


def pytest_configure(config: pytest.Config) -> None:
    """Let the checks of shapes, which decorate what is imported later, not be repeated."""
    if config.getoption("jaxtyping_packages"):
        jaxtyping.jaxtyped = shape_checks.jaxtyped


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of models and layers that `make test` runs with checks of every call, and
    those of the models and tasks of extras."""
    for item in items:
        if any(name in item.name for name in OF_EXTRAS):
            item.add_marker("extras")
        unchecked = any(item.get_closest_marker(name) for name in ("misuse", "unchecked"))
        if not unchecked and any(item.path.is_relative_to(room) for room in ROOMS):
            item.add_marker("shapes")


def pytest_collection_finish() -> None:
    """Leave what has been imported, and the tests, out of searches for garbage; search less."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their figures, which take longer than tiny runs do."""
    from thinkers.report import html

    monkeypatch.setattr(html, "drawing", lambda *_, **__: "<svg></svg>")


@pytest.fixture(autouse=True)
def imported_files_are_forgotten():
    """Files that a test imports are not imported again by the runs of a later test."""
    from thinkers import plugins  # here, since the checks of shapes must be set up before

    before = list(plugins._files)
    yield
    for file in plugins._files[len(before) :]:
        sys.modules.pop(Path(file).stem, None)
    plugins._files[:] = before
