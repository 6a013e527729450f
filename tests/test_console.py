"""What a run tells on a console, and Ctrl-C meanwhile: heeded even if a library loses the interrupt on its way."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import time

import pytest
from rich.console import Console
from samples import a_trial

from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.records import Plan


def test_an_interrupt_that_was_lost_is_raised_when_there_is_something_to_tell() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ConsoleWatcher(Console(quiet=True)) as watcher:
        watcher.note("all is well")
        with contextlib.suppress(KeyboardInterrupt):  # as a library's bare except would
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            watcher.step("an epoch", 1, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_comes_back_out_of_a_journal_does_not_count_as_the_usual_pace() -> None:
    text = io.StringIO()
    trials = [a_trial(n, Plan({"a": 8}, ()), seconds={"cut": 0.01, "measure": 0.03}) for n in range(1, 30)]
    with ConsoleWatcher(Console(file=text, width=200)) as watcher:
        watcher.stage("a search, resumed")
        for number, trial in enumerate(trials[:20], start=1):
            watcher.trial(trial, best=None, spent=number, budget=1000)
        known = text.getvalue()
        for number, trial in enumerate(trials[20:], start=21):
            time.sleep(0.03)  # half of it was done beside the one before
            watcher.trial(trial, best=None, spent=number, budget=1000)
    assert "left" not in known
    last = re.findall(r"trial 29/1000 .* (?:(\d+) min )?(\d+) s left", text.getvalue())
    minutes, seconds = last[-1]
    assert 60 * int(minutes or 0) + int(seconds) >= 0.03 * (1000 - 29) - 1


def test_epochs_that_were_trained_before_do_not_count_as_the_usual_pace() -> None:
    text = io.StringIO()
    with ConsoleWatcher(Console(file=text, width=200)) as watcher:
        watcher.stage("fine-tuning, resumed")
        watcher.step("epoch 57", 57, 1000)
        time.sleep(0.05)
        watcher.step("epoch 58", 58, 1000)
        watcher.stage("fine-tuning, from its beginning")
        time.sleep(0.05)
        watcher.step("epoch 1", 1, 1000)
        watcher.step("epoch 1000", 1000, 1000)
    resumed, second, whole, last = re.findall(r"epoch \d+ \((.*)\)", text.getvalue())
    assert (resumed, last) == ("57/1000", "1000/1000")
    for line, steps in ((second, 1000 - 58), (whole, 999)):
        minutes, seconds = re.findall(r", (?:(\d+) min )?(\d+) s left", line)[0]
        assert 60 * int(minutes or 0) + int(seconds) >= 0.05 * steps - 1
