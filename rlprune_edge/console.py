"""Show a run's progress to a person: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from statistics import mean
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from rlprune_edge.live import LiveView
from rlprune_edge.progress import duration
from rlprune_edge.pulse import FIRST_SECONDS, Pulse, still
from rlprune_edge.records import Trial

_LEAST_SHARE = 0.5
"""of a trial's own seconds: half of it may have been done while the device timed the one before"""


class ConsoleWatcher:
    """A `progress.Watcher` that prints; on a terminal the newest line of a long stage and the front stay at its foot.

    Elsewhere a line says now and then that it is still at it, `pulse_seconds` after the last one for the first time.

    While it is entered it also remembers Ctrl-C: a KeyboardInterrupt that falls into a callback or a finaliser of some
    library is lost there, and then the next thing there is to tell raises it again.
    """

    def __init__(self, console: Console, *, pulse_seconds: float = FIRST_SECONDS) -> None:
        self._console = console
        self._pulse = Pulse(self._still, first_seconds=pulse_seconds)
        self._view = LiveView()
        self._foot: Live | None = None
        self._stage_began = time.perf_counter()
        self._first_step: tuple[float, int] | None = None
        """when this stage's steps began to be counted, and at which"""
        self._trial_came: float | None = None
        self._paces: list[float] = []
        """seconds from one trial to the next, of those that were not known before"""
        self._interrupted = False
        self._handler_before: Any = None

    def __enter__(self) -> ConsoleWatcher:
        # Where it is ignored (a job in a shell's background) it stays so; only the main thread may ask.
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._interrupt)
        if self._console.is_terminal:
            self._foot = Live(self._view, console=self._console, refresh_per_second=8, transient=True)
            self._foot.start()
        else:
            self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)
        if self._foot:
            self._foot.stop()
        else:
            self._pulse.__exit__(kind, value, trace)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _heed(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _still(self, seconds: float) -> None:
        self._console.print(f"  {still(seconds)}", style="dim", soft_wrap=True)

    def _print(self, text: str, style: str | None = None) -> None:
        self._pulse.told()
        self._console.print(text, style=style, soft_wrap=True)

    def stage(self, text: str) -> None:
        """A new stage of the run begins."""
        self._heed()
        self._stage_began = time.perf_counter()
        self._first_step, self._trial_came, self._paces = None, None, []
        self._print(f"- {text}", style="bold")
        self._view.say(text)

    def note(self, text: str) -> None:
        """Something a reader should know about the stage."""
        self._heed()
        self._print(f"  {text}")

    def step(self, text: str, done: int, total: int) -> None:
        """Progress inside a stage, such as an epoch of training."""
        self._heed()
        each = self._step_seconds(done)
        line = f"{text} ({done}/{total}"
        line += f", {duration(each * (total - done))} left)" if each is not None and done < total else ")"
        self._view.say(line) if self._foot and done < total else self._print(f"  {line}")

    def trial(self, trial: Trial, *, best: Trial | None, spent: int, budget: int) -> None:
        """A candidate was evaluated."""
        self._pace(trial)
        found = f"trial {spent}/{budget}  {_outcome(trial)}"
        if best is not None:
            found += f"  best {_speed(best)} quality {best.score.quality:.3f}"
        if self._paces and spent < budget:
            found += f"  {duration(mean(self._paces) * (budget - spent))} left"
        self._view.add(trial)
        if self._foot and best is not trial and trial.number:
            self._view.say(found)
        else:
            self._print(f"  {found}")
        self._heed()

    def _step_seconds(self, done: int) -> float | None:
        """What a step takes in this stage. Where the first one told of is not step 1, those before it may have been
        done long ago, in a run that was resumed: `None` until the next one shows it.
        """
        now = time.perf_counter()
        if self._first_step is None:
            self._first_step = (self._stage_began, 0) if done == 1 else (now, done)
        began, before = self._first_step
        return (now - began) / (done - before) if done > before else None

    def _pace(self, trial: Trial) -> None:
        """Note how long a trial took, unless it came much sooner than it can have: out of the journal, when resumed."""
        now, before = time.perf_counter(), self._trial_came
        self._trial_came = now
        if before is not None and now - before >= _LEAST_SHARE * sum(trial.seconds.values()):
            self._paces.append(now - before)


def _outcome(trial: Trial) -> str:
    if trial.failure is not None:
        return f"failed ({trial.failure.kind})"
    loss = f"loss {trial.quality.loss:.3f}" if trial.quality else ""
    return f"{_speed(trial)} {loss} reward {trial.score.reward:+.3f}"


def _speed(trial: Trial) -> str:
    m = trial.measurement
    if m is None:
        return "-"
    return f"{m.speedup.value:.2f}x" if m.speedup else f"{m.latency_ms.value:.3f} ms"
