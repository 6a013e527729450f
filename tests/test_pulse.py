"""Long work does not look as if it hung: a word where nothing else is said."""

from __future__ import annotations

import io
import queue
import time

import pytest
from rich.console import Console

from rlprune_edge.cli_ends import telling
from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.progress import duration
from rlprune_edge.pulse import Pulse, still

WAIT_SECONDS = 30


def test_a_silence_is_broken_at_growing_distances_and_from_the_beginning_after_a_word() -> None:
    heard: queue.Queue[float] = queue.Queue()
    with Pulse(heard.put, first_seconds=0.1) as pulse:
        assert [heard.get(timeout=WAIT_SECONDS) >= least for least in (0.1, 0.2, 0.4)] == [True] * 3
        told = time.monotonic()
        pulse.told()
        while heard.get(timeout=WAIT_SECONDS) > time.monotonic() - told:
            pass  # was under way
    while not heard.empty():
        heard.get()
    with pytest.raises(queue.Empty):
        heard.get(timeout=0.3)


def test_the_silence_is_told_in_words() -> None:
    assert still(60.2) == "... still at it, 1 min 00 s since the last line"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (12452, "3 h 27 min"),
    ],
)
def test_a_time_is_told_as_a_person_reads_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def printed(out: io.StringIO, text: str) -> bool:
    end = time.monotonic() + WAIT_SECONDS
    while text not in out.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    return text in out.getvalue()


def test_a_run_without_a_terminal_says_that_it_is_still_at_it() -> None:
    out = io.StringIO()
    with ConsoleWatcher(Console(file=out, width=100, color_system=None), pulse_seconds=0.05) as watcher:
        watcher.stage("measuring the uncut model")
        assert printed(out, "  ... still at it, 0 s since the last line\n")
    before = out.getvalue()
    time.sleep(0.3)
    assert out.getvalue() == before, "and is silent when it is over"


def test_on_a_terminal_the_foot_moves_instead() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ConsoleWatcher(console, pulse_seconds=0.01) as watcher:
        watcher.stage("measuring the uncut model")
        time.sleep(0.2)
    assert isinstance(console.file, io.StringIO)
    assert "still at it" not in console.file.getvalue()


def test_commands_without_a_run_speak_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    with telling(first_seconds=0.05) as tell:
        tell("local: process 1 of 3")
        end = time.monotonic() + WAIT_SECONDS
        while "still at it" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert said.startswith("- local: process 1 of 3\n  ... still at it, 0 s since the last line\n")
    assert capsys.readouterr().out == ""
