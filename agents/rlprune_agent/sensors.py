"""What a board can say about itself between two blocks, gathered from the sources that its profile names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

from rlprune_agent import sensors_jetson, sensors_pi, vitals
from rlprune_agent.programs import Programs
from rlprune_agent.vitals import Reading

SOURCES = ("vcgencmd", "thermal", "cpufreq", "nvpmodel", "ina3221", "pmic")


def _online(root: Path) -> str:
    return vitals.text(root / "sys/devices/system/cpu/online")


def _swapped_in(root: Path) -> int:
    return vitals.number(root / "proc/vmstat", "pswpin")


class PowerMeter(NamedTuple):
    """A power sensor: which, what it measures, and how to read it in milliwatts (`OSError`, `ValueError`)."""

    sensor: str
    rail: str
    read_mw: Callable[[], float]


class Sensors:
    """Files below `root` and programs on PATH; `sources` (default: all) says which of them this board has.

    A sensor that is missing or says nonsense leaves its key out, with its reason in `missing`; it never becomes a
    zero.
    """

    def __init__(self, root: Path, sources: Sequence[str] | None = None) -> None:
        self.root = root
        self._sources = SOURCES if sources is None else sources
        self._programs = Programs()
        state: dict[str, Reading] = {"boot_id": vitals.boot_id, "online": _online, "swapped_in_pages": _swapped_in}
        if "cpufreq" in self._sources:
            state["governor"] = functools.partial(vitals.cpufreq, name="scaling_governor")
            state["max_khz"] = functools.partial(vitals.cpufreq, name="scaling_max_freq")
        if "thermal" in self._sources:
            state["temperature_c"] = vitals.thermal
            state["cooling"] = sensors_jetson.cooling
        if "vcgencmd" in self._sources:
            state["throttled"] = lambda _: sensors_pi.throttled(self._programs)
            state["undervoltage_alarm"] = sensors_pi.undervoltage_alarm
        self._state = state
        settings: dict[str, Reading] = {}
        if "vcgencmd" in self._sources:
            settings["arm_mhz"] = lambda _: sensors_pi.arm_mhz(self._programs)
        if "nvpmodel" in self._sources:
            settings["power_mode"] = lambda _: sensors_jetson.power_mode(self._programs)
        self._settings = settings

    def read(self) -> dict[str, Any]:
        """What may change from block to block."""
        return vitals.collect(self._state, self.root)

    def read_all(self) -> dict[str, Any]:
        """The same and what takes a program of its own to read; for the start and the end."""
        return vitals.collect({**self._state, **self._settings}, self.root)

    def power_meter(self) -> PowerMeter:
        """Raises `OSError`, with the reason, where this board has no power sensor."""
        reasons = []
        if "ina3221" in self._sources:
            rails = sensors_jetson.channels(self.root)
            if rails:
                name, counted = sensors_jetson.total(rails)
                return PowerMeter("ina3221", name, lambda: sum(channel.mw() for channel in counted))
            reasons.append("no INA3221 power monitor")
        if "pmic" in self._sources:
            try:
                sensors_pi.pmic_mw(self._programs)
            except (OSError, ValueError) as error:
                reasons.append(str(error))
            else:
                read = lambda: sum(sensors_pi.pmic_mw(self._programs).values())  # noqa: E731
                return PowerMeter("pmic", "all rails of the power chip, without USB and 5 V pins", read)
        raise OSError("; ".join(reasons) or "this board's profile names no power sensor")


def hottest(reading: dict[str, Any]) -> float | None:
    """The highest temperature of a reading in Celsius, `None` where there is none.

    A Jetson's `PMIC-Die` zone says a constant 100 on several modules and is left aside.
    """
    zones = reading.get("temperature_c", {})
    return max((celsius for zone, celsius in zones.items() if "pmic" not in zone.lower()), default=None)
