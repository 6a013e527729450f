"""Is this device fit to measure? One line for each thing that spoils figures, with the sentence that helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlprune_agent.protocol import printable
from rlprune_edge.device import setup, wheels
from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.board import Board, connect
from rlprune_edge.device.health import DRIFT_REFUSED, DRIFT_WARNED
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.shell import LocalShell
from rlprune_edge.device.station import Station
from rlprune_edge.errors import CandidateError, DeviceError, UserError

Status = Literal["PASS", "WARN", "FAIL"]

DISK_LEAST, DISK_COMFORTABLE = 200 * 10**6, 700 * 10**6

_FOLLOWING_GOVERNORS = frozenset({"ondemand", "schedutil", "conservative", "powersave"})
_THROTTLE_BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and what to do about it where something should be."""

    status: Status
    name: str
    text: str
    advice: str = ""


def check(station: Station, cache_dir: Path) -> Iterator[Finding]:
    """Look at everything, one finding after the other; what a device can be blamed for is found, not raised."""
    if not isinstance(station, Board):
        yield from system(station.profile, setup.look(LocalShell()))
        yield from _measuring(station)
        return
    try:
        with connect(station.board) as session:
            yield Finding("PASS", "host key", f"known, and {station.board.host} lets us in")
            found = setup.look(session)
    except (DeviceError, UserError) as error:
        yield Finding("FAIL", "connection", str(error))
        return
    yield from system(station.profile, found)
    ours = agent_zip(cache_dir).stem.removeprefix("agent-")
    yield from installation(station.profile.name, found, ours)
    if not found["agent"]:
        return
    yield from _measuring(station, ours)


def _measuring(station: Station, ours: str | None = None) -> Iterator[Finding]:
    try:
        hello = station.facts
        user = station.user() if isinstance(station, Board) else None
    except (DeviceError, UserError) as error:
        yield Finding("FAIL", "agent answers", str(error))
        return
    if ours is not None:
        yield from running(station.profile.name, hello, ours)
    yield from agent(station.profile, hello)
    if user is not None:
        advice = f"try again later, or: rlprune-edge device release {station.profile.name} --force"
        yield Finding("WARN", "in use", f"by {user}; so there was no golden run", advice)
    else:
        yield golden_run(station)


def system(profile: Profile, board: Mapping[str, Any]) -> Iterator[Finding]:
    """What the operating system is like."""
    machine, bits = board["machine"], board["bits"]
    if bits == 64 and machine in wheels.MACHINES:
        yield Finding("PASS", "64-bit", machine)
    else:
        advice = "install the 64-bit edition of its operating system; there is no onnxruntime for any other"
        yield Finding("FAIL", "64-bit", f"{machine}, {bits}-bit programs", advice)
    yield _python(profile, board)
    yield from _processor(profile, board)
    kib = board["page_bytes"] // 1024
    text = f"{kib} KiB" + ("" if kib == 4 else "; memory figures are not comparable with those of 4 KiB pages")
    yield Finding("PASS", "page size", text)
    yield _governor(board)
    if profile.limits.throttle:
        yield throttling(profile, board["throttled"], board["vcio"])
    yield _disk(board)
    yield _swap(board)
    if board["pressure"]:
        yield Finding("PASS", "pressure (PSI)", "available")
    else:
        advice = "add psi=1 to the kernel's command line (Raspberry Pi OS: /boot/firmware/cmdline.txt) and reboot"
        text = "switched off; other load is recognised less well"
        yield Finding("WARN", "pressure (PSI)", text, advice)
    if board["cgroup_memory"]:
        yield Finding("PASS", "memory cgroup", "available")
    else:
        advice = (
            "add cgroup_enable=memory to the kernel's command line and reboot, if you want systemd's limits as well"
        )
        yield Finding("WARN", "memory cgroup", "switched off; the agent's own limits are the only ones", advice)
    yield _clock(board)
    text = (
        "there" if board["rtc"] else "none: the time of day is wrong until the network corrects it; durations are not"
    )
    yield Finding("PASS", "battery clock (RTC)", text)


def _python(profile: Profile, board: Mapping[str, Any]) -> Finding:
    version = board["python_version"]
    if board["python"] is None:
        least = ".".join(map(str, setup.PYTHON_LEAST))
        return Finding(
            "FAIL", "Python", f"{version}; {least} or newer is needed", "sudo apt install python3.8 python3.8-venv"
        )
    tried = [entry.python for entry in profile.software]
    if tried and version not in tried:
        return Finding("PASS", "Python", f"{version} (known to fit: {', '.join(tried)})")
    return Finding("PASS", "Python", version)


def _processor(profile: Profile, board: Mapping[str, Any]) -> Iterator[Finding]:
    model, features = board["model"], set(board["features"])
    if profile.models:
        if model and model.startswith(profile.models):
            yield Finding("PASS", "model", model)
        else:
            advice = "remove it and add it again with the profile that fits (rlprune-edge device list)"
            text = f"{model or 'it does not say what it is'}; the profile '{profile.name}' is for {profile.models[0]}"
            yield Finding("WARN", "model", text, advice)
    wanted = profile.cpu.isa if profile.cpu else ()
    if lacking := [name for name in wanted if name not in features]:
        text = f"the profile says {', '.join(lacking)}, the processor does not"
        yield Finding("WARN", "processor features", text, "is it the profile of this board? (rlprune-edge device list)")
    else:
        yield Finding("PASS", "processor features", ", ".join(wanted) or f"{len(features)} named by the kernel")


def _governor(board: Mapping[str, Any]) -> Finding:
    governors = board["governors"]
    if not governors:
        return Finding("PASS", "governor", "none: the clock is not the system's to change")
    if following := sorted(_FOLLOWING_GOVERNORS & set(governors)):
        advice = (
            "for the least noise: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )
        return Finding("WARN", "governor", f"{', '.join(following)}: the clock follows the load", advice)
    return Finding("PASS", "governor", ", ".join(governors))


def throttling(profile: Profile, text: str | None, vcio: bool | None) -> Finding:
    """What `vcgencmd get_throttled` says; bits of a detector that the board does not have are passed over."""
    name = "throttling"
    try:
        bits = int((text or "").partition("=")[2], 16)
    except ValueError:
        advice = (
            "sudo usermod -aG video $USER, then log in anew" if vcio is False else "sudo apt install libraspberrypi-bin"
        )
        return Finding("WARN", name, "the firmware cannot be asked (vcgencmd get_throttled)", advice)
    if not profile.limits.undervoltage:
        bits &= ~(1 | 1 << _SINCE_BOOT)
    now = [word for n, word in enumerate(_THROTTLE_BITS) if bits >> n & 1]
    before = [word for n, word in enumerate(_THROTTLE_BITS) if bits >> (n + _SINCE_BOOT) & 1]
    advice = (
        "give it its official power supply and a short cable" if "under-voltage" in now + before else "cool it better"
    )
    if now:
        return Finding("FAIL", name, f"right now: {', '.join(now)}", advice)
    if before:
        return Finding("WARN", name, f"since it was switched on: {', '.join(before)}", advice)
    return Finding("PASS", name, "none")


def _disk(board: Mapping[str, Any]) -> Finding:
    free = board["free_bytes"]
    if free >= DISK_COMFORTABLE:
        return Finding("PASS", "free disk", f"{free / 1e9:.1f} GB")
    status: Status = "FAIL" if free < DISK_LEAST else "WARN"
    return Finding(
        status, "free disk", f"{free / 1e6:.0f} MB", "make room: models are kept there while they are measured"
    )


def _swap(board: Mapping[str, Any]) -> Finding:
    slow = [kind for kind in board["swaps"] if kind != "zram"]
    if slow:
        advice = "sudo swapoff -a while you measure; a model that swaps measures the card, and is refused"
        return Finding("WARN", "swap", f"on a {slow[0]}", advice)
    return Finding("PASS", "swap", "compressed memory (zram)" if board["swaps"] else "none")


def _clock(board: Mapping[str, Any]) -> Finding:
    known = board["clock_synchronized"]
    if known:
        return Finding("PASS", "time of day", "synchronized")
    text = "not synchronized" if known is False else "nobody knows whether it is synchronized"
    return Finding(
        "PASS" if known is None else "WARN",
        "time of day",
        text,
        "" if known is None else "sudo timedatectl set-ntp true",
    )


def installation(name: str, board: Mapping[str, Any], ours: str) -> Iterator[Finding]:
    """What `setup` has put on the board `name`; `ours` is the sha256 of this host's agent."""
    again = f"rlprune-edge device setup {name}"
    if not board["agent"]:
        yield Finding("FAIL", "agent", "there is none yet", again)
        return
    if board["agent"] == ours:
        yield Finding("PASS", "agent", ours[:12])
    else:
        yield Finding("WARN", "agent", f"{board['agent'][:12]}; this host would install {ours[:12]}", again)
    service = {"system": "a system service, under a user of its own", "user": "a service of your own systemd"}
    yield Finding("PASS", "service", service.get(board["unit"] or "", "none: it starts when it is needed"))
    if board["unit"] == "system":
        return  # its packages are out of the login's sight; the agent itself speaks of them
    found = board["packages"]
    if not found:
        yield Finding("FAIL", "onnxruntime", board["packages_broken"], f"{again} --renew")
        return
    for package, version in found.items():
        reason = wheels.blocked(package, version, machine=board["machine"], features=board["features"])
        if reason:
            yield Finding("FAIL", package, f"{version}: {reason}", f"{again} --renew")


def running(name: str, hello: Mapping[str, Any], ours: str) -> Iterator[Finding]:
    """Is the agent that answers this host's? On a system service's board another one may lie in the login's home."""
    theirs = hello.get("agent_sha256")
    if isinstance(theirs, str) and theirs != ours:
        text = f"{printable(theirs)[:12]} answers; this host would install {ours[:12]}"
        yield Finding("WARN", "agent", text, f"rlprune-edge device setup {name}")


def agent(profile: Profile, hello: Mapping[str, Any]) -> Iterator[Finding]:
    """What the agent says of itself and its sensors."""
    runtime = hello["runtime"]
    version = printable(str(runtime.get("onnxruntime")))
    yield Finding("PASS", "onnxruntime", f"{version} runs a model in a process of its own")
    vitals = hello.get("vitals")
    temperatures = vitals.get("temperature_c") if isinstance(vitals, dict) else None
    yield temperature(profile, temperatures)
    memory = hello["facts"].get("memory_bytes")
    if isinstance(memory, int) and memory > 0:
        usable = memory * profile.limits.memory_share
        yield Finding("PASS", "memory", f"{memory / 1e6:.0f} MB, of which models may use {usable / 1e6:.0f}")


def temperature(profile: Profile, zones: Any) -> Finding:
    """The hottest zone against the profile's limits."""
    known = [v for v in zones.values() if isinstance(v, int | float)] if isinstance(zones, dict) else []
    if not known:
        return Finding("WARN", "temperature", "no sensor can be read; heat will go unnoticed")
    hottest = max(known)
    start = profile.limits.start_celsius
    if start is not None and hottest > start:
        advice = "a fan or a heat sink; until it has cooled down, measurements wait"
        return Finding("WARN", "temperature", f"{hottest:.0f} C; measurements start at {start:.0f} C or below", advice)
    return Finding("PASS", "temperature", f"{hottest:.0f} C")


def golden_run(station: Station) -> Finding:
    """Time the golden model, and hold it against the time it was calibrated at."""
    name = "golden run"
    try:
        milliseconds = station.golden_ms()
    except (DeviceError, CandidateError, UserError) as error:
        return Finding("FAIL", name, str(error))
    text = f"{milliseconds:.2f} ms"
    if not isinstance(station, Board):
        return Finding("PASS", name, text)
    before = station.board.calibration
    again = f"rlprune-edge device calibrate {station.profile.name}"
    if before is None:
        return Finding("WARN", name, f"{text}; how far its figures can be trusted is not known yet", again)
    if before.device_key != station.key:
        return Finding("WARN", name, f"{text}; it was calibrated under other conditions", again)
    drift = milliseconds / before.golden_ms - 1
    text += f", {drift:+.1%} against its calibration"
    if abs(drift) > DRIFT_REFUSED:
        return Finding("FAIL", name, text, f"find out why (heat, power, other load), then: {again}")
    return Finding("WARN" if abs(drift) > DRIFT_WARNED else "PASS", name, text)
