"""Planted defects: one place of a copy of the package is made wrong, and a test must notice it."""

import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import planted_models
import planted_runs
import pytest
from paths import ROOT
from planted_runner import run

DEFECTS = [*planted_models.DEFECTS, *planted_runs.DEFECTS]
ALL_PASSED, SOME_FAILED = 0, 1
"""Exit codes of pytest; errors of collection, and no tests at all, have others."""
LEAST = Counter(ops=8, halting=5, training=6, memory=6, runs=3, serve=3)
MODELS_AND_LAYERS, RESULTS = 10, 2


@pytest.fixture
def package(tmp_path):
    """A copy of the package, with its compiled files, so that one is compiled anew."""
    return shutil.copytree(ROOT / "thinkers", tmp_path / "thinkers")


def plant(package: Path, defect) -> Path:
    """Make one place of a copy wrong; return its file."""
    file = package / defect.file
    text = file.read_text()
    assert text.count(defect.old) == 1
    file.write_text(text.replace(defect.old, defect.new))
    return file


def skip_without(name: str | None) -> None:
    if name is not None and importlib.util.find_spec(name) is None:
        pytest.skip(f"tests of {name}: run these by .venv-extras/bin/python")


def test_each_defect_has_one_place_and_tests_that_are_there():
    for defect in DEFECTS:
        assert (ROOT / "thinkers" / defect.file).read_text().count(defect.old) == 1, str(defect)
        assert defect.new != defect.old and defect.tests, str(defect)
        for name in defect.tests:
            file, _, function = name.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert f"def {function.partition('[')[0]}" in text, f"{defect}: {name}"


def test_forty_defects_and_more_are_spread_over_the_rooms():
    assert len({str(defect) for defect in DEFECTS}) == len(DEFECTS) >= 40
    found = Counter(defect.room for defect in DEFECTS)
    assert found >= LEAST
    assert found["nn"] + found["models"] >= MODELS_AND_LAYERS
    assert found["evaluation"] + found["comparison"] >= RESULTS


@pytest.mark.slow
def test_without_a_defect_the_tests_pass(package):
    chosen = {name for x in DEFECTS if x.needs is None for name in x.tests}
    found = run(package, tuple(sorted(chosen)))
    assert found.code == ALL_PASSED, found.output
    assert found.files and all(file.is_relative_to(package) for file in found.files)


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_planted_defect_is_noticed(package, defect):
    skip_without(defect.needs)
    file = plant(package, defect)
    found = run(package, defect.tests)
    assert found.code == SOME_FAILED, found.output
    assert file in found.files and all(x.is_relative_to(package) for x in found.files)
