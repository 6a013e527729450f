"""Ctrl-C while a run goes on: heeded even if a library loses the interrupt on its way."""

from __future__ import annotations

import contextlib
import signal

import pytest
from rich.console import Console

from rlprune_edge.console import ConsoleWatcher


def test_an_interrupt_that_was_lost_is_raised_when_there_is_something_to_tell() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ConsoleWatcher(Console(quiet=True)) as watcher:
        watcher.note("all is well")
        with contextlib.suppress(KeyboardInterrupt):  # as a library's bare except would
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            watcher.step("an epoch", 1, 2)
    assert signal.getsignal(signal.SIGINT) is before
