"""trials.jsonl: append, find, resume; it *is* the result of a search."""

# Format history of trials.jsonl:
#   1: {"format": 1, "trial": {... records.Trial ...}}, one line a trial, in the order of evaluation;
#      trial 0 is the uncut model.

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rlprune_edge.errors import UserError
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
        self._by_key: dict[str, Trial] = {}
        self._trials: list[Trial] = []
        if path.exists():
            self._load()

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._trials)

    def find(self, key: str) -> Trial | None:
        """The trial of the plan with this key, if it was ever evaluated."""
        return self._by_key.get(key)

    def append(self, trial: Trial) -> Trial:
        """Write one trial through to the disk. Raises UserError where the disk is full."""
        line = json.dumps({"format": FORMAT, "trial": asdict(trial)}, separators=(",", ":"), allow_nan=False)
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # no half line for the next reader, who could drop one himself
            with contextlib.suppress(OSError), self.path.open("r+b") as half:
                half.truncate(before)
            raise UserError(
                f"Cannot write {self.path}: {error.strerror}.\n"
                "Free some space, then go on with: rlprune-edge compress --resume " + str(self.path.parent)
            ) from error
        self._add(trial)
        return trial

    def _add(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._by_key[trial.plan.key] = trial

    def _load(self) -> None:
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        if lines[-1]:
            with self.path.open("r+b") as file:
                file.truncate(len(data) - len(lines[-1]))
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                if entry["format"] != FORMAT:
                    raise UserError(
                        f"{self.path}, line {number}: format {entry['format']}, this version reads {FORMAT}.\n"
                        "Use the version of rlprune-edge that wrote it."
                    )
                self._add(_TRIAL.validate_python(entry["trial"]))
            except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged ({type(error).__name__}).\n"
                    f"Delete line {number} and all after it; the run goes on from there with --resume."
                ) from error
