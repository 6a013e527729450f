"""What `measure` found out, in words for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlprune_edge.measurements import Measurement, Verdict
from rlprune_edge.progress import threads_in_words
from rlprune_edge.report_words import milliseconds, size

FLAGS = {
    "blocks_dropped": "disturbed blocks were thrown away and taken again",
    "busy": "other processes wanted the CPU; the interval is wider for it",
    "capped": "the time was up before there were enough blocks",
    "clock_unstable": "the CPU did not always run at the same clock",
    "config_changed": "governor, clock limits or CPUs changed meanwhile",
    "contended": "many runs waited for a CPU and were taken again",
    "correlated": "neighbouring runs are alike; the interval allows for it",
    "cpu_scaling": "the frequency governor follows the load",
    "few_blocks": "too few blocks for an interval: it is only a range",
    "gate_timed_out": "the device never cooled down to where a measurement should begin",
    "mean_of_k": "one inference is too short to time alone: a sample is the mean of several, so only p50 can be given",
    "memory_not_reset": "the kernel does not let a memory peak be reset: memory includes the runtime's own start",
    "multimodal": "the runs have several speeds",
    "noisy": "a quarter of the runs took 10 % longer than another quarter",
    "not_steady": "the warm-up ended before the latency was steady",
    "processes_differ": "fresh processes differ by more than each one's interval",
    "reference_drift": "the reference was more than 5 % off what it took at first",
    "reference_lost": "the reference was more than 15 % off what it took at first",
    "swapping": "the model waited for the disk",
    "throttled": "the device was slowed down for heat",
    "undervoltage": "the supply voltage was too low",
    "very_noisy": "a quarter of the runs took 25 % longer than another quarter",
    "warming": "the device warmed up by more than 15 degrees",
}
"""what a flag of a measurement says"""

_KINDS = {"local": "this machine", "board": "measured there", "emulated": "emulated", "simulated": "simulated"}


def lines(device: str, measurements: Sequence[Measurement], paths: Sequence[Path]) -> Iterator[str]:
    """One block per model."""
    first = measurements[0]
    yield f"{device} ({_KINDS.get(first.source, first.source)}), {threads_in_words(first.threads)}, mode {first.mode}"
    for path, measurement in zip(paths, measurements, strict=True):
        yield ""
        yield f"{path} ({size(path.stat().st_size)})"
        for title, text in _rows(measurement):
            yield f"  {title:<12} {text}"
    yield ""


def _rows(m: Measurement) -> Iterator[tuple[str, str]]:
    low, high = milliseconds(m.latency_ms.low, ""), milliseconds(m.latency_ms.high, "")
    kind = "range" if "few_blocks" in m.flags or "processes_differ" in m.flags else "95 % interval"
    yield "latency", f"{milliseconds(m.latency_ms.value)} ({kind} {low} to {high})"
    known = {name: value for name, value in m.percentiles_ms.items() if value is not None and name != "p50"}
    if known:
        yield "percentiles", ", ".join(f"{name} {milliseconds(value)}" for name, value in known.items())
    middle = sorted(m.processes, key=lambda p: p.first_run_ns)[len(m.processes) // 2]
    yield (
        "start",
        (
            f"first run {milliseconds(middle.first_run_ns / 1e6)}, loading the model "
            f"{milliseconds(middle.session_ns / 1e6)}, importing onnxruntime {milliseconds(middle.import_ns / 1e6)}"
        ),
    )
    if m.memory_mb is None or m.memory_delta_mb is None:
        yield "memory", "not known: this kernel does not count it"
    else:
        yield "memory", f"{m.memory_mb:.1f} MB at the peak, {m.memory_delta_mb:.1f} MB of it the model's"
    if m.energy is not None:
        e = m.energy
        yield (
            "energy",
            (
                f"{e.net_mj:.2f} mJ per inference above idle, {e.gross_mj:.2f} mJ in all ({e.rail}, {e.sensor}, "
                f"read {e.samples_hz:.0f} times a second)"
            ),
        )
    elif missing := m.options.get("energy_missing"):
        yield "energy", f"not known: {'; '.join(missing)}"
    for flag in m.flags:
        yield "flag", f"{flag}: {FLAGS.get(flag, 'see the documentation')}"


def verdict_lines(found: Verdict, first: Path, second: Path, *, calibrated: bool, device: str) -> Iterator[str]:
    """Who is faster, as far as the figures carry it."""
    ratio = f"{found.speedup.value:.3f}x ({found.speedup.low:.3f} to {found.speedup.high:.3f})"
    sentence = {
        "faster": f"{first} is faster than {second}: {ratio}",
        "slower": f"{first} is slower than {second}: {ratio}",
        "same": f"{first} is as fast as {second}, as far as can be told: {ratio}",
        "noisy": f"too noisy to say whether {first} is faster than {second}: {ratio}",
    }[found.word]
    yield f"verdict: {found.word}. {sentence}."
    whose = "the noise floor this device was calibrated at" if calibrated else "taken as the noise floor"
    advice = "" if calibrated or device == "local" else f" (rlprune-edge device calibrate {device} finds out its own)"
    yield f"Differences up to {found.noise_floor:.2%} are {whose}{advice}."
