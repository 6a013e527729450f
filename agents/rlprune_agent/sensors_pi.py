"""A Raspberry Pi's own sensors: the firmware's tool `vcgencmd` and the kernel's low-voltage alarm."""

from __future__ import annotations

import re
from pathlib import Path

from rlprune_agent.programs import Programs
from rlprune_agent.vitals import text

# Bits of get_throttled. The upper half remembers what the lower half saw, since boot or since the kernel's own driver
# last cleared it (every 2 s where that driver is loaded).
UNDERVOLTAGE_NOW = 0x1
SLOWED_NOW = 0x2 | 0x4 | 0x8
"""frequency capped, throttled, soft temperature limit"""
UNDERVOLTAGE_SEEN = UNDERVOLTAGE_NOW << 16
SLOWED_SEEN = SLOWED_NOW << 16


def throttled(programs: Programs) -> int:
    """The firmware's throttle bits. Raises `OSError` or `ValueError`."""
    answer = programs.ask("vcgencmd", "get_throttled")
    match = re.search(r"throttled=0x([0-9a-fA-F]{1,8})$", answer)
    if not match:
        raise ValueError(f"vcgencmd get_throttled says {answer[:60]!r}")
    return int(match.group(1), 16)


def arm_mhz(programs: Programs) -> float:
    """The ARM cores' measured clock. Raises `OSError` or `ValueError`."""
    answer = programs.ask("vcgencmd", "measure_clock", "arm")
    match = re.search(r"frequency\(\d+\)=(\d{1,12})$", answer)
    if not match or int(match.group(1)) == 0:
        raise ValueError(f"vcgencmd measure_clock says {answer[:60]!r}")
    return int(match.group(1)) / 1e6


def undervoltage_alarm(root: Path) -> bool:
    """The kernel's low-voltage alarm (hwmon `rpi_volt`). Raises `OSError` or `ValueError`."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (folder / "name").is_file() and text(folder / "name") == "rpi_volt":
            return int(text(folder / "in0_lcrit_alarm")) != 0
    raise OSError("no hwmon called rpi_volt")


def pmic_mw(programs: Programs) -> dict[str, float]:
    """Milliwatts by rail from a Pi 5's power chip: what the USB ports and the 5 V pins draw is not in it.

    A rail that has a voltage and no current (the 5 V input) has no power. Raises `OSError` or `ValueError`.
    """
    answer = programs.ask("vcgencmd", "pmic_read_adc")
    found = {"A": {}, "V": {}}  # type: dict[str, dict[str, float]]
    for name, unit, value in re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.\d+)[AV]", answer):
        found[unit][name] = float(value)
    rails = {name: 1e3 * amperes * found["V"][name] for name, amperes in found["A"].items() if name in found["V"]}
    if not rails or sum(rails.values()) <= 0:
        raise ValueError(f"vcgencmd pmic_read_adc says {answer[:60]!r}")
    return rails
