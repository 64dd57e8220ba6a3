"""A browser for the tests of pages."""

import pytest
from browser import Browser


@pytest.fixture(scope="module")
def tab():
    with Browser() as browser:
        yield browser
