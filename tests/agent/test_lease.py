"""Who may use the device: tokens that only rise, a fair queue, and no clock that anybody can set."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import rlprune_agent
from rlprune_agent.lease import Lease
from rlprune_agent.protocol import Failure


class Clock:
    """Boot time as a test wants it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(tmp_path: Path, clock: Clock) -> Lease:
    return Lease(tmp_path, "boot-1", clock=clock)


def _kind(lease: Lease, token: object) -> str:
    with pytest.raises(Failure) as caught:
        lease.check(token)
    return caught.value.kind


def test_one_holds_it_and_asking_again_gives_the_same_token(lease: Lease) -> None:
    first = lease.acquire("ada", "s1")
    assert first == {"granted": True, "token": 1, "seconds": 60.0}
    assert lease.acquire("ada", "s1")["token"] == 1
    assert lease.acquire("bob", "s2") == {
        "granted": False,
        "position": 1,
        "holder": {"owner": "ada", "seconds_left": 60.0},
    }


def test_a_lease_runs_out_unless_it_is_used(lease: Lease, clock: Clock) -> None:
    token = lease.acquire("ada", "s1")["token"]
    for _ in range(10):
        clock.now += 50
        assert lease.check(token) == token
    clock.now += 60
    assert lease.current() is None
    assert _kind(lease, token) == "lease_lost"
    assert lease.acquire("ada", "s1")["token"] == token + 1


def test_those_who_wait_are_served_in_turn_and_lose_their_place_when_they_stop_asking(
    lease: Lease, clock: Clock
) -> None:
    token = lease.acquire("ada", "a")["token"]
    assert [lease.acquire(name, name)["position"] for name in ("bob", "eve", "mia")] == [1, 2, 3]
    clock.now += 10
    assert [lease.acquire(name, name)["position"] for name in ("eve", "mia")] == [2, 3]
    clock.now += 10  # bob was last seen 20 s ago
    assert [lease.acquire(name, name)["position"] for name in ("mia", "eve")] == [2, 1]
    lease.release(token)
    assert lease.acquire("mia", "mia")["granted"] is False
    assert lease.acquire("eve", "eve")["granted"] is True


def test_a_stale_token_is_told_from_one_that_never_was(lease: Lease) -> None:
    first = lease.acquire("ada", "a")["token"]
    assert _kind(lease, None) == "device_locked"
    assert lease.take_away() == "ada"
    assert _kind(lease, None) == "lease_lost"
    lease.acquire("bob", "b")
    with pytest.raises(Failure, match="in use by bob") as caught:
        lease.check(first)
    assert caught.value.kind == "lease_lost"
    assert lease.release(first) is False
    assert lease.current() == first + 1


def test_a_boot_ends_every_lease_but_tokens_go_on_rising(tmp_path: Path, clock: Clock) -> None:
    assert Lease(tmp_path, "boot-1", clock=clock).acquire("ada", "a")["token"] == 1
    clock.now = 5.0  # the boot clock begins anew
    again = Lease(tmp_path, "boot-2", clock=clock)
    assert again.current() is None
    assert again.acquire("bob", "b")["token"] == 2


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1, "token": 7}', '{"format": 1, "boot_id": "boot-1", "tok'])
def test_a_damaged_file_gives_no_token_a_second_time(tmp_path: Path, clock: Clock, damage: str) -> None:
    (tmp_path / "lease.json").write_text(damage)
    assert Lease(tmp_path, "boot-1", clock=clock).acquire("ada", "a")["token"] > 7


def test_the_lease_of_an_agent_that_died_with_its_host_is_free(tmp_path: Path, clock: Clock) -> None:
    lives = [True]
    lease = Lease(tmp_path, "boot-1", clock=clock, alone=True, holder_lives=lambda: lives[0])
    lease.acquire("ada", "a")
    assert lease.acquire("bob", "b")["granted"] is False
    lives[0] = False
    assert lease.acquire("bob", "b")["granted"] is True


def test_whoever_may_not_do_jobs_yet_is_not_given_the_lease(lease: Lease) -> None:
    assert lease.acquire("ada", "a", on_grant=lambda: False)["granted"] is False
    assert lease.current() is None
    assert lease.acquire("ada", "a")["granted"] is True


def test_an_upload_does_not_write_the_file_with_every_portion(lease: Lease, clock: Clock, tmp_path: Path) -> None:
    token = lease.acquire("ada", "a")["token"]
    before = (tmp_path / "lease.json").stat().st_mtime_ns
    for _ in range(5):
        clock.now += 1
        lease.check(token)
    assert (tmp_path / "lease.json").stat().st_mtime_ns == before
    clock.now += 3
    lease.check(token)
    assert json.loads((tmp_path / "lease.json").read_text())["holder"]["until"] == clock.now + 60


def test_no_duration_on_the_device_is_taken_from_the_wall_clock() -> None:
    """F19: it jumps by a year at the first contact with a time server, for most boards have no clock of their own."""
    wall = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"}
    found = []
    for path in Path(rlprune_agent.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.rpartition(".")[0] in ("time", "datetime", "date") and text.rpartition(".")[2] in wall:
                found.append(f"{path.name}: {text}")
    assert found == []
