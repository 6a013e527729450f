"""Turn an agent's replies into records: raw figures checked, circumstances flagged. Boards are not believed."""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from rlprune_agent.protocol import Message
from rlprune_edge.device.link import LinkBroken
from rlprune_edge.records import Process

_SLOW_GOVERNORS = frozenset({"ondemand", "schedutil", "conservative", "powersave"})
_MEMORY = ("memory_before_bytes", "memory_peak_bytes")


def _blocks(samples: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    rest = iter(samples)
    return tuple(tuple(next(rest) for _ in range(size)) for size in sizes)


def process_of(message: Message) -> Process:
    """The raw figures of one process. Raises `LinkBroken` if they do not make sense."""
    try:
        result = message.header["result"]
        samples = array.array("q", message.body).tolist()
        own, other = [[int(n) for n in result[name]] for name in ("candidate_blocks", "reference_blocks")]
        aside = [int(result[name]) for name in ("candidate_set_aside", "reference_set_aside")]
        counted = sum(own) + sum(other)
        if (
            counted + sum(aside) != len(samples)
            or min(aside) < 0
            or min([*own, *other, len(own)]) < 1
            or len(other) not in (0, len(own))
        ):
            raise ValueError(f"{len(samples)} samples in blocks of {own} and {other}, {aside} set aside")
        if min(samples) <= 0 or not isfinite(result["max_output_difference"]):
            raise ValueError("a figure out of range")
        memory = {name: None if result[name] is None else int(result[name]) for name in _MEMORY}
        return Process(
            candidate_ns=_blocks(samples[: sum(own)], own),
            reference_ns=_blocks(samples[sum(own) : counted], other),
            candidate_set_aside_ns=tuple(samples[counted : counted + aside[0]]),
            reference_set_aside_ns=tuple(samples[counted + aside[0] :]),
            candidate_loop=int(result["candidate_loop"]),
            reference_loop=int(result["reference_loop"]),
            warmup_runs=int(result["warmup_runs"]),
            steady=bool(result["steady"]),
            import_ns=int(result["import_ns"]),
            session_ns=int(result["session_ns"]),
            first_run_ns=int(result["first_run_ns"]),
            memory_before_bytes=memory["memory_before_bytes"],
            memory_peak_bytes=memory["memory_peak_bytes"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LinkBroken("version_mismatch", f"the agent's result does not make sense: {error!r}") from None


def times_of(message: Message, count: int) -> list[float]:
    """The nanoseconds of a sweep over `count` models. Raises `LinkBroken` if they do not make sense."""
    times = array.array("d", message.body).tolist() if len(message.body) == 8 * count else []
    if len(times) != count or not all(0 < value < float("inf") for value in times):
        raise LinkBroken("version_mismatch", f"a sweep of {count} models came back with {len(times)} usable times")
    return times


def circumstances(replies: Sequence[Mapping[str, Any]]) -> set[str]:
    """Flags from the vitals around each process; nothing is refused for them here.

    `busy`: more runnable processes than CPUs; `config_changed`: governor, CPUs or boot differ before and after;
    `cpu_scaling`: a governor that follows the load; besides what the agent flagged (`swapping`, `capped`,
    `memory_not_reset`, and `contended`: more than 10 % of samples had to wait for a CPU and were taken again).
    """
    found: set[str] = set()
    for reply in replies:
        before, after = reply["vitals_before"], reply["vitals_after"]
        if before.get("loadavg", [0])[0] > before.get("online_cpus", float("inf")):
            found.add("busy")
        if any(before.get(name) != after.get(name) for name in ("governor", "online_cpus", "boot_id")):
            found.add("config_changed")
        if _SLOW_GOVERNORS & set(before.get("governor", {}).values()):
            found.add("cpu_scaling")
        found.update(str(flag) for flag in reply["result"]["flags"])
    return found
