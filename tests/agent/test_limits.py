"""What a measuring process may do, as the kernel sees it."""

from __future__ import annotations

import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from talk import SETTINGS, Daemon, Host, npy, wait_for

from rlprune_agent import limits
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store
from rlprune_agent.supervise import Cancel, run_child

_GIB = 1024**3


def _limits(**changes: object) -> limits.Limits:
    fields: dict[str, object] = {
        "model_bytes": 10**6,
        "threads": 1,
        "models": 2,
        "seconds": 10.0,
        "accelerator": False,
        "available_bytes": 10 * _GIB,
    }
    return limits.for_job(**{**fields, **changes})  # type: ignore[arg-type]


def test_address_space_follows_the_model() -> None:
    assert _limits().address_space == 2 * _GIB
    assert _limits(model_bytes=_GIB).address_space == 4 * _GIB + 3 * _GIB // 2
    assert (_limits(threads=32).address_space or 0) > 2 * _GIB


def test_an_accelerator_is_watched_instead() -> None:
    bounds = _limits(accelerator=True)
    assert bounds.address_space is None
    assert bounds.resident == int(0.8 * 10 * _GIB)


def test_a_child_is_confined(shared_daemon: Daemon, host: Host, dense_model: Callable[[int], bytes]) -> None:
    long = {**SETTINGS, "checks": [[4, 1], [100_000, 1]]}
    host.submit("c0" * 8, host.job(dense_model(16), settings=long))
    child = Path(f"/proc/{shared_daemon.working()}")
    assert wait_for(lambda: host.ask(verb="wait", job_id="c0" * 8, seconds=0.1).header["phase"] == "timing")
    text = (child / "limits").read_text()
    found = dict(re.findall(r"^Max (.+?) {2,}(\S+)", text, re.MULTILINE))
    status = (child / "status").read_text()
    adjusted = (child / "oom_score_adj").read_text()
    host.ask(verb="cancel", job_id="c0" * 8)
    assert found["address space"] == str(2 * _GIB)
    assert (found["core file size"], found["file size"], found["open files"]) == ("0", "0", "1024")
    assert 20 + 30 <= int(found["cpu time"]) <= (20 + 30) * (os.cpu_count() or 1) + 30
    assert found["processes"] != "unlimited"
    assert "NoNewPrivs:\t1" in status
    assert adjusted.strip() == "800"


def test_a_model_that_asks_for_more_than_it_may_is_out_of_memory_and_the_next_job_is_fine(
    host: Host, hungry_model: bytes, dense_model: Callable[[int], bytes]
) -> None:
    wants = {"n": host.put(npy(np.array([800_000_000])))}  # 3.2 GB, which this machine may well have
    job = host.job(hungry_model, inputs=wants)
    began = time.monotonic()
    answer = host.do(**job).header
    assert (answer["kind"], answer["phase"]) == ("oom", "candidate")
    assert time.monotonic() - began < 30
    assert host.do(**host.job(dense_model(16))).header["ok"] is True


def test_a_child_that_grows_too_large_is_ended_where_its_address_space_is_free(
    tmp_path: Path, endless_model: bytes
) -> None:
    store = Store(tmp_path, quota_bytes=10**9)
    job = _endless_job(store, endless_model)
    bounds = _limits(accelerator=True)._replace(resident=10 * 10**6)
    with pytest.raises(Failure, match="grew above 10 MB") as caught:
        run_child(job, seconds=30, bounds=bounds)
    assert caught.value.kind == "oom"


def test_a_child_that_uses_up_its_processor_time_is_ended(tmp_path: Path, endless_model: bytes) -> None:
    store = Store(tmp_path, quota_bytes=10**9)
    with pytest.raises(Failure) as caught:
        run_child(_endless_job(store, endless_model), seconds=60, bounds=_limits()._replace(cpu_seconds=2))
    assert caught.value.kind == "timeout_model"


def test_a_cancelled_child_ends_at_once_with_the_reason(tmp_path: Path, endless_model: bytes) -> None:
    cancel = Cancel()
    phases: list[str] = []

    def on_phase(phase: str) -> None:
        phases.append(phase)
        if phase == "candidate":
            cancel.set(Failure("lease_lost", "somebody else wants it"))

    store = Store(tmp_path, quota_bytes=10**9)
    with pytest.raises(Failure, match="somebody else wants it"):
        run_child(_endless_job(store, endless_model), seconds=60, cancel=cancel, on_phase=on_phase)
    cancel.close()
    assert phases == ["candidate"]


def _endless_job(store: Store, model: bytes) -> dict[str, object]:
    names = []
    for data in (model, npy(np.zeros(1, np.float32))):
        names.append(hashlib.sha256(data).hexdigest())
        store.put(names[-1], size=len(data), offset=0, crc32=zlib.crc32(data), data=data)
    return {
        "kind": "measure",
        "store": str(store.folder),
        "candidate": names[0],
        "reference": None,
        "inputs": {"x": names[1]},
        "expected": {"y": names[1]},
        "tolerance": 1e-3,
        "threads": 1,
        "settings": SETTINGS,
    }
