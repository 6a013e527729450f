"""profile.json: a board's latency table for one model, as a file that others can use."""

# Format history of profile.json:
#   1: {"format": 1, "groups": {group: full width}, "tables": [{"groups", "layers", "offered", "times_ns"}],
#      "plans": [{"widths", "dropped", "latency_ms", "speedup", ...}], ...}, as `profile.profile` writes it.

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_profile(path: Path) -> dict[str, Any]:
    """What is in a profile's file, or in the folder that `profile` wrote. Raises UserError."""
    path = path / NAME if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = found["format"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a profile: {error!r}.\nMake one with: rlprune-edge profile") from error
    if known != FORMAT:
        raise UserError(f"{path}: format {known}, this version reads {FORMAT}.")
    return dict(found)


def load_profile(path: Path, space: PruningSpace) -> LatencyProfile:
    """The profile in a file or folder, for this space. Raises UserError where it is of another model."""
    found = read_profile(path)
    try:
        if found["groups"] != {g.name: g.width for g in space.groups}:
            raise UserError(f"{path} is the profile of another model: {found['model']}.")
        tables = tuple(
            WidthTimes(tuple(t["groups"]), {int(n): float(ns) for n, ns in t["times_ns"].items()})
            for t in found["tables"]
        )
        plans = tuple(
            (space.plan(p["widths"], tuple(p["dropped"])), float(p["speedup"])) for p in found["plans"] if p["speedup"]
        )
        return LatencyProfile(tables, plans, str(found["device"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a profile: {error!r}.\nMake one with: rlprune-edge profile") from error
