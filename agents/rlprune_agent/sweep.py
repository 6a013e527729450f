"""Time very many tiny models in one process: one figure for each, good for comparing them with each other."""

from __future__ import annotations

import array
import gc
import time
from pathlib import Path
from statistics import median
from typing import Any

from rlprune_agent import intake, synth
from rlprune_agent.measure import Tell
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store


def _visit(run: Any, feeds: Any, visit_ns: float, visit_runs: int) -> float:
    """Median nanoseconds of single inferences, after one that is not counted and brings the weights into the cache."""
    run(None, feeds)
    taken: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + visit_ns
    while len(taken) < visit_runs or clock() < end:
        began = clock()
        run(None, feeds)
        taken.append(clock() - began)
    return median(taken)


def sweep(job: dict[str, Any], tell: Tell) -> None:
    """Do one `sweep` job: per model, the minimum over the rounds of the round's median, in nanoseconds.

    Why the minimum: what disturbs a run (a neighbour, an interrupt, a cold cache) only ever adds time, and it comes in
    stretches longer than one visit. The median inside a visit forgives single spoilt runs, the minimum over rounds,
    which lie far apart in time, forgives spoilt visits. Rounds go forth and back, so that a drift of the clock does not
    favour one end of the list.
    """
    store = Store(Path(job["store"]), quota_bytes=0)
    tell({"phase": "runtime"}, b"")
    from rlprune_agent import runtime

    where = runtime.asked(job)
    tell({"phase": "candidate"}, b"")
    entries = []
    for number, sha256 in enumerate(job["models"]):
        try:
            data = synth.whole(store.read(sha256), None, intake.memory_limit())
            model = runtime.Model(data, job["threads"], where)
            feeds = model.random_inputs(job["seed"])
            model.checked_run(feeds)
        except Failure as failure:
            text = f"model {number + 1} of {len(job['models'])}: {failure.message}"
            raise Failure(failure.kind, text, **failure.details) from None
        entries.append((model, feeds))

    tell({"phase": "timing"}, b"")
    gc.collect()
    gc.disable()
    best = [float("inf")] * len(entries)
    order = list(range(len(entries)))
    for _ in range(job["rounds"]):
        for index in order:
            model, feeds = entries[index]
            best[index] = min(best[index], _visit(model.run, feeds, job["visit_ms"] * 1e6, job["visit_runs"]))
        order.reverse()
    tell(
        {"result": {"models": len(best), "options": runtime.options_echo(job["threads"], where)}},
        array.array("d", best).tobytes(),
    )
