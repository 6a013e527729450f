"""What the board says about itself: fixed facts, and readings that change. Files only; every path is under `root`.

A sensor that is missing or says nonsense leaves its key out and its reason in `missing`; it never becomes a zero.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any, Callable

Reading = Callable[[Path], Any]


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\0", "").strip()


def _loadavg(root: Path) -> list[float]:
    return [float(v) for v in _text(root / "proc/loadavg").split()[:3]]


def _boot_id(root: Path) -> str:
    return _text(root / "proc/sys/kernel/random/boot_id")


def _cpufreq(root: Path, name: str) -> dict[str, str]:
    found = {}
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/" + name)):
        found[path.parent.parent.name] = _text(path)
    if not found:
        raise OSError(f"no cpufreq/{name}")
    return found


def _mhz(root: Path, name: str) -> dict[str, int]:
    return {cpu: int(khz) // 1000 for cpu, khz in _cpufreq(root, name).items()}


def _thermal(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            celsius = int(_text(zone / "temp")) / 1000
            if -40 <= celsius <= 200:
                found["{} {}".format(zone.name, _text(zone / "type"))] = celsius
        except (OSError, ValueError):  # a zone that is switched off answers with an error; the others still count
            continue
    if not found:
        raise OSError("no thermal zone can be read")
    return found


def _number(path: Path, key: str) -> int:
    match = re.search(rf"^{re.escape(key)}:?\s+(\d+)", _text(path), re.MULTILINE)
    if not match:
        raise ValueError(f"no {key} in {path}")
    return int(match.group(1))


def _pressure(root: Path) -> float:
    match = re.search(r"some avg10=([\d.]+)", _text(root / "proc/pressure/cpu"))
    if not match:
        raise ValueError("no avg10 in proc/pressure/cpu")
    return float(match.group(1))


def _cpu_model(root: Path) -> str:
    text = _text(root / "proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if match:
        return match.group(1)
    parts = [re.search(rf"^CPU {word}\s*:\s*(\S+)", text, re.MULTILINE) for word in ("implementer", "part")]
    return " ".join(part.group(1) for part in parts if part) or platform.processor() or platform.machine()


def _isa_sha256(root: Path) -> str:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    if not match:
        raise ValueError("no flags in proc/cpuinfo")
    return hashlib.sha256(" ".join(sorted(match.group(1).split())).encode()).hexdigest()[:16]


def _serial_sha256(root: Path) -> str:
    return hashlib.sha256(_text(root / "proc/device-tree/serial-number").encode()).hexdigest()[:16]


def _online_cpus(_: Path) -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_FACTS: dict[str, Reading] = {
    "machine": lambda _: platform.machine(),
    "system": lambda _: platform.system(),
    "kernel": lambda _: platform.release(),
    "page_bytes": lambda _: os.sysconf("SC_PAGE_SIZE"),
    "online_cpus": _online_cpus,
    "board": lambda root: _text(root / "proc/device-tree/model"),
    "serial_sha256": _serial_sha256,
    "cpu_model": _cpu_model,
    "isa_sha256": _isa_sha256,
    "memory_bytes": lambda root: _number(root / "proc/meminfo", "MemTotal") * 1024,
    "min_mhz": lambda root: _mhz(root, "scaling_min_freq"),
    "max_mhz": lambda root: _mhz(root, "scaling_max_freq"),
    "governor": lambda root: _cpufreq(root, "scaling_governor"),
}

_READINGS: dict[str, Reading] = {
    "boot_id": _boot_id,
    "loadavg": _loadavg,
    "online_cpus": _online_cpus,
    "governor": lambda root: _cpufreq(root, "scaling_governor"),
    "requested_mhz": lambda root: _mhz(root, "scaling_cur_freq"),
    "temperature_c": _thermal,
    "available_bytes": lambda root: _number(root / "proc/meminfo", "MemAvailable") * 1024,
    "swapped_in_pages": lambda root: _number(root / "proc/vmstat", "pswpin"),
    "swapped_out_pages": lambda root: _number(root / "proc/vmstat", "pswpout"),
    "oom_kills": lambda root: _number(root / "proc/vmstat", "oom_kill"),
    "pressure_cpu_percent": _pressure,
}


def _read(readings: dict[str, Reading], root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    missing: list[str] = []
    for name, reading in readings.items():
        try:
            found[name] = reading(root)
        except (OSError, ValueError) as error:
            missing.append(f"{name}: {error}")
    found["missing"] = missing
    return found


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """What does not change while a board is up: machine, CPU, kernel, page size, memory, clock limits."""
    return _read(_FACTS, root)


def read(root: Path = Path("/")) -> dict[str, Any]:
    """What changes: load, clocks asked for (a wish, not a measurement), heat, free memory, swap counters."""
    return _read(_READINGS, root)
