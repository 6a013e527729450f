"""Who may use the device: one owner at a time, a queue of those who wait, and a number that tells a stale owner.

Kept in a file under a lock, so that it outlives the agent and holds between agent processes. Times are of the boot
clock, which neither a step of the wall clock nor a suspended board can bend; it starts anew with each boot, so a lease
is void after one. The token outlives everything: it only ever rises.
"""

# lease.json: {"format": 1, "boot_id", "token": the last one given, "holder": null or {"owner", "session", "token",
#              "until", "alone"}, "waiting": [{"owner", "session", "seen"}, ...]}

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

from rlprune_agent import durable
from rlprune_agent.protocol import Failure, printable

LEASE_SECONDS = 60.0
WAITER_SECONDS = 15.0

_FORMAT = 1
_LOCK_SECONDS = 5.0
_RENEW_SHARE = 0.9
"""a lease is written again only when less than this share of it is left: an upload renews with every portion"""
_LOST_MARGIN = 1_000_000

State = Dict[str, Any]


def boot_clock() -> float:
    """Seconds since the board booted, time asleep included."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """The lease of the device whose agent lives in `home`.

    `alone` marks leases given by an agent that serves one conversation and dies with it; `holder_lives` tells of such
    a holder whether its agent is still there, so that nobody waits for the lease of a dead one.
    """

    def __init__(
        self,
        home: Path,
        boot_id: str,
        *,
        seconds: float = LEASE_SECONDS,
        waiter_seconds: float = WAITER_SECONDS,
        clock: Callable[[], float] = boot_clock,
        alone: bool = False,
        holder_lives: Callable[[], bool] = lambda: True,
    ) -> None:
        self.seconds = seconds
        self._path, self._lock = home / "lease.json", home / "lease.lock"
        self._boot_id = boot_id
        self._waiter_seconds = waiter_seconds
        self._clock = clock
        self._alone = alone
        self._holder_lives = holder_lives

    def acquire(self, owner: str, session: str, *, on_grant: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """Ask for the lease; does not block: whoever does not get it has a place in the queue for as long as he asks.

        `session` tells two asks of one owner from two owners; asking again with it gives the same token. `on_grant` is
        asked before the lease is given and may still refuse. Returns the fields of the reply.
        """
        with self._state() as state:
            now, holder = self._clock(), state["holder"]
            if holder and holder["session"] == session:
                if on_grant():
                    holder["until"] = now + self.seconds
                    self._save(state, sync=False)
                    return {"granted": True, "token": holder["token"], "seconds": self.seconds}
                return self._refusal(state, 0)
            place = self._queue(state, owner, session, now)
            if holder or place > 0 or not on_grant():
                self._save(state, sync=False)
                return self._refusal(state, place + 1)
            state["waiting"].pop(0)
            state["token"] += 1
            state["holder"] = {
                "owner": owner,
                "session": session,
                "token": state["token"],
                "until": now + self.seconds,
                "alone": self._alone,
            }
            self._save(state, sync=True)
            return {"granted": True, "token": state["token"], "seconds": self.seconds}

    def check(self, token: Any) -> int:
        """The token, if it is the holder's; renews the lease.

        Raises `Failure`: `lease_lost` for a token whose time is over, `device_locked` for a device that somebody else
        holds and that was never asked for.
        """
        with self._state() as state:
            holder = state["holder"]
            if not isinstance(token, int) or isinstance(token, bool):
                if holder:
                    raise Failure("device_locked", f"the device is in use by {_named(holder)}; acquire the lease first")
                raise Failure("lease_lost", "the device is nobody's; acquire the lease first")
            if not holder or holder["token"] != token:
                now = f"it is in use by {_named(holder)}" if holder else "it has run out or was broken"
                raise Failure("lease_lost", f"lease {token} of the device does not hold any more: {now}")
            until = self._clock() + self.seconds
            if holder["until"] - self._clock() < _RENEW_SHARE * self.seconds:
                holder["until"] = until
                self._save(state, sync=False)
            return token

    def release(self, token: int) -> bool:
        """Give the lease back; `False` if it was not that token's any more."""
        with self._state() as state:
            if not state["holder"] or state["holder"]["token"] != token:
                return False
            state["holder"] = None
            self._save(state, sync=False)
            return True

    def take_away(self) -> str | None:
        """Break the lease whoever holds it; says who did. The running job is killed by the agent's next look."""
        with self._state() as state:
            if not state["holder"]:
                return None
            owner = _named(state["holder"])
            state["holder"] = None
            self._save(state, sync=True)
            return owner

    def current(self) -> int | None:
        """The token that holds now."""
        with self._state() as state:
            return state["holder"]["token"] if state["holder"] else None

    def show(self) -> dict[str, Any]:
        """Holder and queue, for people."""
        with self._state() as state:
            return {
                "holder": self._holder_fields(state),
                "waiting": [printable(str(w["owner"])) for w in state["waiting"]],
            }

    def _queue(self, state: State, owner: str, session: str, now: float) -> int:
        """The place in the queue, 0 being next; joins at the end if need be."""
        for place, waiter in enumerate(state["waiting"]):
            if waiter["session"] == session:
                waiter["seen"] = now
                return place
        state["waiting"].append({"owner": owner, "session": session, "seen": now})
        return len(state["waiting"]) - 1

    def _refusal(self, state: State, position: int) -> dict[str, Any]:
        return {"granted": False, "position": position, "holder": self._holder_fields(state)}

    def _holder_fields(self, state: State) -> dict[str, Any] | None:
        holder = state["holder"]
        if not holder:
            return None
        return {"owner": _named(holder), "seconds_left": round(holder["until"] - self._clock(), 1)}

    @contextlib.contextmanager
    def _state(self) -> Iterator[State]:
        with durable.locked(self._lock, _LOCK_SECONDS):
            state = self._load()
            now = self._clock()
            holder = state["holder"]
            if holder and (holder["until"] <= now or (holder["alone"] and not self._holder_lives())):
                state["holder"] = None
            state["waiting"] = [w for w in state["waiting"] if 0 <= now - w["seen"] < self._waiter_seconds]
            yield state

    def _load(self) -> State:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return self._fresh(0)
        try:
            state: State = json.loads(text)
            if state["format"] != _FORMAT or state["boot_id"] != self._boot_id:
                return self._fresh(int(state["token"]))
            if state["holder"] is not None and not {"until", "token", "session", "alone"} <= set(state["holder"]):
                raise ValueError("a holder without its fields")
            if not all(isinstance(w["seen"], (int, float)) and "session" in w for w in state["waiting"]):
                raise ValueError("a waiter without its fields")
            state["token"] = int(state["token"])
            return state
        except (ValueError, KeyError, TypeError, RecursionError):
            # Written in one step, so this is a rotten disk or a hand. The token must rise even so.
            return self._fresh(max([int(n) for n in re.findall(r"\d{1,15}", text)] or [0]) + _LOST_MARGIN)

    def _fresh(self, token: int) -> State:
        return {"format": _FORMAT, "boot_id": self._boot_id, "token": token, "holder": None, "waiting": []}

    def _save(self, state: State, *, sync: bool) -> None:
        try:
            durable.replace(self._path, json.dumps(state).encode(), sync=sync)
        except OSError as error:
            raise durable.disk_failure(error, self._path.parent) from None


def _named(holder: State) -> str:
    return printable(str(holder.get("owner")))[:200]
