"""Figures of earlier runs: found again whole, or not at all."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlprune_edge.device.cache import MeasurementCache, cache_key
from rlprune_edge.measurements import Interval, Measurement, Process

_PROCESS = Process(((1, 2), (3, 4)), ((5, 6), (7, 8)), 1, 1, 10, True, 1, 2, 3, None, 80_000_000)
_MEASUREMENT = Measurement(
    source="local",
    device="local",
    mode="reward",
    threads=1,
    model_sha256="m",
    graph_sha256="g",
    reference_sha256=None,
    latency_ms=Interval(1.0, 0.9, 1.1),
    reference_ms=None,
    speedup=None,
    percentiles_ms={"p50": 1.0, "p90": None},
    memory_mb=80.0,
    memory_delta_mb=None,
    max_output_difference=1e-6,
    flags=("noisy",),
    processes=(_PROCESS,),
    vitals_before={"loadavg": [0.1, 0.2, 0.3]},
    vitals_after={},
    versions={"onnxruntime": "1.31.1"},
    device_seconds=1.5,
    measured_at="2026-01-01T00:00:00+00:00",
    options={"session": {"intra_op_threads": 1}},
)


@pytest.fixture
def cache(tmp_path: Path) -> MeasurementCache:
    return MeasurementCache(tmp_path)


def _file(cache: MeasurementCache) -> Path:
    return next(cache.folder.rglob("*.json"))


def test_what_was_kept_is_found_equal_and_marked(cache: MeasurementCache) -> None:
    cache.keep_measurement("key", _MEASUREMENT)
    found = MeasurementCache(cache.folder).measurement("key")
    assert found == replace(_MEASUREMENT, cached=True)
    assert cache.measurement("other") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format":1,"saved_at":"x","kind":"measurement"}'])
def test_a_damaged_file_is_ignored_and_replaced(cache: MeasurementCache, damage: str) -> None:
    cache.keep_measurement("key", _MEASUREMENT)
    _file(cache).write_text(damage)
    assert cache.measurement("key") is None
    cache.keep_measurement("key", _MEASUREMENT)
    assert cache.measurement("key") is not None


def test_a_record_with_a_field_of_the_wrong_type_is_ignored(cache: MeasurementCache) -> None:
    cache.keep_measurement("key", _MEASUREMENT)
    entry = json.loads(_file(cache).read_text())
    entry["value"]["latency_ms"] = "fast"
    _file(cache).write_text(json.dumps(entry))
    assert cache.measurement("key") is None


@pytest.mark.parametrize("age", [8 * 24 * 3600, -3600])
def test_too_old_and_from_the_future_count_as_absent(cache: MeasurementCache, age: float) -> None:
    cache.keep_time_ns("key", 42.0)
    assert cache.time_ns("key") == 42.0
    entry = json.loads(_file(cache).read_text())
    _file(cache).write_text(json.dumps({**entry, "saved_at": time.time() - age}))
    assert cache.time_ns("key") is None


def test_another_format_and_another_kind_count_as_absent(cache: MeasurementCache) -> None:
    cache.keep_time_ns("key", 42.0)
    assert cache.measurement("key") is None
    entry = json.loads(_file(cache).read_text())
    _file(cache).write_text(json.dumps({**entry, "format": 99}))
    assert cache.time_ns("key") is None


def test_no_temporary_file_stays_behind(cache: MeasurementCache) -> None:
    cache.keep_time_ns("key", 1.0)
    cache.keep_time_ns("key", 2.0)
    assert [name for _, _, names in os.walk(cache.folder) for name in names] == ["key.json"]
    assert cache.time_ns("key") == 2.0


def test_the_key_depends_on_every_part_and_not_on_their_order() -> None:
    assert cache_key(a=1, b=[1, 2]) == cache_key(b=[1, 2], a=1)
    assert cache_key(a=1, b=[1, 2]) != cache_key(a=1, b=[2, 1])
