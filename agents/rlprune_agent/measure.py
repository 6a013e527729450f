"""Time one candidate, alone in a fresh process, in turns with a reference model.

Order of events, so that no figure spoils another: import the runtime; read the inputs; reset the memory peak; load and
run the candidate; read the peak (the candidate's alone, and no memory is read again); load the reference; warm up both;
time blocks of both in turns A B B A; compare the last output. A peak read before the clock starts costs the timing
nothing, which is why there is no separate pass for memory.
"""

from __future__ import annotations

import array
import gc
import io
import re
import resource
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Callable, Dict, List

from rlprune_agent import pace
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store
from rlprune_agent.timed import RunQueue, Timed

if TYPE_CHECKING:
    import numpy as np

Tell = Callable[[Dict[str, Any], bytes], None]

_MEMORY_RUNS = 3
_CONTENDED_SHARE = 0.10


def _status(key: str) -> int | None:
    match = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match.group(1)) * 1024 if match else None


def reset_peak() -> bool:
    """Set this process's VmHWM back to its present size; `False` where the kernel has no such switch."""
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


def _check(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float, when: str) -> float:
    difference = largest_difference(outputs, expected)
    if difference > tolerance:
        raise Failure(
            "output_mismatch",
            f"the {when} output differs from the host's by {difference:.3g}; {tolerance:.3g} is allowed",
        )
    return difference


def _warm_up(models: list[Timed], settings: dict[str, Any], deadline: float) -> bool:
    """Run windows of all models in turns until each is steady, or the cap; says whether all were.

    The minimum time is for the process as a whole (it is the board's clock that has to come up), the windows are each
    model's own. The cap in runs counts only once twice the minimum time is spent: 50 runs of a 1 ms model are 50 ms.
    """
    windows: list[list[list[int]]] = [[] for _ in models]
    began = time.monotonic()
    steady = False
    while True:
        for model, seen in zip(models, windows):
            seen.append(model.block(settings["window_runs"], settings["window_ms"] * 1e6))
        seconds = time.monotonic() - began
        runs = min(sum(len(w) for w in seen) for seen in windows)
        steady = all(len(seen) > 1 and pace.is_steady(seen[-2], seen[-1]) for seen in windows)
        if steady and runs >= settings["warmup_runs"] and seconds >= settings["warmup_seconds"]:
            break
        spent = runs >= settings["warmup_cap_runs"] and seconds >= 2 * settings["warmup_seconds"]
        if spent or seconds >= settings["warmup_cap_seconds"] or time.monotonic() >= deadline:
            break
    return steady


Blocks = List[List[int]]


def _block_runs(run_ns: float, settings: dict[str, Any]) -> int:
    least: int = settings["min_runs"] if run_ns <= settings["slow_run_ms"] * 1e6 else settings["min_runs_slow"]
    blocks: int = settings["checks"][0][0]
    return -(-least // blocks)


def _timed_pairs(
    candidate: Timed, reference: Timed | None, settings: dict[str, Any], deadline: float
) -> tuple[Blocks, Blocks]:
    """Pairs of blocks in turns A B B A, so that a linear drift cancels between neighbouring pairs.

    `settings["checks"]` is a list of [pairs, rank]: the only points at which the stop rule is asked (each look costs
    coverage), the first being the minimum and the last the maximum.
    """
    block_ns = settings["block_ms"] * 1e6
    runs = _block_runs(candidate.sample()[0], settings)
    own: Blocks = []
    others: Blocks = []
    ranks = dict((pairs, rank) for pairs, rank in settings["checks"])
    last = settings["checks"][-1][0]
    while len(own) < last and (not own or time.monotonic() < deadline):
        if reference is None:
            own.append(candidate.block(runs, block_ns))
        elif len(own) % 2 == 0:
            own.append(candidate.block(runs, block_ns))
            others.append(reference.block(settings["reference_runs"], block_ns))
        else:
            others.append(reference.block(settings["reference_runs"], block_ns))
            own.append(candidate.block(runs, block_ns))
        if len(own) in ranks:
            values = [median(block) for block in own]
            if others:
                values = [median(r) / c for r, c in zip(others, values)]
            if pace.narrow_enough(values, ranks[len(own)], settings["target_half_width"]):
                break
    return own, others


def _packed(blocks: Blocks) -> bytes:
    return b"".join(array.array("q", block).tobytes() for block in blocks)


def measure(job: dict[str, Any], tell: Tell) -> None:
    """Do one `measure` job and tell its result; `tell` also hears which phase is beginning.

    Raises `Failure`; which model it was about is in the phase told last.
    """
    settings = job["settings"]
    deadline = time.monotonic() + settings["cap_seconds"]
    store = Store(Path(job["store"]), quota_bytes=0)
    tell({"phase": "runtime"}, b"")
    began = time.perf_counter_ns()
    from rlprune_agent import runtime

    import_ns = time.perf_counter_ns() - began
    feeds, expected = _arrays(store, job["inputs"]), _arrays(store, job["expected"])
    data = store.read(job["candidate"])
    flags = [] if reset_peak() else ["memory_not_reset"]
    before = peak_bytes()

    tell({"phase": "candidate"}, b"")
    began = time.perf_counter_ns()
    model = runtime.Model(data, job["threads"])
    session_ns = time.perf_counter_ns() - began
    del data
    began = time.perf_counter_ns()
    outputs = model.checked_run(feeds)
    first_run_ns = time.perf_counter_ns() - began
    difference = _check(outputs, expected, job["tolerance"], "first")
    for _ in range(_MEMORY_RUNS):
        model.checked_run(feeds)
    peak = peak_bytes()

    queue = RunQueue()
    candidate = Timed(model, feeds, queue)
    reference = None
    if job.get("reference"):
        tell({"phase": "reference"}, b"")
        reference = Timed(runtime.Model(store.read(job["reference"]), job["threads"]), feeds, queue)
        reference.model.checked_run(feeds)

    tell({"phase": "timing"}, b"")
    models = [candidate] if reference is None else [candidate, reference]
    gc.collect()
    gc.disable()
    for timed in models:
        timed.choose_loop(settings["sample_ms"])
    steady = _warm_up(models, settings, deadline)
    warmup_runs = candidate.samples * candidate.loop
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for timed in models:
        timed.begin()
    own, others = _timed_pairs(candidate, reference, settings, deadline)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    gc.enable()
    difference = max(difference, _check(model.checked_run(feeds), expected, job["tolerance"], "last"))
    if len(own) < settings["checks"][0][0]:
        flags.append("capped")
    if faults:
        flags.append("swapping")
    if any(timed.contended > _CONTENDED_SHARE * timed.samples for timed in models):
        flags.append("contended")
    result = {
        "candidate_blocks": [len(block) for block in own],
        "reference_blocks": [len(block) for block in others],
        "candidate_set_aside": len(candidate.set_aside),
        "reference_set_aside": len(reference.set_aside) if reference else 0,
        "candidate_loop": candidate.loop,
        "reference_loop": reference.loop if reference else 1,
        "warmup_runs": warmup_runs,
        "steady": steady,
        "import_ns": import_ns,
        "session_ns": session_ns,
        "first_run_ns": first_run_ns,
        "memory_before_bytes": before,
        "memory_peak_bytes": peak,
        "max_output_difference": difference,
        "flags": flags,
        "options": runtime.options_echo(job["threads"]),
    }
    tell({"result": result}, _packed(own) + _packed(others) + _packed([timed.set_aside for timed in models]))
