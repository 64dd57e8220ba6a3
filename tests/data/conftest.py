"""An empty cache for every test, and a text to put there."""

import pytest

from thinkers.data import token_cache

LINES = "".join(f"Wer reitet so spät durch Nacht und Wind? {i * i}\n" for i in range(211))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """The folder of the cache, not there yet."""
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_verified", {})
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def text():
    return LINES
