"""What the host wants watched while it measures (`settings.gates`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlprune_agent.protocol import Failure

KINDS = (
    "throttled",
    "undervoltage",
    "busy",
    "clock_unstable",
    "swapping",
    "config_changed",
    "gate_timed_out",
)
"""of failures that the gates raise, and that a policy may ask to be flagged instead"""


class Policy(NamedTuple):
    """What the host wants watched (`settings.gates`); a limit of `None` is not watched."""

    sources: tuple[str, ...] | None = None
    """of telemetry that this board has, see `sensors.SOURCES`; `None`: whatever is found"""
    start_celsius: float | None = None
    """at most this warm at the start"""
    stop_celsius: float | None = None
    """too warm to go on"""
    throttle: bool = True
    """the firmware's throttle bits mean something"""
    undervoltage: bool = True
    """the board has a low-voltage detector"""
    max_clock_loss: float | None = 0.03
    """how much slower than calibrated the arithmetic loop may be, as a share"""
    clock_ns: float | None = None
    """the calibrated time of the loop (see `ClockLoop.ns`); without one the fastest of this session counts"""
    load_percent: float | None = 5.0
    """of one CPU, by others"""
    wait_seconds: float = 180.0
    """to cool down, in all"""
    load_wait_seconds: float = 90.0
    """for others to finish, in all"""
    poll_seconds: float = 2.0
    retries: int = 2
    """how often the same pair of blocks may be dropped and taken again"""
    flag_only: tuple[str, ...] = ()
    """kinds that are written down and nothing else"""


def policy_of(settings: dict[str, Any]) -> Policy | None:
    """The policy in a job's settings, `None` if there is none. Raises `Failure("bad_request")`; unknown keys pass."""
    wanted = settings.get("gates")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise Failure("bad_request", "settings.gates is not an object")
    values: dict[str, Any] = {}
    for name, default in Policy._field_defaults.items():
        if name not in wanted:
            continue
        value = wanted[name]
        if name in ("sources", "flag_only"):
            good = isinstance(value, list) and all(isinstance(word, str) for word in value)
            value = tuple(value) if good else value
        elif isinstance(default, bool):
            good = isinstance(value, bool)
        else:
            optional = name in ("start_celsius", "stop_celsius", "max_clock_loss", "clock_ns", "load_percent")
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
            good = number or (optional and value is None)
        if not good:
            raise Failure("bad_request", f"settings.gates.{name} is not usable: {value!r}")
        values[name] = value
    policy = Policy(**values)
    if policy.poll_seconds <= 0:
        raise Failure("bad_request", "settings.gates.poll_seconds must be above 0")
    return policy


def wants_energy(settings: dict[str, Any]) -> bool:
    """Is energy to be measured? Raises `Failure("bad_request")`."""
    wanted = settings.get("energy", False)
    if not isinstance(wanted, bool):
        raise Failure("bad_request", "settings.energy is not true or false")
    return wanted
