"""Time one candidate, alone in a fresh process, in turns with a reference model.

Order of events, so that no figure spoils another: import the runtime; read the inputs; reset the memory peak; load and
run the candidate; read the peak (the candidate's alone, and no memory is read again); load the reference; warm up both;
time blocks of both in turns A B B A; compare the last output. A peak read before the clock starts costs the timing
nothing, which is why there is no separate pass for memory.
"""

from __future__ import annotations

import ctypes
import io
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict

from rlprune_agent import intake, synth, vitals
from rlprune_agent.energy import measure_energy
from rlprune_agent.gates import Gates
from rlprune_agent.policy import policy_of, wants_energy
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store
from rlprune_agent.timed import Timed
from rlprune_agent.turns import figures, take_turns
from rlprune_agent.world import ThisDevice

if TYPE_CHECKING:
    import numpy as np

    from rlprune_agent.runtime import Asked, Model

Tell = Callable[[Dict[str, Any], bytes], None]

_MEMORY_RUNS = 3


def _status(key: str) -> int | None:
    match = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match.group(1)) * 1024 if match else None


def reset_peak() -> bool:
    """Set this process's VmHWM back to its present size; `False` where the kernel has no such switch.

    Memory that was freed goes back to the system first, or the model would be given it and seem so much smaller.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Peak resident memory of this process (VmHWM), `None` where there is no /proc."""
    try:
        return _status("VmHWM")
    except OSError:
        return None


def _arrays(store: Store, files: dict[str, str]) -> dict[str, np.ndarray]:
    import numpy as np

    arrays = {}
    for name, sha256 in files.items():
        try:
            arrays[name] = np.load(io.BytesIO(store.read(sha256)), allow_pickle=False)
        except ValueError as error:
            raise Failure("bad_request", f"input {name} is not an array: {error}") from None
    return arrays


def largest_difference(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest absolute difference over all expected outputs; infinite where name, shape or a NaN differs."""
    import numpy as np

    worst = 0.0
    for name, want in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != want.shape:
            return float("inf")
        if not want.size:
            continue
        difference = float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64))))
        if not difference <= worst:  # also true of a NaN
            worst = difference
        if worst != worst:
            return float("inf")
    return worst


def _bytes_of(job: dict[str, Any], which: str, store: Store) -> bytes:
    """The candidate's or the reference's file, checked, and with made-up weights where it came without any."""
    weights = (job.get("weights") or {}).get(which)
    return synth.whole(store.read(job[which]), weights, intake.memory_limit())


def _check(
    model: Model, outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], job: dict[str, Any], when: str
) -> float:
    """The largest difference; no output may be further off than the job's `tolerances` for it, else its `tolerance`.

    With nothing to compare with, the weights are made up, and outputs need only be sane.
    """
    if not expected:
        model.check_made_up(outputs)
        return 0.0
    worst, allowed = 0.0, job.get("tolerances") or {}
    for name, want in expected.items():
        difference, tolerance = largest_difference(outputs, {name: want}), allowed.get(name, job["tolerance"])
        if difference > tolerance:
            text = "the {} output {} differs from the host's by {:.3g}; {:.3g} is allowed"
            raise Failure("output_mismatch", text.format(when, name, difference, tolerance))
        worst = max(worst, difference)
    return worst


def pss_bytes() -> int | None:
    """Resident memory of this process, shared pages divided; reading it takes milliseconds, so never when timing."""
    try:
        return vitals.number(Path("/proc/self/smaps_rollup"), "Pss") * 1024
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """Memory the kernel could still give; on a Jetson the GPU takes its share of it, too."""
    try:
        return vitals.number(Path("/proc/meminfo"), "MemAvailable") * 1024
    except (OSError, ValueError):
        return None


def _prepared(
    data: bytes, job: dict[str, Any], where: Asked, feeds: dict[str, np.ndarray], tell: Tell, phase: str
) -> tuple[dict[str, int], int]:
    """Build what the provider builds, in a phase of its own; nodes by provider, and the nanoseconds it took."""
    from rlprune_agent import runtime

    tell({"phase": "prepare"}, b"")
    began = time.perf_counter_ns()
    nodes = runtime.prepare(data, job["threads"], where, feeds)
    tell({"phase": phase}, b"")
    return nodes, time.perf_counter_ns() - began


def measure(job: dict[str, Any], tell: Tell) -> None:
    """Do one `measure` job and tell its result; `tell` also hears which phase is beginning.

    Raises `Failure`; which model it was about is in the phase told last.
    """
    settings = job["settings"]
    energy_too, policy = wants_energy(settings), policy_of(settings)
    world = ThisDevice(Path(job.get("root", "/")), policy.sources if policy else None)
    deadline_ns = world.now_ns() + settings["cap_seconds"] * 1e9
    gate = Gates(policy, world, lambda waits: tell({"phase": "gates" if waits else "timing"}, b"")) if policy else None
    store = Store(Path(job["store"]), quota_bytes=0)
    tell({"phase": "runtime"}, b"")
    began = time.perf_counter_ns()
    from rlprune_agent import runtime

    import_ns = time.perf_counter_ns() - began
    feeds, expected = _arrays(store, job["inputs"]), _arrays(store, job["expected"])
    where = runtime.asked(job)
    tell({"phase": "candidate"}, b"")
    data = _bytes_of(job, "candidate", store)
    nodes = None
    if where.provider != runtime.CPU:
        nodes, taken_ns = _prepared(data, job, where, feeds, tell, "candidate")
        deadline_ns += taken_ns
    flags = [] if reset_peak() else ["memory_not_reset"]
    before, free = peak_bytes(), available_bytes()

    began = time.perf_counter_ns()
    model = runtime.Model(data, job["threads"], where)
    session_ns = time.perf_counter_ns() - began
    del data
    began = time.perf_counter_ns()
    outputs = model.checked_run(feeds)
    first_run_ns = time.perf_counter_ns() - began
    difference = _check(model, outputs, expected, job, "first")
    for _ in range(_MEMORY_RUNS):
        model.checked_run(feeds)
    peak, pss, left = peak_bytes(), pss_bytes(), available_bytes()

    candidate = Timed(model, feeds, world)
    reference = None
    if job.get("reference"):
        tell({"phase": "reference"}, b"")
        data = _bytes_of(job, "reference", store)
        if where.provider != runtime.CPU:
            _, taken_ns = _prepared(data, job, where, feeds, tell, "reference")
            deadline_ns += taken_ns
        reference_model = runtime.Model(data, job["threads"], where)
        del data
        reference_model.checked_run(feeds)
        reference = Timed(reference_model, feeds, world)

    tell({"phase": "timing"}, b"")
    if gate:
        gate.open()
    turns = take_turns(candidate, reference, settings, world, gates=gate, deadline_ns=deadline_ns)
    header, body = figures(turns, candidate, reference, gate)
    if energy_too:
        tell({"phase": "energy"}, b"")
        header["energy"] = measure_energy(lambda: model.run(None, feeds), world)
        tell({"phase": "timing"}, b"")
    difference = max(difference, _check(model, model.checked_run(feeds), expected, job, "last"))
    header["flags"] = sorted({*header["flags"], *flags})
    header.update(
        {
            "import_ns": import_ns,
            "session_ns": session_ns,
            "first_run_ns": first_run_ns,
            "memory_before_bytes": before,
            "memory_peak_bytes": peak,
            "memory_pss_bytes": pss,
            "memory_taken_bytes": None if free is None or left is None else free - left,
            "max_output_difference": difference,
            "options": runtime.options_echo(job["threads"], where),
            "nodes_by_provider": nodes,
        }
    )
    tell({"result": header}, body)
