"""Figures of earlier runs, one JSON file per key: never measured twice while nothing that decides them has changed."""

# format 1: {"format", "saved_at" (seconds since 1970), "kind", "value"}

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlprune_edge import whole_file
from rlprune_edge.measurements import Measurement

log = logging.getLogger(__name__)

FORMAT = 1
TTL_SECONDS = 7 * 24 * 3600

_MEASUREMENT = TypeAdapter(Measurement)


def cache_key(**parts: Any) -> str:
    """Hash of everything that decides a figure; all parts must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


class MeasurementCache:
    """A folder of figures. A file that cannot be read, is too old or comes from the future counts as absent.

    So does one kept before `not_before` (seconds since 1970): the device has changed since.
    """

    def __init__(self, folder: Path, *, ttl_seconds: float = TTL_SECONDS) -> None:
        self.folder = folder
        self.ttl_seconds = ttl_seconds
        self.not_before = 0.0

    def measurement(self, key: str) -> Measurement | None:
        """The measurement kept under `key`, marked `cached`."""
        value = self._load(key, "measurement")
        if value is None:
            return None
        try:
            return replace(_MEASUREMENT.validate_python(value), cached=True)
        except ValidationError as error:
            log.warning("ignoring a damaged cached measurement (%s): %s", self._path(key), error)
            return None

    def keep_measurement(self, key: str, measurement: Measurement) -> None:
        """Keep a measurement under `key`, in place of an older one."""
        self._save(key, "measurement", asdict(measurement))

    def time_ns(self, key: str) -> float | None:
        """The figure of a sweep kept under `key`, in nanoseconds."""
        value = self._load(key, "time_ns")
        return float(value) if isinstance(value, int | float) and value > 0 else None

    def keep_time_ns(self, key: str, value: float) -> None:
        """Keep a figure of a sweep under `key`."""
        self._save(key, "time_ns", value)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _load(self, key: str, kind: str) -> Any:
        path = self._path(key)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            # Wall clock, because the age spans reboots; a negative age means that the clock was set back.
            saved_at = float(entry["saved_at"])
            age = time.time() - saved_at
            if entry["format"] != FORMAT or entry["kind"] != kind or not 0 <= age <= self.ttl_seconds:
                return None
            if saved_at < self.not_before:
                return None
            return entry["value"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("ignoring a damaged file of the measurement cache (%s): %s", path, error)
            return None

    def _save(self, key: str, kind: str, value: Any) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"format": FORMAT, "saved_at": time.time(), "kind": kind, "value": value}
        whole_file.write_text(path, json.dumps(entry, allow_nan=False), shared=True)
