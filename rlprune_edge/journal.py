"""trials.jsonl: append, find, resume; it *is* the result of a search."""

# Format history of trials.jsonl:
#   1: {"format": 1, "trial": {... records.Trial ...}}, one line a trial, in the order of evaluation;
#      trial 0 is the uncut model.

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlprune_edge.json_lines import append_line, read_lines
from rlprune_edge.records import Trial

FORMAT = 1
_TRIAL: TypeAdapter[Trial] = TypeAdapter(Trial)


class Journal:
    """All trials of one run, on disk before they are used.

    A line is written whole and synced before `append` returns, so a killed run loses at most the trial it was working
    on. A torn last line (power cut) is dropped at the next start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_key: dict[tuple[int, str], Trial] = {}
        self._trials: list[Trial] = []
        if path.exists():
            read_lines(path, self._read, format_=FORMAT, go_on="the run goes on from there with --resume")

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._trials)

    def find(self, key: str, *, rung: int = 0) -> Trial | None:
        """The trial of the plan with this key, if it was ever evaluated on this rung of a ladder.

        The uncut model, trial 0, is the same on all of them.
        """
        first = self._trials[0] if self._trials else None
        return first if first and first.plan.key == key else self._by_key.get((rung, key))

    def append(self, trial: Trial) -> Trial:
        """Write one trial through to the disk. Raises UserError where the disk is full."""
        again = f"rlprune-edge compress --resume {self.path.parent}"
        append_line(self.path, {"format": FORMAT, "trial": asdict(trial)}, go_on=again)
        self._add(trial)
        return trial

    def _add(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._by_key[trial.rung, trial.plan.key] = trial

    def _read(self, entry: Any) -> None:
        self._add(_TRIAL.validate_python(entry["trial"]))
