"""Turn an agent's replies into records: raw figures checked, circumstances flagged. Boards are not believed."""

from __future__ import annotations

import array
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from rlprune_agent.protocol import Failure, Message, printable
from rlprune_edge.device import trust
from rlprune_edge.device.link import LinkBroken
from rlprune_edge.errors import CandidateError
from rlprune_edge.measurements import Ceiling, DroppedPair, Energy, Measurement, Process, Work

_SLOW_GOVERNORS = frozenset({"ondemand", "schedutil", "conservative", "powersave"})
_MEMORY = ("memory_before_bytes", "memory_peak_bytes", "memory_pss_bytes", "memory_taken_bytes")
_ENERGY_NUMBERS = ("seconds", "idle_mw", "gross_mj", "net_mj", "latency_ms", "samples_hz", "sampler_share")
_WORD = re.compile(r"[a-z0-9_]{1,40}")


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
        gates = result.get("gates")
        lost = _dropped_sizes(gates)
        counted = sum(own) + sum(other)
        kept = counted + sum(aside)
        if (
            kept + sum(lost) != len(samples)
            or min([*aside, *lost, 0]) < 0
            or min([*own, *other, len(own)]) < 1
            or len(other) not in (0, len(own))
        ):
            raise ValueError(
                f"{len(samples)} samples in blocks of {own} and {other}, {aside} set aside, {lost} dropped"
            )
        if min(samples) <= 0 or not isfinite(result["max_output_difference"]):
            raise ValueError("a figure out of range")
        memory = {name: None if result.get(name) is None else int(result[name]) for name in _MEMORY}
        energy, energy_missing = _energy(result.get("energy"))
        return Process(
            candidate_ns=_blocks(samples[: sum(own)], own),
            reference_ns=_blocks(samples[sum(own) : counted], other),
            candidate_set_aside_ns=tuple(samples[counted : counted + aside[0]]),
            reference_set_aside_ns=tuple(samples[counted + aside[0] : kept]),
            candidate_loop=int(result["candidate_loop"]),
            reference_loop=int(result["reference_loop"]),
            warmup_runs=int(result["warmup_runs"]),
            steady=bool(result["steady"]),
            import_ns=int(result["import_ns"]),
            session_ns=int(result["session_ns"]),
            first_run_ns=int(result["first_run_ns"]),
            memory_before_bytes=memory["memory_before_bytes"],
            memory_peak_bytes=memory["memory_peak_bytes"],
            memory_pss_bytes=memory["memory_pss_bytes"],
            memory_taken_bytes=memory["memory_taken_bytes"],
            flags=_words(result["flags"]),
            dropped=_dropped(gates, _blocks(samples[kept:], lost)),
            gates=_readings(gates),
            energy=energy,
            energy_missing=energy_missing,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LinkBroken("version_mismatch", f"the agent's result does not make sense: {error!r}") from None


def _word(value: Any) -> str:
    """A flag or a kind of an agent's: one short word, or it is not one."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"not a word: {value!r:.60}")
    return value


def _words(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"not a list: {values!r:.60}")
    return tuple(sorted({_word(value) for value in values}))


def _plain_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r:.60}")
    return printable(value)[:300]


def _dropped_sizes(gates: Any) -> list[int]:
    """Candidate and reference samples of each dropped pair, in turns."""
    if gates is None:
        return []
    return [int(drop[side]) for drop in gates["dropped"] for side in ("candidate", "reference")]


def _dropped(gates: Any, samples: Sequence[tuple[int, ...]]) -> tuple[DroppedPair, ...]:
    if gates is None:
        return ()
    pairs = zip(gates["dropped"], samples[::2], samples[1::2], strict=True)
    return tuple(
        DroppedPair(int(drop["pair"]), _word(drop["kind"]), _plain_text(drop["why"]), own, other)
        for drop, own, other in pairs
    )


def _readings(gates: Any) -> dict[str, Any] | None:
    """The readings as they came, less what is unpacked elsewhere: for the record, nothing is computed from them."""
    if gates is None:
        return None
    found = {name: _plain(gates[name]) for name in ("start", "end", "readings")}
    for name in ("waited_s", "clock_ns"):
        value = gates.get(name)
        if value is not None and not (isinstance(value, int | float) and isfinite(value) and value >= 0):
            raise ValueError(f"gates.{name} is {value!r:.60}")
        found[name] = value
    return found


def _plain(value: Any, depth: int = 4) -> Any:
    """JSON from a board, safe to keep and to print: printable words, finite numbers, not too deep."""
    if isinstance(value, str):
        return _plain_text(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, list) and depth:
        return [_plain(item, depth - 1) for item in value[:1000]]
    if isinstance(value, dict) and depth:
        return {printable(str(key))[:100]: _plain(item, depth - 1) for key, item in list(value.items())[:500]}
    raise ValueError(f"a reading that is no reading: {value!r:.60}")


def _energy(found: Any) -> tuple[Energy | None, str | None]:
    """The energy of one inference, or why there is none."""
    if found is None:
        return None, None
    if "missing" in found:
        return None, _plain_text(found["missing"])
    numbers = {name: float(found[name]) for name in _ENERGY_NUMBERS}
    # Net energy may come out below zero on a board whose idle power is unsteady; all else must be above.
    if not all(isfinite(v) and (v >= 0 or name == "net_mj") for name, v in numbers.items()) or numbers["seconds"] <= 0:
        raise ValueError(f"an energy out of range: {numbers}")
    return Energy(
        sensor=_plain_text(found["sensor"]),
        rail=_plain_text(found["rail"]),
        inferences=int(found["inferences"]),
        **numbers,
    ), None


def refuse_unfit(process: Process, *, mode: str, source: str, strict: bool = False) -> Process:
    """The process, if its figures may be published. Raises `Failure("not_steady")` (to be tried again) if not.

    In `report` mode a board must have become steady, and its quartiles must not lie more than 25 % apart: that is not
    noise any more. Elsewhere, and on a developer's machine that was not asked to be strict, a flag says it.
    """
    if mode != "report" or (source == "local" and not strict):
        return process
    found = trust.flags([process])
    what_now = "other work or a moving clock (`device check` looks for them); mode `verify` is content with less"
    if "not_steady" in found:
        raise Failure("not_steady", f"the warm-up came to its cap before the latency was steady: {what_now}")
    if "very_noisy" in found:
        raise Failure("not_steady", f"a quarter of the runs took 25 % longer than another quarter: {what_now}")
    return process


def refuse_impossible(measurement: Measurement) -> Measurement:
    """The measurement, if it can be true. Raises `CandidateError("impossible")`: the figure is used for nothing."""
    if measurement.impossible:
        raise CandidateError(
            "impossible",
            f"{measurement.latency_ms.value:.4g} ms is faster than {measurement.device} can compute this model: "
            "its output is constant and was computed ahead, or the device's profile does not fit the device",
        )
    return measurement


def measurement_of(
    processes: Sequence[Process],
    replies: Sequence[Mapping[str, Any]],
    *,
    source: str,
    device: str,
    mode: str,
    threads: int,
    model_sha256: str,
    graph_sha256: str,
    reference_sha256: str | None,
    versions: Mapping[str, str],
    device_seconds: float,
    options: Mapping[str, Any],
    work: Work | None = None,
    ceiling: Ceiling | None = None,
    calibrated_reference_ms: float | None = None,
) -> Measurement:
    """One measurement from its processes and the headers of the replies they came in.

    `work` and `ceiling` allow the check that a latency is physically possible (flag `impossible`, see
    `refuse_impossible`); `calibrated_reference_ms` allows the one whether the reference is as fast as ever.
    """
    memory_mb, memory_delta_mb = trust.memory_mb(processes)
    latency_ms, reference_ms = trust.latency(processes), trust.reference_latency(processes)
    flags = set(trust.flags(processes)) | circumstances(replies)
    if work and ceiling and latency_ms.value < trust.fastest_possible_ms(work, ceiling):
        flags.add("impossible")
    if reference_ms and calibrated_reference_ms:
        drift = trust.reference_drift(reference_ms.value, calibrated_reference_ms)
        flags |= {drift} if drift else set()
    missing = sorted({p.energy_missing for p in processes if p.energy_missing})
    return Measurement(
        source=source,
        device=device,
        mode=mode,
        threads=threads,
        model_sha256=model_sha256,
        graph_sha256=graph_sha256,
        reference_sha256=reference_sha256,
        latency_ms=latency_ms,
        reference_ms=reference_ms,
        speedup=trust.speedup(processes),
        percentiles_ms=trust.percentiles(processes),
        memory_mb=memory_mb,
        memory_delta_mb=memory_delta_mb,
        max_output_difference=max(float(reply["result"]["max_output_difference"]) for reply in replies),
        flags=tuple(sorted(flags)),
        processes=tuple(processes),
        vitals_before=dict(replies[0]["vitals_before"]),
        vitals_after=dict(replies[-1]["vitals_after"]),
        versions=dict(versions),
        device_seconds=device_seconds,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        options={
            "session": replies[0]["result"]["options"],
            **options,
            **({"energy_missing": missing} if missing else {}),
        },
        energy=trust.energy(processes),
    )


def times_of(message: Message, count: int) -> list[float]:
    """The nanoseconds of a sweep over `count` models. Raises `LinkBroken` if they do not make sense."""
    times = array.array("d", message.body).tolist() if len(message.body) == 8 * count else []
    if len(times) != count or not all(0 < value < float("inf") for value in times):
        raise LinkBroken("version_mismatch", f"a sweep of {count} models came back with {len(times)} usable times")
    return times


def circumstances(replies: Sequence[Mapping[str, Any]]) -> set[str]:
    """Flags from the vitals around each process; nothing is refused for them here.

    Where the agent's gates watched the process, they know better than a load average of the last minute and the
    first two are theirs to say.

    `busy`: more runnable processes than CPUs; `config_changed`: governor, CPUs or boot differ before and after;
    `cpu_scaling`: a governor that follows the load.
    """
    found: set[str] = set()
    for reply in replies:
        before, after = reply["vitals_before"], reply["vitals_after"]
        watched = "gates" in reply["result"]
        if not watched and before.get("loadavg", [0])[0] > before.get("online_cpus", float("inf")):
            found.add("busy")
        if not watched and any(before.get(name) != after.get(name) for name in ("governor", "online_cpus", "boot_id")):
            found.add("config_changed")
        if _SLOW_GOVERNORS & set(before.get("governor", {}).values()):
            found.add("cpu_scaling")
    return found
