"""A board that does not exist: latencies by a law, with noise, heat, throttling and neighbours, on a clock of its own.

It is measured by the very code that measures real boards (`take_turns`, `Gates`, `measure_energy`), so that statistics,
gates and everything above them can be tried without hardware, hundreds of times, and with the right answer known.
Deterministic by its seed. What it gives must be stamped `simulated` by whoever passes it on.
"""

from __future__ import annotations

import math
import random
from typing import Any, Callable, NamedTuple

from rlprune_agent.energy import measure_energy
from rlprune_agent.gates import Gates
from rlprune_agent.policy import policy_of, wants_energy
from rlprune_agent.protocol import Failure, Message
from rlprune_agent.sensors import PowerMeter
from rlprune_agent.sensors_pi import SLOWED_NOW, UNDERVOLTAGE_NOW
from rlprune_agent.timed import Timed
from rlprune_agent.turns import figures, take_turns
from rlprune_agent.world import Samples, Sampling

LOOP_NS = 60_000.0
"""nanoseconds of 1000 turns of the arithmetic loop at full clock"""
_LOOPS_NS = 9_000_000
_CLEARED_NS = 2_000_000_000
"""how often the kernel's driver clears the firmware's sticky bits"""
_READ_NS = 12_000_000
"""what reading the sensors takes, most of it for starting `vcgencmd`"""
_IMPORT_NS = 400_000_000
_SESSION_NS = 20_000_000
_RUNTIME_BYTES = 60_000_000


class Conditions(NamedTuple):
    """How kind the board and its room are. The default: cool, well fed, alone, with 1 % of noise."""

    sigma: float = 0.01
    """standard deviation of the logarithm of a latency"""
    rho: float = 0.6
    """correlation of one run's noise with the next one's"""
    outliers: float = 0.0
    """share of runs that take `outlier_factor` times as long"""
    outlier_factor: float = 1.3
    drift: float = 0.0
    """how much slower everything has become, as a share, `drift_seconds` after the start"""
    drift_seconds: float = 30.0
    hidden_step: float = 1.0
    """a slow-down at a random moment that no sensor shows and the arithmetic loop does not feel (a memory clock)"""
    hidden_step_chance: float = 0.0
    hidden_step_seconds: float = 20.0
    """the moment lies in these first seconds"""
    clock_step: float = 1.0
    """a slow-down of the CPU's clock from `clock_step_at` on that the firmware does not report"""
    clock_step_at: float = 0.0
    slow_mode: float = 1.0
    """factor of a second speed, between which a scheduler's placement switches the runs"""
    slow_mode_share: float = 0.0
    slow_mode_runs: float = 20.0
    """mean length of a stay in the slow mode, in runs"""
    ambient_c: float = 25.0
    rise_c: float = 25.0
    """above ambient, computing without end at full clock; a fifth of it when idle"""
    tau_seconds: float = 60.0
    """thermal time constant"""
    throttle_c: float = 80.0
    resume_c: float = 75.0
    throttle_factor: float = 1.5
    reports_throttle: bool = True
    start_c: float | None = None
    """`None`: where it would be after a long idle time"""
    undervoltage: bool = False
    busy_from: float = 0.0
    """a neighbour wants `busy_percent` of a CPU from here..."""
    busy_until: float = 0.0
    """...to here, in seconds"""
    busy_percent: float = 0.0
    faults_at: float | None = None
    """from then on, the process waits for the disk in every block"""
    reconfigured_at: float | None = None
    """when somebody chooses another power mode"""
    idle_mw: float = 2000.0
    busy_mw: float = 5000.0
    power_sensor: bool = True


class _Sampled:
    def __init__(self, read: Callable[[], float], period_ns: int, began_ns: int) -> None:
        self.read = read
        self.period_ns = period_ns
        self.next_ns = began_ns
        self.samples: Samples = []
        self.stopped = False

    def stop(self) -> tuple[Samples, int]:
        self.stopped = True
        return self.samples, 1000 * len(self.samples)


class SimBoard:
    """A `World`, see there, for one measuring process. Time passes only by computing and by waiting."""

    def __init__(self, conditions: Conditions, seed: int) -> None:
        self.conditions = conditions
        self._random = random.Random(seed)
        self._ns = 0
        self._busy = False
        idle_c = conditions.ambient_c + conditions.rise_c / 5
        self._celsius = idle_c if conditions.start_c is None else conditions.start_c
        self._throttled = False
        self._seen = 0
        self._noise = self._random.gauss(0.0, 1.0)
        self._slow = self._random.random() < conditions.slow_mode_share
        self._faults = 0
        self._sampled: _Sampled | None = None
        stepped = self._random.random() < conditions.hidden_step_chance
        moment = self._random.uniform(0.0, conditions.hidden_step_seconds)
        self._hidden_from = moment if stepped else math.inf

    def now_ns(self) -> int:
        return self._ns

    def sleep(self, seconds: float) -> None:
        self._pass(int(seconds * 1e9), busy=False)

    def waited_ns(self) -> int:
        return 0

    def major_faults(self) -> int:
        at = self.conditions.faults_at
        if at is not None and self._ns / 1e9 >= at:
            self._faults += 1
        return self._faults

    def loop_ns(self) -> float:
        self._pass(_LOOPS_NS, busy=True)
        return LOOP_NS * self._cpu_factor() * (1 + abs(self._random.gauss(0.0, 0.002)))

    def runnable(self) -> int | None:
        return 1

    def read(self) -> dict[str, Any]:
        self._pass(_READ_NS, busy=False)
        c = self.conditions
        reading: dict[str, Any] = {
            "boot_id": "simulated",
            "online": "0-3",
            "governor": {"cpu0": "ondemand"},
            "temperature_c": {"thermal_zone0 cpu-thermal": self._celsius},
            "load_percent": c.busy_percent if c.busy_from <= self._ns / 1e9 < c.busy_until else 0.0,
            "missing": [],
        }
        if c.reports_throttle:
            now = (SLOWED_NOW & 0x4 if self._throttled else 0) | (UNDERVOLTAGE_NOW if c.undervoltage else 0)
            self._seen |= now << 16
            reading["throttled"] = now | self._seen
        changed = c.reconfigured_at is not None and self._ns / 1e9 >= c.reconfigured_at
        reading["power_mode"] = "15W" if changed else "MAXN"
        return reading

    read_all = read

    def power_meter(self) -> PowerMeter:
        if not self.conditions.power_sensor:
            raise OSError("the simulated board was made without a power sensor")
        return PowerMeter("simulated", "all of it", self._mw)

    def sample(self, read: Callable[[], float], period_seconds: float) -> Sampling:
        self._sampled = _Sampled(read, int(period_seconds * 1e9), self._ns)
        return self._sampled

    def compute(self, milliseconds: float) -> None:
        """One inference that takes so long at full clock without noise."""
        c, rng = self.conditions, self._random
        self._noise = c.rho * self._noise + math.sqrt(1 - c.rho**2) * rng.gauss(0.0, 1.0)
        factor = self._cpu_factor() * math.exp(c.sigma * self._noise)
        if c.outliers and rng.random() < c.outliers:
            factor *= c.outlier_factor
        if c.slow_mode_share:
            leave = 1 / c.slow_mode_runs
            enter = leave * c.slow_mode_share / (1 - c.slow_mode_share)
            if rng.random() < (leave if self._slow else enter):
                self._slow = not self._slow
            factor *= c.slow_mode if self._slow else 1.0
        seconds = self._ns / 1e9
        factor *= 1 + c.drift * min(1.0, seconds / c.drift_seconds)
        if seconds >= self._hidden_from:
            factor *= c.hidden_step
        self._pass(max(1, int(milliseconds * 1e6 * factor)), busy=True)

    def _cpu_factor(self) -> float:
        c = self.conditions
        stepped = c.clock_step if self._ns / 1e9 >= c.clock_step_at else 1.0
        return stepped * (c.throttle_factor if self._throttled else 1.0)

    def _mw(self) -> float:
        c = self.conditions
        return c.idle_mw + (c.busy_mw - c.idle_mw) / self._cpu_factor() ** 2 if self._busy else c.idle_mw

    def _pass(self, ns: int, *, busy: bool) -> None:
        """Let time go by: heat comes and goes by a first-order law, the firmware throttles with hysteresis."""
        c = self.conditions
        self._busy = busy
        power = (1.0 / self._cpu_factor() ** 2 if self._throttled else 1.0) if busy else 0.2
        goal = c.ambient_c + c.rise_c * power
        self._celsius = goal + (self._celsius - goal) * math.exp(-ns / 1e9 / c.tau_seconds)
        if self._celsius >= c.throttle_c:
            self._throttled = True
            self._seen |= 0x4 << 16
        elif self._celsius <= c.resume_c:
            self._throttled = False
        if self._ns // _CLEARED_NS != (self._ns + ns) // _CLEARED_NS:
            self._seen = 0x4 << 16 if self._throttled else 0
        if self._sampled is not None and not self._sampled.stopped:
            while self._sampled.next_ns < self._ns + ns:
                self._sampled.samples.append((self._sampled.next_ns, self._sampled.read()))
                self._sampled.next_ns += self._sampled.period_ns
        self._ns += ns


class SimModel:
    """A model whose inference takes so many milliseconds on the simulated board at its best."""

    def __init__(self, board: SimBoard, milliseconds: float) -> None:
        if not 0 < milliseconds < 1e7:
            raise Failure("bad_request", f"a simulated model cannot take {milliseconds!r} ms")
        self._board = board
        self._milliseconds = milliseconds

    def run(self, outputs: None, feeds: dict[str, Any]) -> list[Any]:  # noqa: ARG002 - as a session has it
        """One inference, without outputs."""
        self._board.compute(self._milliseconds)
        return []


def simulate(
    settings: dict[str, Any],
    *,
    candidate_ms: float,
    reference_ms: float | None,
    model_bytes: int,
    threads: int,
    board: SimBoard,
) -> Message:
    """What `measure` tells for such models on such a board: same settings, same result. Raises `Failure` as it does."""
    energy_too, policy = wants_energy(settings), policy_of(settings)
    deadline_ns = board.now_ns() + settings["cap_seconds"] * 1e9
    gate = Gates(policy, board) if policy else None
    before = board.read()
    board.sleep((_IMPORT_NS + _SESSION_NS) / 1e9)
    model = SimModel(board, candidate_ms)
    began = board.now_ns()
    model.run(None, {})
    first_run_ns = board.now_ns() - began
    candidate = Timed(model, {}, board)
    reference = Timed(SimModel(board, reference_ms), {}, board) if reference_ms is not None else None
    if gate:
        gate.open()
    turns = take_turns(candidate, reference, settings, board, gates=gate, deadline_ns=deadline_ns)
    header, body = figures(turns, candidate, reference, gate)
    if energy_too:
        header["energy"] = measure_energy(lambda: model.run(None, {}), board)
    header.update(
        {
            "import_ns": _IMPORT_NS,
            "session_ns": _SESSION_NS,
            "first_run_ns": first_run_ns,
            "memory_before_bytes": _RUNTIME_BYTES,
            "memory_peak_bytes": _RUNTIME_BYTES + 3 * model_bytes,
            "memory_pss_bytes": _RUNTIME_BYTES + 3 * model_bytes,
            "memory_taken_bytes": 3 * model_bytes,
            "max_output_difference": 0.0,
            "options": {"provider": "simulated", "intra_op_threads": threads},
        }
    )
    return Message({"result": header, "vitals_before": before, "vitals_after": board.read()}, body)
