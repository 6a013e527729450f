"""What stands at the foot of a terminal while a run goes on: what is being done, the best so far, the device."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlprune_edge.records import Trial

FRONT = 5
"""rows of it that are shown"""


class LiveView:
    """The foot's content; `__rich__` draws it as it is now."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots", "")
        self._trials: list[Trial] = []

    def say(self, text: str) -> None:
        """The newest line of what is going on."""
        self._spinner.update(text=Text(text))

    def add(self, trial: Trial) -> None:
        """A candidate was evaluated."""
        self._trials.append(trial)

    def __rich__(self) -> RenderableType:
        shown: list[RenderableType] = [self._spinner]
        if len(front := front_of(self._trials)) > 1:
            shown.append(_table(front))
        if self._trials and (said := device_line(self._trials[-1])):
            shown.append(Text(said, style="dim"))
        return Group(*shown)


def front_of(trials: list[Trial]) -> list[Trial]:
    """The candidates that no other beats in speed-up and quality, the fastest first."""
    measured = [t for t in trials if t.number and t.failure is None and t.measurement and t.measurement.speedup]
    front: list[Trial] = []
    for trial in sorted(measured, key=lambda t: (-_speedup(t), -t.score.quality)):
        if not front or trial.score.quality > front[-1].score.quality:
            front.append(trial)
    return front


def device_line(trial: Trial) -> str:
    """What the device said of itself after this candidate, and what its figure is flagged with."""
    measured = trial.measurement
    if measured is None:
        return ""
    vitals, parts = measured.vitals_after, []
    if celsius := vitals.get("temperature_c"):
        parts.append(f"{max(celsius.values()):.0f} °C")
    if clocks := vitals.get("requested_mhz"):
        parts.append(f"{min(clocks.values())} MHz")
    if load := vitals.get("loadavg"):
        parts.append(f"load {load[0]:.2f}")
    if (free := vitals.get("available_bytes")) is not None:
        parts.append(f"{free / 1e9:.1f} GB free")
    if measured.flags:
        parts.append(f"flags: {', '.join(measured.flags)}")
    return f"{measured.device}: {', '.join(parts)}" if parts else ""


def _table(front: list[Trial]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    for title in ("front", "speed-up", "latency", "metric", "quality", ""):
        table.add_column(title, justify="left" if title in ("front", "") else "right")
    best = max((t for t in front if t.score.feasible), key=lambda t: t.score.reward, default=None)
    for trial in _spread(front, best):
        measured = trial.measurement
        assert measured is not None
        table.add_row(
            f"trial {trial.number}",
            f"{_speedup(trial):.2f}x",
            f"{measured.latency_ms.value:.3f} ms",
            f"{trial.quality.metric:.2f}" if trial.quality else "-",
            f"{trial.score.quality:.3f}",
            "best that meets the target" if trial is best else "",
        )
    return table


def _spread(front: list[Trial], best: Trial | None) -> list[Trial]:
    """A few of a long front: its ends, some between them, and the best, in their order."""
    if len(front) <= FRONT:
        return front
    chosen = {round(i * (len(front) - 1) / (FRONT - 1)) for i in range(FRONT)}
    at = next((i for i, t in enumerate(front) if t is best), None)
    if at is not None and at not in chosen:
        inner = sorted(chosen)[1:-1]
        chosen.remove(min(inner, key=lambda i: abs(i - at)))
        chosen.add(at)
    return [front[i] for i in sorted(chosen)]


def _speedup(trial: Trial) -> float:
    assert trial.measurement is not None
    assert trial.measurement.speedup is not None
    return trial.measurement.speedup.value
