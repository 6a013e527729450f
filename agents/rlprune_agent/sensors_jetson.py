"""A Jetson's own sensors: power mode, what the thermal zones hold back, and the INA3221 power monitors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from rlprune_agent.programs import Programs
from rlprune_agent.vitals import text

_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
_CHANNELS = (1, 2, 3)
"""of an INA3221; 7 is the sum of its shunt voltages, not a rail"""


def power_mode(programs: Programs) -> str:
    """Name of the power mode: the numbers mean different things per module and JetPack.

    Raises `OSError` or `ValueError`.
    """
    answer = programs.ask("nvpmodel", "-q")
    match = re.search(r"NV Power Mode:\s*(\S+)", answer)
    if not match:
        raise ValueError(f"nvpmodel -q says {answer[:60]!r}")
    return match.group(1)


def cooling(root: Path) -> dict[str, int]:
    """Cooling devices of the thermal zones that hold something back at this moment, by type; fans are no loss.

    Raises `OSError` if no zone has one.
    """
    found: dict[str, int] = {}
    seen = False
    for link in sorted((root / "sys/class/thermal").glob("thermal_zone*/cdev[0-9]*")):
        try:
            kind, state = text(link / "type"), int(text(link / "cur_state"))
        except (OSError, ValueError):  # a trip point's file beside the links, or a device that is gone
            continue
        seen = True
        if state > 0 and "fan" not in kind.lower():
            found[kind] = state
    if not seen:
        raise OSError("no thermal zone has a cooling device")
    return found


class Channel(NamedTuple):
    """One rail of one INA3221: power directly in milliwatts, or voltage and current (mV, mA) to be multiplied."""

    rail: str
    files: tuple[Path, ...]

    def mw(self) -> float:
        """Raises `OSError` or `ValueError`."""
        values = [int(text(path)) for path in self.files]
        return float(values[0]) if len(values) == 1 else values[0] * values[1] / 1e3


def channels(root: Path) -> list[Channel]:
    """The rails there are: JetPack 5 and newer have them under hwmon, JetPack 4 under iio."""
    found: list[tuple[Path, tuple[Path, ...]]] = []
    devices = root / "sys/bus/i2c/devices"
    for folder in sorted(devices.glob("*/hwmon/hwmon*")):
        for n in _CHANNELS:
            found.append((folder / f"in{n}_label", (folder / f"in{n}_input", folder / f"curr{n}_input")))
    for folder in sorted(devices.glob("*/iio:device*")):
        for n in range(len(_CHANNELS)):
            found.append((folder / f"rail_name_{n}", (folder / f"in_power{n}_input",)))
    rails = []
    for label, files in found:
        if label.is_file() and all(path.is_file() for path in files):
            name = text(label)
            if name and name != "NC" and "sum of shunt" not in name.lower():
                rails.append(Channel(name, files))
    return rails


def total(rails: list[Channel]) -> tuple[str, list[Channel]]:
    """The rail that feeds the whole module where there is one, else all of them, and what to call it."""
    for name in _TOTAL_RAILS:
        for channel in rails:
            if channel.rail == name:
                return name, [channel]
    return "sum of " + ", ".join(channel.rail for channel in rails), rails
