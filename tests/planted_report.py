"""A run that never was, whose report tests know by heart: names that try to be markup, a failure, a front of three."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from rlprune_edge.measurements import Interval, Measurement
from rlprune_edge.records import Block, Failure, Group, MetricSpec, PruningSpace, Quality, Score, Target, Trial
from rlprune_edge.report import build_report

EVIL = "</script><script>alert(1)</script>"
SPACE = PruningSpace(
    groups=(
        Group("stem", 16, (16, 8), (), (), None, 0.0, 100),
        Group(f"block.{EVIL}", 32, (32, 16), (), (), "block", 0.5, 100),
        Group("tail", 64, (64, 32), (), (), None, 1.0, 100),
    ),
    blocks=(Block("block", 0.5, 100, ()),),
    ops=(),
    parameters=1000,
)


def trial(
    number: int,
    latency: float | None,
    metric: float,
    *,
    stem: int = 16,
    tail: int = 64,
    dropped: tuple[str, ...] = (),
    **changes: Any,
) -> Trial:
    measurement = latency and Measurement(
        source="local", device="local", mode="reward", threads=2, model_sha256="m", graph_sha256="g",
        reference_sha256="r", latency_ms=Interval(latency, latency * 0.98, latency * 1.02), reference_ms=None,
        speedup=Interval(4 / latency, 3.9 / latency, 4.1 / latency), percentiles_ms={}, memory_mb=50.0,
        memory_delta_mb=None, max_output_difference=0.0, flags=(), processes=(), vitals_before={}, vitals_after={},
        versions={"onnxruntime": "1.2.3"}, device_seconds=1.0, measured_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    values: dict[str, Any] = {
        "number": number,
        "plan": SPACE.plan({"stem": stem, "tail": tail}, dropped),
        "quality": Quality(metric, (100 - metric) / 50, 200),
        "parameters": 1000,
        "macs": 5000,
        "artifact": None,
        "measurement": measurement or None,
        "failure": None,
        "score": Score(metric / 100, metric / 100, number == 2),
        "seconds": {"cut": 0.25, "measure": 1.5},
    }
    return Trial(**{**values, **changes})


TRIALS = (
    trial(0, 4.0, 97.0),
    trial(1, 3.0, 90.0, stem=12),
    trial(2, 2.0, 92.0, stem=8, dropped=("block",)),
    trial(3, 2.5, 91.0, stem=7),
    trial(4, None, 0.0, stem=6, quality=None, failure=Failure("output_mismatch", f"differs at {EVIL}")),
    trial(5, 1.0, 60.0, stem=5, tail=10),
)
BASELINE = {
    "metric": 96.5, "parameters": 272_474, "macs": 40_813_184, "onnx_bytes": 1_093_122, "latency_ms": 4.0,
    "latency_ci_ms": [3.95, 4.05], "memory_mb": 50.5, "split": "test",
}  # fmt: skip
COMPRESSED = {
    "metric": 96.19, "parameters": 130_000, "macs": 18_000_000, "onnx_bytes": 520_000, "latency_ms": 1.96,
    "latency_ci_ms": [1.94, 1.99], "memory_mb": 44.25, "speedup": 2.04, "speedup_ci": [2.01, 2.07],
    "drop": 0.31, "plan_key": TRIALS[2].plan.key,
}  # fmt: skip


SLOWER = {**COMPRESSED, "speedup": 0.8, "drop": 0.001}
NOT_MET: dict[str, Any] = {"status": "infeasible", "compressed": None, "nearest": (TRIALS[5],)}


def report(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "status": "met",
        "task": "digits",
        "model": f"resnet {EVIL}",
        "device": "local",
        "metric": MetricSpec("accuracy", True),
        "baseline": BASELINE,
        "compressed": COMPRESSED,
        "target": Target(speedup=2.0, max_drop=1.0),
        "budget": {"candidates": 6, "device_seconds": None},
        "spent": {"candidates": 5, "device_seconds": 12.5, "wall_seconds": 33.25},
        "search": {"agent": "ppo", "seed": 3, "command": f"rlprune-edge compress --out '{EVIL}'", "mode": "report"},
        "trials": TRIALS,
        "notes": (f"weights saw the validation images <{EVIL}>",),
        "fine_tuning": [
            {
                "plan_key": TRIALS[2].plan.key,
                "validation_metric": 95.5,
                "epochs": [{"number": n, "train_loss": 1 / n} for n in (1, 2, 3)],
            }
        ],
        "bundle": "runs/a/bundle",
    }
    return build_report(**{**values, **changes})


class Page(HTMLParser):
    """What a browser would see: loads, ids, text by tag; scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.setdefault(tag, []).append("")
        self.inside = tag
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data", "poster"):
                self.loads.append(value or "")
            if name == "id" and tag != "script":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside][-1] += data


def plot(html: str, name: str) -> list[dict[str, Any]]:
    """The traces that plotly is given for one plot."""
    start = html.index("[", html.index('"data":', html.index(f'<div id="plot-{name}"')))
    traces: list[dict[str, Any]] = json.JSONDecoder().raw_decode(html[start:])[0]
    return traces
