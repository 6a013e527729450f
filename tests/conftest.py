"""Fixtures that tests of every room may ask for."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest
from planted_report import SPACE, TRIALS, report
from samples import a_space

from rlprune_edge.records import PruningSpace
from rlprune_edge.report import write_report


def pytest_configure() -> None:
    """Have Ctrl-C heeded: a shell starts what it puts in the background deaf to it, and children inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = tuple(f"test_{name}.py" for name in ("docs", "compare", "rounds", "precisions", "profile", "ladder"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first: of those that come last one would keep one worker, and the other idle."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Let the collector pass by what the imports have made: each simulated measurement begins with a collection, and
    through torch and all else one takes 0.4 s instead of 25 ms.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the commands of all pages: what is trained once is not trained again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def space() -> PruningSpace:
    return a_space()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of the planted run's report, as a run leaves it."""
    write_report(tmp_path, report(), TRIALS, SPACE)
    return tmp_path
