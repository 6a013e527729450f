"""Boards made of files and scripts: a `/sys` and `/proc` in a folder, tools on a PATH of their own."""

from __future__ import annotations

from pathlib import Path


class FakeBoard:
    """What sensors read: files below `root`, programs in `bin`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.root.mkdir(parents=True)
        self.bin.mkdir()

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        return file

    def unreadable(self, path: str) -> None:
        """Reading it is an I/O error of the real kernel (EIO): the first page of a process is not mapped."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to("/proc/self/mem")

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)

    def zone(self, number: int, kind: str, temp: str) -> None:
        self.write(f"sys/class/thermal/thermal_zone{number}/type", kind)
        self.write(f"sys/class/thermal/thermal_zone{number}/temp", temp)

    def cdev(self, zone: int, number: int, kind: str, state: int) -> None:
        """A cooling device of a thermal zone."""
        self.write(f"sys/class/thermal/cooling_device{number}/type", kind)
        self.write(f"sys/class/thermal/cooling_device{number}/cur_state", str(state))
        link = self.root / f"sys/class/thermal/thermal_zone{zone}/cdev{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / f"sys/class/thermal/cooling_device{number}")

    def cpus(self, *, governor: str = "ondemand", max_khz: str = "1800000") -> None:
        self.write("sys/devices/system/cpu/online", "0-3")
        for cpu in range(4):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", governor)
            self.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq", max_khz)
