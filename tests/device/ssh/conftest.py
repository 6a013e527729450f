"""One board for the tests of a file that only use it, and short deadlines for those in which it falls silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from device.ssh.board import LinkFault, LoopbackBoard

from rlprune_edge.device.ssh import Deadlines

QUICK = Deadlines(connect=5, banner=5, auth=5, channel=5, silence=1.0, pulse=0.2)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    with LoopbackBoard(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def own_board(tmp_path: Path) -> Iterator[LoopbackBoard]:
    """A board that a test may break."""
    with LoopbackBoard(tmp_path / "own-board") as board:
        yield board


@pytest.fixture
def link(board: LoopbackBoard) -> Iterator[LinkFault]:
    with LinkFault(board) as link:
        yield link
