"""Fixtures that tests of every room may ask for."""

from __future__ import annotations

import pytest
from samples import a_space

from rlprune_edge.records import PruningSpace


@pytest.fixture
def space() -> PruningSpace:
    return a_space()
