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
class TimedPlan:
    """A plan with what was measured of it."""

    plan: Plan
    speedup: float
    """over the uncut model, in turns with it"""
    memory_mb: float | None


@dataclass(frozen=True)
class LatencyProfile:
    """What was timed of a model on a board."""

    tables: tuple[WidthTimes, ...]
    plans: tuple[TimedPlan, ...]
    device: str
    threads: int
    latency_ms: float
    """of the uncut model"""
    memory_mb: float | None
    """likewise"""
    held_out: int
    """plans that predictions were tried on"""
    mean_error: float
    """of these predictions, a share of what was measured"""
    largest_error: float
    """likewise"""


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
            TimedPlan(space.plan(p["widths"], tuple(p["dropped"])), float(p["speedup"]), p["memory_mb"])
            for p in found["plans"]
            if p["speedup"]
        )
        tried = found["prediction"][-1]
        return LatencyProfile(
            tables,
            plans,
            device=str(found["device"]),
            threads=int(found["threads"]),
            latency_ms=float(found["latency_ms"]),
            memory_mb=found["memory_mb"],
            held_out=int(tried["held_out"]),
            mean_error=float(tried["mean_error_percent"]) / 100,
            largest_error=float(tried["largest_error_percent"]) / 100,
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a profile: {error!r}.\nMake one with: rlprune-edge profile") from error
