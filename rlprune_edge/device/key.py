"""What a device's figures belong to: everything that decides latency, as one hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlprune_agent.protocol import MEASUREMENT_VERSION
from rlprune_edge.device.cache import cache_key

# Everything that decides latency and is the same from one boot to the next.
_KEY_FACTS = (
    "machine",
    "system",
    "kernel",
    "page_bytes",
    "online_cpus",
    "board",
    "serial_sha256",
    "cpu_model",
    "isa_sha256",
    "memory_bytes",
    "min_mhz",
    "max_mhz",
    "devfreq_max_mhz",
    "governor",
    "power_mode",
    "l4t",
)


def device_key(hello: Mapping[str, Any], *, threads: int, provider: str) -> str:
    """Hash of what decides latency: board, kernel, clock limits, governor, runtime, threads, way of measuring."""
    return cache_key(
        facts={name: hello["facts"].get(name) for name in _KEY_FACTS},
        runtime={name: hello["runtime"].get(name) for name in ("onnxruntime", "build")},
        threads=threads,
        provider=provider,
        measurement_version=MEASUREMENT_VERSION,
    )[:16]
