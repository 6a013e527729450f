"""When it is tried again, on a clock of our own; and against a port at which nobody listens (any more, or yet)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from device.ssh.board import LinkFault, LoopbackBoard

from rlprune_edge.device.backoff import attempts
from rlprune_edge.device.ssh import SshSession
from rlprune_edge.errors import DeviceError


class Clock:
    """A clock that only moves when somebody sleeps, and what else happens then."""

    def __init__(self, also: Callable[[float], None] = lambda _: None) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._also = also

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self._also(self.now)


def test_pauses_double_up_to_thirty_seconds_and_the_last_attempt_is_at_the_end() -> None:
    clock = Clock()
    numbers = list(attempts(clock=clock, sleep=clock.sleep, uniform=lambda low, high: (low + high) / 2))
    assert clock.pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30, 30, 29])
    assert (clock.now, numbers) == (pytest.approx(180), list(range(1, 12)))


def test_pauses_differ_by_a_fifth_at_most() -> None:
    low, high = Clock(), Clock()
    list(attempts(10, clock=low, sleep=low.sleep, uniform=min))
    list(attempts(10, clock=high, sleep=high.sleep, uniform=max))
    assert low.pauses[:3] == pytest.approx([0.8, 1.6, 3.2])
    assert high.pauses[:3] == pytest.approx([1.2, 2.4, 4.8])


def test_time_spent_trying_counts() -> None:
    clock = Clock()
    tries = attempts(10, clock=clock, sleep=clock.sleep)
    assert next(tries) == 1
    clock.now += 20
    assert list(tries) == []
    assert clock.pauses == []


def _connect(board: LoopbackBoard, link: LinkFault, clock: Clock) -> SshSession:
    for _ in attempts(clock=clock, sleep=clock.sleep):
        try:
            return SshSession.connect(board.target(port=link.port), known_hosts=board.known_hosts(port=link.port))
        except DeviceError as error:
            if error.kind != "connection_lost":
                raise
            last = error
    raise last


def test_a_device_that_never_returns_is_given_up_in_time(board: LoopbackBoard, link: LinkFault) -> None:
    link.shut()
    clock = Clock()
    with pytest.raises(DeviceError, match="no SSH server listens on its port") as caught:
        _connect(board, link, clock)
    assert caught.value.kind == "connection_lost"
    assert clock.now == pytest.approx(180)


def test_a_device_that_returns_is_found(board: LoopbackBoard, link: LinkFault) -> None:
    link.shut()

    def return_late(now: float) -> None:
        if now > 20 and link.connections == 0:
            link.reopen()

    clock = Clock(return_late)
    with _connect(board, link, clock) as session:
        assert session.run("echo back", seconds=20).stdout == b"back\n"
    assert 20 < clock.now < 60
