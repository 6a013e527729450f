"""The foot of a terminal: the front, the best, the device, as the candidates come."""

from __future__ import annotations

import io

from rich.console import Console
from samples import a_measurement, a_space, a_trial

from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.live import LiveView, device_line, front_of
from rlprune_edge.measurements import Interval
from rlprune_edge.records import Failure, Score, Trial


def trial(number: int, speedup: float, quality: float, *, feasible: bool = True) -> Trial:
    vitals = {"temperature_c": {"cpu": 48.2, "gpu": 51.6}, "loadavg": [0.5, 0, 0], "available_bytes": 1.5e9}
    ratio = Interval(speedup, speedup, speedup)
    measured = a_measurement(2 / speedup, speedup=ratio, flags=("noisy",), vitals_after=vitals)
    plan = a_space().plan({"a": 16 - 4 * (number % 3)})
    return a_trial(number, plan, measurement=measured, score=Score(quality, quality, feasible, {}))


def test_the_front_is_what_no_other_beats() -> None:
    trials = [trial(0, 1.0, 1.0), trial(1, 2.0, 0.8), trial(2, 1.5, 0.9), trial(3, 1.4, 0.85), trial(4, 3.0, 0.5)]
    failed = a_trial(5, a_space().uncut(), failure=Failure("oom", "no memory"), measurement=None)
    assert [t.number for t in front_of([*trials, failed])] == [4, 1, 2]


def test_the_device_is_described_by_what_it_has() -> None:
    assert device_line(trial(1, 2.0, 0.8)) == "local: 52 °C, load 0.50, 1.5 GB free, flags: noisy"
    assert device_line(a_trial(1, a_space().uncut(), measurement=None)) == ""


def drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_stands_there_follows_the_run() -> None:
    view = LiveView()
    view.say("search: ppo, 60 candidates")
    assert "search: ppo, 60 candidates" in drawn(view)
    assert "front" not in drawn(view)
    for number in range(1, 15):
        view.add(trial(number, 1 + number / 10, 1 - number / 20, feasible=number > 3))
    text = drawn(view)
    assert text.count("trial ") == 5, "a few rows of the front, whatever its length"
    assert "2.40x" in text
    view.add(trial(15, 1.35, 0.81))
    lines = [line for line in drawn(view).splitlines() if line.startswith("trial ")]
    assert len(lines) == 5
    assert [line.split()[1] for line in lines if "best that meets the target" in line] == ["15"]
    assert (lines[0].split()[1], lines[-1].split()[1]) == ("14", "1"), "both ends"


def test_on_a_terminal_it_is_drawn_and_gone_at_the_end_elsewhere_lines_are_printed() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
        with ConsoleWatcher(console) as watcher:
            watcher.stage("search: ppo")
            best = trial(1, 2.0, 0.9)
            watcher.trial(best, best=best, spent=1, budget=3)
            watcher.trial(trial(2, 1.5, 0.95, feasible=False), best=best, spent=2, budget=3)
            if terminal:
                assert watcher._foot is not None
                watcher._foot.refresh()
        assert "- search: ppo" in out.getvalue()
        assert "trial 1/3  2.00x" in out.getvalue()
        assert ("52 °C" in out.getvalue()) == terminal
        assert ("\x1b" in out.getvalue()) == terminal
        assert "trial 2/3  1.50x" in out.getvalue()
