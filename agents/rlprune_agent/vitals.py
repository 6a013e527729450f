"""What the board says about itself: fixed facts, and readings that change. Files only; every path is under `root`.

A sensor that is missing or says nonsense leaves its key out and its reason in `missing`; it never becomes a zero.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any, Callable, Mapping

Reading = Callable[[Path], Any]

_REASON_MAX = 200


def text(path: Path) -> str:
    """What a file of /proc or /sys says."""
    return path.read_text(errors="replace").replace("\0", "").strip()


def _loadavg(root: Path) -> list[float]:
    return [float(v) for v in text(root / "proc/loadavg").split()[:3]]


def boot_id(root: Path) -> str:
    """Another one after every boot."""
    return text(root / "proc/sys/kernel/random/boot_id")


def cpufreq(root: Path, name: str) -> dict[str, str]:
    """One file of every CPU's cpufreq folder. Raises `OSError` if there is none."""
    found = {}
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/" + name)):
        found[path.parent.parent.name] = text(path)
    if not found:
        raise OSError(f"no cpufreq/{name}")
    return found


def _mhz(root: Path, name: str) -> dict[str, int]:
    return {cpu: int(khz) // 1000 for cpu, khz in cpufreq(root, name).items()}


def thermal(root: Path) -> dict[str, float]:
    """Degrees Celsius by zone and its type. Raises `OSError` if no zone gives a believable figure."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            celsius = int(text(zone / "temp")) / 1000
            # A chip that computes is never at zero or below; drivers say 0, -1 or -256000 for "not known".
            if 0 < celsius <= 150:
                found["{} {}".format(zone.name, text(zone / "type"))] = celsius
        except (OSError, ValueError):  # a zone that is switched off answers with an error; the others still count
            continue
    if not found:
        raise OSError("no thermal zone can be read")
    return found


def number(path: Path, key: str) -> int:
    """The number that follows `key` at the beginning of a line. Raises `OSError` or `ValueError`."""
    match = re.search(rf"^{re.escape(key)}:?\s+(\d+)", text(path), re.MULTILINE)
    if not match:
        raise ValueError(f"no {key} in {path}")
    return int(match.group(1))


def _pressure(root: Path) -> float:
    match = re.search(r"some avg10=([\d.]+)", text(root / "proc/pressure/cpu"))
    if not match:
        raise ValueError("no avg10 in proc/pressure/cpu")
    return float(match.group(1))


def _cpu_model(root: Path) -> str:
    cpuinfo = text(root / "proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if match:
        return match.group(1)
    parts = [re.search(rf"^CPU {word}\s*:\s*(\S+)", cpuinfo, re.MULTILINE) for word in ("implementer", "part")]
    return " ".join(part.group(1) for part in parts if part) or platform.processor() or platform.machine()


def _devfreq_max_mhz(root: Path) -> dict[str, int]:
    """Clock limits of GPU and memory controller: on a Jetson they are what the power mode sets."""
    found = {}
    for path in sorted((root / "sys/class/devfreq").glob("*/max_freq")):
        found[path.parent.name] = int(text(path)) // 10**6
    if not found:
        raise OSError("no devfreq device")
    return found


def _isa_sha256(root: Path) -> str:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text(root / "proc/cpuinfo"), re.MULTILINE)
    if not match:
        raise ValueError("no flags in proc/cpuinfo")
    return hashlib.sha256(" ".join(sorted(match.group(1).split())).encode()).hexdigest()[:16]


def _serial_sha256(root: Path) -> str:
    return hashlib.sha256(text(root / "proc/device-tree/serial-number").encode()).hexdigest()[:16]


def _online_cpus(_: Path) -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_FACTS: dict[str, Reading] = {
    "machine": lambda _: platform.machine(),
    "system": lambda _: platform.system(),
    "kernel": lambda _: platform.release(),
    "page_bytes": lambda _: os.sysconf("SC_PAGE_SIZE"),
    "online_cpus": _online_cpus,
    "board": lambda root: text(root / "proc/device-tree/model"),
    "serial_sha256": _serial_sha256,
    "cpu_model": _cpu_model,
    "isa_sha256": _isa_sha256,
    "memory_bytes": lambda root: number(root / "proc/meminfo", "MemTotal") * 1024,
    "min_mhz": lambda root: _mhz(root, "scaling_min_freq"),
    "max_mhz": lambda root: _mhz(root, "scaling_max_freq"),
    "governor": lambda root: cpufreq(root, "scaling_governor"),
    "devfreq_max_mhz": _devfreq_max_mhz,
}

_READINGS: dict[str, Reading] = {
    "boot_id": boot_id,
    "loadavg": _loadavg,
    "online_cpus": _online_cpus,
    "governor": lambda root: cpufreq(root, "scaling_governor"),
    "requested_mhz": lambda root: _mhz(root, "scaling_cur_freq"),
    "temperature_c": thermal,
    "available_bytes": lambda root: number(root / "proc/meminfo", "MemAvailable") * 1024,
    "swapped_in_pages": lambda root: number(root / "proc/vmstat", "pswpin"),
    "swapped_out_pages": lambda root: number(root / "proc/vmstat", "pswpout"),
    "oom_kills": lambda root: number(root / "proc/vmstat", "oom_kill"),
    "pressure_cpu_percent": _pressure,
}


def collect(readings: Mapping[str, Reading], root: Path) -> dict[str, Any]:
    """All that can be read; what cannot be is left out, and named with its reason under `missing`."""
    found: dict[str, Any] = {}
    missing: list[str] = []
    for name, reading in readings.items():
        try:
            found[name] = reading(root)
        except (OSError, ValueError, IndexError) as error:
            missing.append(f"{name}: {error}"[:_REASON_MAX])
    found["missing"] = missing
    return found


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """What does not change while a board is up: machine, CPU, kernel, page size, memory, clock limits."""
    return collect(_FACTS, root)


def read(root: Path = Path("/")) -> dict[str, Any]:
    """What changes: load, clocks asked for (a wish, not a measurement), heat, free memory, swap counters."""
    return collect(_READINGS, root)
