"""Is the board fit to be measured on, now and after every block?

Statistics cannot repair a disturbed board: a thousand runs at a throttled clock agree with each other splendidly. So a
block that was disturbed is dropped and taken again after a pause, and a board that does not calm down is refused with
the reason. Everything is read between blocks, never while the clock runs.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, Tuple

from rlprune_agent.policy import Policy
from rlprune_agent.protocol import Failure
from rlprune_agent.sensors import hottest
from rlprune_agent.sensors_pi import SLOWED_NOW, SLOWED_SEEN, UNDERVOLTAGE_NOW, UNDERVOLTAGE_SEEN
from rlprune_agent.world import World

Trouble = Tuple[str, str]
"""kind of failure and the sentence about it"""

_NOT_HEAT = ("busy", "undervoltage")
"""what cooling down does not help against"""
_CLOCK_DROPS = 3
_WARMING_CELSIUS = 15.0
_READINGS_KEPT = 200
_CONFIG = (
    ("governor", "the frequency governor"),
    ("max_khz", "the upper clock limit"),
    ("online", "the set of CPUs that are online"),
    ("power_mode", "the power mode"),
)
_WEAK_SUPPLY = "the supply voltage is too low: use the board's official power supply, a short cable, fewer USB devices"


class Gates:
    """Watches one measuring process: `open`, `begin`, then `check` after blocks, `finish`."""

    def __init__(self, policy: Policy, world: World, on_wait: Callable[[bool], None] = lambda _: None) -> None:
        """`on_wait` hears when waiting for the board begins (true) and ends."""
        self._policy = policy
        self._world = world
        self._on_wait = on_wait
        self._heat_left = policy.wait_seconds
        self._load_left = policy.load_wait_seconds
        self._row = 0
        self._clock_drops = 0
        self._fastest: float | None = policy.clock_ns
        self._slowest_kept = 0.0
        self._previous: dict[str, Any] = {}
        self._faults = 0
        self._start: dict[str, Any] = {}
        self._end: dict[str, Any] = {}
        self._readings: list[dict[str, Any]] = []
        self._left_out = 0
        self._began_ns = world.now_ns()
        self.flags: set[str] = set()
        self.waited_ns = 0
        """spent in pauses, which do not count against the job's cap"""

    def open(self) -> None:
        """Wait until the board is cool, quiet and well fed. Raises `Failure` where the policy does not let it pass."""
        self._on_wait(True)
        self._start = self._world.read_all()
        self._wait()
        self._on_wait(False)

    def begin(self) -> None:
        """From here on it counts: what was seen before is no disturbance of a block."""
        self._previous = self._world.read()
        self._faults = self._world.major_faults()
        self._loop()

    def check(self) -> Trouble | None:
        """After a block: what disturbed it, `None` if nothing did. Raises `Failure` where going on makes no sense."""
        loop_ns = self._loop()
        reading, faults = self._world.read(), self._world.major_faults()
        troubles = list(self._disturbances(reading, loop_ns, faults))
        self._previous, self._faults = {**self._previous, **reading}, faults
        found = None
        for kind, text in troubles:
            if kind in self._policy.flag_only:
                self.flags.add(kind)
            elif kind in ("config_changed", "device_rebooted"):
                raise Failure(kind, text)
            elif found is None:
                found = kind, text
        self._keep(reading, loop_ns, found)
        if found is None:
            self._slowest_kept = max(self._slowest_kept, loop_ns)
        return found

    def kept(self) -> None:
        """The pair was good."""
        self._row = 0

    def dropped(self, trouble: Trouble) -> None:
        """The pair is to be taken again: pause until the board is fit. Raises `Failure` where that was tried enough."""
        kind, text = trouble
        self._row += 1
        self._clock_drops += kind == "clock_unstable"
        if self._row > self._policy.retries or self._clock_drops > _CLOCK_DROPS:
            times = self._clock_drops if kind == "clock_unstable" else self._row
            raise Failure(kind, f"{text} (blocks were dropped for it {times} times)")
        if self._left(kind) <= 0:
            raise Failure(kind, f"{text} (and no more time may be spent on waiting)")
        self._on_wait(True)
        self._pause(kind)
        self._wait()
        self._on_wait(False)

    def finish(self) -> None:
        """The last look. Raises `Failure` if the board was reconfigured meanwhile."""
        self._end = self._world.read_all()
        for kind, text in self._reconfigured(self._end):
            if kind not in self._policy.flag_only:
                raise Failure(kind, text)
            self.flags.add(kind)
        before, after = hottest(self._start), hottest(self._end)
        if before is not None and after is not None and after - before > _WARMING_CELSIUS:
            self.flags.add("warming")
        loss = self._policy.max_clock_loss
        if loss is not None and self._fastest and self._slowest_kept > self._fastest * (1 + loss):
            self.flags.add("clock_unstable")  # the clock rose after blocks had been kept

    def record(self) -> dict[str, Any]:
        """What was read and done, for the result."""
        return {
            "waited_s": round(self.waited_ns / 1e9, 3),
            "clock_ns": self._fastest,
            "start": self._start,
            "end": self._end,
            "readings": self._readings,
            "readings_left_out": self._left_out,
        }

    def _loop(self) -> float:
        loop_ns = self._world.loop_ns()
        if self._policy.clock_ns is None:
            self._fastest = loop_ns if self._fastest is None else min(self._fastest, loop_ns)
        return loop_ns

    def _keep(self, reading: dict[str, Any], loop_ns: float, trouble: Trouble | None) -> None:
        if len(self._readings) >= _READINGS_KEPT:
            self._left_out += 1
            return
        row: dict[str, Any] = {
            "at_s": round((self._world.now_ns() - self._began_ns) / 1e9, 3),
            "clock_ns": round(loop_ns, 2),
        }
        celsius = hottest(reading)
        if celsius is not None:
            row["celsius"] = round(celsius, 1)
        for name in ("throttled", "load_percent"):
            if name in reading:
                row[name] = round(reading[name], 2)
        if trouble:
            row["dropped"] = trouble[0]
        self._readings.append(row)

    def _left(self, kind: str) -> float:
        """Seconds that may still be spent on waiting for this to pass: others to finish, or the board to cool."""
        return self._load_left if kind in _NOT_HEAT else self._heat_left

    def _pause(self, kind: str) -> None:
        seconds = min(self._policy.poll_seconds, self._left(kind))
        began = self._world.now_ns()
        self._world.sleep(seconds)
        self.waited_ns += self._world.now_ns() - began
        if kind in _NOT_HEAT:
            self._load_left -= seconds
        else:
            self._heat_left -= seconds

    def _wait(self) -> None:
        """Pause while something stands in the way, each kind as long as its budget lasts; then flag it or refuse."""
        given_up: set[str] = set()
        while True:
            began = self._world.now_ns()
            reading = self._world.read()
            standing = [found for found in self._standing(reading) if found[0] not in given_up]
            self.waited_ns += self._world.now_ns() - began
            if not standing:
                return
            kind, text = standing[0]
            if self._left(kind) > 0:
                self._pause(kind)
            else:
                self._give_up(kind, text, reading)
                given_up.add(kind)

    def _give_up(self, kind: str, text: str, reading: dict[str, Any]) -> None:
        celsius, stop = hottest(reading), self._policy.stop_celsius
        too_warm = celsius is not None and stop is not None and celsius >= stop
        # A board so warm that every block would be dropped need not begin, even where a warm start is let pass.
        hopeless = kind == "gate_timed_out" and too_warm and "throttled" not in self._policy.flag_only
        if kind not in self._policy.flag_only or hopeless:
            raise Failure(kind, text)
        self.flags.add(kind)

    def _now(self, reading: dict[str, Any]) -> Iterator[Trouble]:
        """What the firmware or the kernel says about this very moment."""
        bits = reading.get("throttled", 0) if self._policy.throttle else 0
        if self._policy.undervoltage and (bits & UNDERVOLTAGE_NOW or reading.get("undervoltage_alarm")):
            yield "undervoltage", f"{_WEAK_SUPPLY} (vcgencmd get_throttled: {bits:#x})"
        if bits & SLOWED_NOW:
            yield "throttled", f"the firmware holds the clock down (vcgencmd get_throttled: {bits:#x})"
        held = reading.get("cooling")
        if held:
            names = ", ".join(f"{name} at {state}" for name, state in sorted(held.items()))
            yield "throttled", f"the kernel holds the board back for heat: {names}"

    def _standing(self, reading: dict[str, Any]) -> Iterator[Trouble]:
        """What stands in the way of a start."""
        yield from self._now(reading)
        celsius, limit = hottest(reading), self._policy.start_celsius
        if celsius is not None and limit is not None and celsius > limit:
            text = "the board does not cool down: {:.0f} C, and {:g} C is where a measurement may begin"
            yield "gate_timed_out", text.format(celsius, limit)
        if self._policy.load_percent is None:
            return
        percent, runnable = reading.get("load_percent"), self._world.runnable()
        if percent is not None and percent > self._policy.load_percent:
            text = "other processes use the board: {:.0f} % of a CPU, {:g} % is allowed; stop them, or measure later"
            yield "busy", text.format(percent, self._policy.load_percent)
        elif runnable is not None and 100 * (runnable - 1) > self._policy.load_percent:
            yield (
                "busy",
                f"other processes use the board: {runnable - 1} of them want a CPU; stop them, or measure later",
            )

    def _disturbances(self, reading: dict[str, Any], loop_ns: float, faults: int) -> Iterator[Trouble]:
        """What happened since the last look."""
        yield from self._reconfigured(reading)
        yield from self._now(reading)
        if self._policy.throttle and "throttled" in reading:
            fresh = reading["throttled"] & ~self._previous.get("throttled", 0)
            if self._policy.undervoltage and fresh & UNDERVOLTAGE_SEEN:
                yield "undervoltage", f"{_WEAK_SUPPLY} (vcgencmd get_throttled: {reading['throttled']:#x})"
            if fresh & SLOWED_SEEN:
                text = "the firmware held the clock down meanwhile (vcgencmd get_throttled: {:#x})"
                yield "throttled", text.format(reading["throttled"])
        celsius, stop = hottest(reading), self._policy.stop_celsius
        if celsius is not None and stop is not None and celsius >= stop:
            yield "throttled", f"too warm to go on: {celsius:.0f} C, and {stop:g} C is the limit"
        loss = self._policy.max_clock_loss
        if loss is not None and self._fastest and loop_ns > self._fastest * (1 + loss):
            text = "the CPU runs {:.0f} % slower than it did when it was calibrated"
            yield "clock_unstable", text.format(100 * (loop_ns / self._fastest - 1))
        swapped = reading.get("swapped_in_pages", 0) - self._previous.get("swapped_in_pages", 0)
        if faults > self._faults or ("swapped_in_pages" in self._previous and swapped > 0):
            yield "swapping", "the model waited for the disk: memory is short, the figure would be the SD card's"
        percent = reading.get("load_percent")
        if self._policy.load_percent is not None and percent is not None and percent > self._policy.load_percent:
            text = "other processes used the board meanwhile: {:.0f} % of a CPU, {:g} % is allowed"
            yield "busy", text.format(percent, self._policy.load_percent)

    def _reconfigured(self, reading: dict[str, Any]) -> Iterator[Trouble]:
        start = self._start
        if start.get("boot_id") != reading.get("boot_id", start.get("boot_id")):
            yield "device_rebooted", "the board was restarted in the middle of the measurement"
        for name, words in _CONFIG:
            if name in start and name in reading and start[name] != reading[name]:
                text = "{} changed in the middle of the measurement: {} before, {} now"
                yield "config_changed", text.format(words, _short(start[name]), _short(reading[name]))


def _short(value: Any) -> str:
    """A setting for a sentence: where all CPUs have the same, once."""
    if isinstance(value, dict):
        return ", ".join(sorted({str(v) for v in value.values()}))
    return str(value)
