"""Energy of one inference, in a window of its own after the timing: a sampler must not run while latency is taken."""

from __future__ import annotations

from typing import Any, Callable

from rlprune_agent.world import Samples, World

IDLE_SECONDS = 10.0
LOOP_SECONDS = 10.0
PERIOD_SECONDS = 0.05
"""20 readings a second are asked for, so that a slow sensor still gives the 10 that are needed"""
_FEWEST_HZ = 10.0


def integral_mj(samples: Samples, began_ns: int, ended_ns: int) -> float:
    """Millijoules between two moments: trapezoids between samples in milliwatts, the outermost held to the edges.

    Raises `ValueError` for fewer than two samples in the window.
    """
    inside = [(when, mw) for when, mw in samples if began_ns <= when <= ended_ns]
    if len(inside) < 2:
        raise ValueError(f"the power sensor gave {len(inside)} readings in the window")
    total = inside[0][1] * (inside[0][0] - began_ns) + inside[-1][1] * (ended_ns - inside[-1][0])
    for (t0, p0), (t1, p1) in zip(inside, inside[1:]):
        total += (p0 + p1) / 2 * (t1 - t0)
    return total / 1e9


def measure_energy(
    run: Callable[[], object],
    world: World,
    *,
    idle_seconds: float = IDLE_SECONDS,
    loop_seconds: float = LOOP_SECONDS,
) -> dict[str, Any]:
    """Idle window, then a window full of inferences; per inference gross, and net of the idle power.

    The latency is that of this very window. A board without a sensor, or whose sensor fails, gives `{"missing": why}`.
    """
    try:
        meter = world.power_meter()
        began = world.now_ns()
        sampling = world.sample(meter.read_mw, PERIOD_SECONDS)
        world.sleep(idle_seconds)
        samples, _ = sampling.stop()
        idle_ended = world.now_ns()
        idle_mw = integral_mj(samples, began, idle_ended) / ((idle_ended - began) / 1e9)

        sampling = world.sample(meter.read_mw, PERIOD_SECONDS)
        count, began = 0, world.now_ns()
        try:
            while world.now_ns() - began < loop_seconds * 1e9:
                run()
                count += 1
            ended = world.now_ns()
        finally:
            samples, cost_ns = sampling.stop()
        gross_mj = integral_mj(samples, began, ended)
    except (OSError, ValueError) as error:
        return {"missing": str(error)[:500]}
    seconds = (ended - began) / 1e9
    hertz = sum(began <= when <= ended for when, _ in samples) / seconds
    if hertz < _FEWEST_HZ:
        return {"missing": f"the power sensor gave {hertz:.1f} readings a second; {_FEWEST_HZ:g} are needed"}
    return {
        "sensor": meter.sensor,
        "rail": meter.rail,
        "inferences": count,
        "seconds": seconds,
        "idle_mw": idle_mw,
        "gross_mj": gross_mj / count,
        "net_mj": (gross_mj - idle_mw * seconds) / count,
        "latency_ms": seconds * 1e3 / count,
        "samples_hz": hertz,
        "sampler_share": cost_ns / 1e9 / seconds,
    }
