"""The modes' table and what the agent is asked to watch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlprune_agent.policy import KINDS, policy_of
from rlprune_agent.protocol import WAITING_PHASES
from rlprune_edge.device.meter import MODES, gates_for
from rlprune_edge.errors import UserError

_LIMITS: Any = SimpleNamespace(
    start_celsius=50.0, stop_celsius=58.0, throttle=True, undervoltage=False, max_clock_loss=0.03, load_percent=5.0
)


def test_a_job_without_gates_is_what_it_was() -> None:
    job = MODES["reward"].job()
    assert not {"gates", "energy", "pairs", "processes"} & set(job)
    assert not any(name.startswith(("gate_", "local_", "heat_")) for name in job)


@pytest.mark.parametrize(
    ("mode", "wait", "retries", "flag_only"),
    [("reward", 180, 2, ("gate_timed_out",)), ("verify", 900, 3, ("gate_timed_out",)), ("report", 900, 3, ())],
)
def test_a_board_is_refused_for_what_disturbs_it(
    mode: str, wait: float, retries: int, flag_only: tuple[str, ...]
) -> None:
    gates = gates_for(_LIMITS, mode, sources=["thermal"], clock_ns=61234.5)
    policy = policy_of(MODES[mode].job(gates=gates))
    assert policy is not None
    assert (policy.wait_seconds, policy.load_wait_seconds, policy.retries) == (wait, 90, retries)
    assert policy.flag_only == flag_only
    assert (policy.start_celsius, policy.stop_celsius, policy.undervoltage) == (50.0, 58.0, False)
    assert (policy.sources, policy.clock_ns) == (("thermal",), 61234.5)


def test_a_developers_machine_waits_shortly_and_only_writes_down() -> None:
    policy = policy_of({"gates": gates_for(_LIMITS, "reward", source="local")})
    assert policy is not None
    assert policy.flag_only == KINDS
    assert policy.wait_seconds == policy.load_wait_seconds == 1
    strict = policy_of({"gates": gates_for(_LIMITS, "reward", True, source="local")})
    assert strict is not None
    assert (strict.flag_only, strict.load_wait_seconds) == ((), 90)


@pytest.mark.parametrize("mode", MODES)
def test_all_that_may_be_waited_for_fits_the_deadline_of_waiting(mode: str) -> None:
    gates = gates_for(_LIMITS, mode)
    assert WAITING_PHASES["gates"] >= gates["wait_seconds"] + gates["load_wait_seconds"] + 10 * gates["poll_seconds"]


def test_an_unknown_mode_is_a_user_error() -> None:
    with pytest.raises(UserError, match="reward, verify, report"):
        gates_for(_LIMITS, "quick")
