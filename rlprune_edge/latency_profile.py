"""profile.json: a board's latency table for one model, as a file that others can use."""

# Format history of profile.json:
#   1: {"format": 1, "groups": {group: full width}, "tables": [{"groups", "layers", "offered", "times_ns"}],
#      "plans": [{"widths", "dropped", "latency_ms", "speedup", ...}], ...}, as `profile.profile` writes it.

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlprune_edge.errors import UserError
from rlprune_edge.records import Plan, PruningSpace, WidthTimes

FORMAT = 1
NAME = "profile.json"


@dataclass(frozen=True)
class LatencyProfile:
    """What was timed of a model on a board."""

    tables: tuple[WidthTimes, ...]
    plans: tuple[tuple[Plan, float], ...]
    """with their measured speed-ups over the uncut model"""
    device: str


def load_profile(path: Path, space: PruningSpace) -> LatencyProfile:
    """The profile in a file, or in the folder that `profile` wrote. Raises UserError where it is of another model."""
    path = path / NAME if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(f"{path}: format {found['format']}, this version reads {FORMAT}.")
        if found["groups"] != {g.name: g.width for g in space.groups}:
            raise UserError(f"{path} is the profile of another model: {found['model']}.")
        tables = tuple(
            WidthTimes(tuple(t["groups"]), {int(n): float(ns) for n, ns in t["times_ns"].items()})
            for t in found["tables"]
        )
        plans = tuple(
            (space.plan(p["widths"], tuple(p["dropped"])), float(p["speedup"])) for p in found["plans"] if p["speedup"]
        )
        device = str(found["device"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a profile: {error!r}.\nMake one with: rlprune-edge profile") from error
    return LatencyProfile(tables, plans, device)
