"""A profile in a device's place: what it predicts of every plan, where nothing is measured at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from rlprune_edge.latency_profile import LatencyProfile
from rlprune_edge.measurements import Interval, Measurement
from rlprune_edge.records import Plan, PruningSpace
from rlprune_edge.search.latency import LatencyModel

SOURCE = "estimate"


def estimates(profile: LatencyProfile, space: PruningSpace) -> Callable[[Plan], Measurement]:
    """What the profile says of a plan of `space`, as a measurement of source `estimate`.

    The uncut network has its measured figures. All others have those that the latency model predicts once it has
    learned all of the profile's plans; their interval is as wide as the largest error on the plans that were held out.
    The same plan has the same figures, always.
    """
    model = LatencyModel(space, profile.tables, baseline_ms=profile.latency_ms, baseline_memory_mb=profile.memory_mb)
    for timed in profile.plans:
        model.observe(timed.plan, profile.latency_ms / timed.speedup, timed.memory_mb)
    uncut = space.uncut().key

    def estimate(plan: Plan) -> Measurement:
        if plan.key == uncut:
            ms, off, memory = profile.latency_ms, 0.0, profile.memory_mb
        else:
            ms, off, memory = model.predict_ms(plan), profile.largest_error, model.predict_memory_mb(plan)
        return Measurement(
            source=SOURCE,
            device=profile.device,
            mode=SOURCE,
            threads=profile.threads,
            model_sha256="",
            graph_sha256="",
            reference_sha256=None,
            latency_ms=_within(ms, off),
            reference_ms=_within(profile.latency_ms, 0.0),
            speedup=_within(profile.latency_ms / ms, off),
            percentiles_ms={},
            memory_mb=memory,
            memory_delta_mb=None,
            max_output_difference=0.0,
            flags=("not_measured",),
            processes=(),
            vitals_before={},
            vitals_after={},
            versions={},
            device_seconds=0.0,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    return estimate


def _within(value: float, off: float) -> Interval:
    return Interval(value, value / (1 + off), value * (1 + off))
