"""Fixtures of the tests of the operations."""

import pytest

from thinkers.ops import tiled


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few queries and buffers of few scores, so that small inputs take several."""
    monkeypatch.setattr(tiled, "BLOCK_QUERIES", 16)
    monkeypatch.setattr(tiled, "BUFFER_ELEMENTS", 700)
