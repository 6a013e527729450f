"""Small records that many tests need."""

from __future__ import annotations

from typing import Any

from rlprune_edge.measurements import Interval, Measurement, Process
from rlprune_edge.records import Block, Group, Op, Plan, PruningSpace, Quality, Score, Trial


def a_space() -> PruningSpace:
    """Two groups and one block: `a -> block(b) -> head`."""
    sizes: dict[str, Any] = {
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "conv_groups": 1,
        "in_hw": (8, 8),
        "out_hw": (8, 8),
    }
    ops = (
        Op("a", "conv", 3, 16, in_group=None, out_group="a", block=None, **sizes),
        Op("block.b", "conv", 16, 32, in_group="a", out_group="block.b", block="block", **sizes),
        Op("block.c", "conv", 32, 16, in_group="block.b", out_group="a", block="block", **sizes),
    )
    groups = (
        Group("a", 16, (16, 12, 8), ("a", "block.c"), ("block.b",), None, 0.0, 1000),
        Group("block.b", 32, (32, 16), ("block.b",), ("block.c",), "block", 0.5, 2000),
    )
    return PruningSpace(groups, (Block("block", 0.5, 2000, ("block.b", "block.c")),), ops, 3000)


def a_measurement(milliseconds: float = 1.0, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "source": "local", "device": "local", "mode": "reward", "threads": 1, "model_sha256": "m", "graph_sha256": "g",
        "reference_sha256": "r", "latency_ms": Interval(milliseconds, milliseconds * 0.99, milliseconds * 1.01),
        "reference_ms": Interval(2.0, 1.98, 2.02),
        "speedup": Interval(2 / milliseconds, 1.9 / milliseconds, 2.1 / milliseconds),
        "percentiles_ms": {"p50": milliseconds, "p99": None}, "memory_mb": 80.0, "memory_delta_mb": 10.0,
        "max_output_difference": 0.0, "flags": ("noisy",),
        "processes": (Process(((1, 2), (3, 4)), ((5, 6), (7, 8)), 1, 1, 5, True, 1, 2, 3, None, 80_000_000),),
        "vitals_before": {"load": 0.5}, "vitals_after": {}, "versions": {"onnxruntime": "1"}, "device_seconds": 1.5,
        "measured_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Measurement(**{**values, **changes})


def a_trial(number: int, plan: Plan, *, milliseconds: float = 1.0, reward: float = 0.5, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "number": number, "plan": plan, "quality": Quality(90.0, 0.3, 100), "parameters": 3000, "macs": 1_000_000,
        "artifact": None, "measurement": a_measurement(milliseconds), "failure": None,
        "score": Score(reward, reward, True, {"quality": reward}), "seconds": {"cut": 0.1, "measure": 1.0},
    }  # fmt: skip
    return Trial(**{**values, **changes})
