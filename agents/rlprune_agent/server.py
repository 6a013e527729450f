"""One conversation with one host: what each verb does. Ends when the host's side closes or falls silent."""

from __future__ import annotations

import math
import os
import select
import time
from typing import Any, Callable, Dict, Tuple

import rlprune_agent
from rlprune_agent import upgrade, vitals
from rlprune_agent.agent import Agent
from rlprune_agent.jobs import Job, files_of
from rlprune_agent.protocol import (
    ALIVE_SECONDS,
    MEASUREMENT_VERSION,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    VERBS,
    Channel,
    Failure,
    Message,
    negotiate,
    printable,
)

Reply = Tuple[Dict[str, Any], bytes]
Number = (int, float)

SILENCE_SECONDS = 300.0
"""a host that keeps its lease says something every 15 s; one that says nothing for this long is gone"""

_PROBE_SECONDS = 80.0
_WAIT_MAX_SECONDS = 60.0
_CAP_MAX_SECONDS = 7200.0
_THREADS_MAX = 1024
_FILES_MAX = 1000


def _field(request: dict[str, Any], name: str, kind: Any) -> Any:
    value = request.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        verb = printable(str(request.get("verb")))[:40]
        raise Failure("bad_request", f"{verb}: the field {name!r} is missing or of the wrong type")
    return value


def _between(request: dict[str, Any], name: str, kind: Any, low: float, high: float) -> Any:
    value = _field(request, name, kind)
    if not (math.isfinite(value) and low <= value <= high):
        raise Failure("bad_request", f"the field {name!r} has to be between {low:g} and {high:g}")
    return value


def _optional(request: dict[str, Any], name: str, kind: Any) -> Any:
    return None if request.get(name) is None else _field(request, name, kind)


def _hashes(values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise Failure("bad_request", "a file is named by its sha256")


def _measure_spec(request: dict[str, Any]) -> dict[str, Any]:
    inputs, expected = _field(request, "inputs", dict), _field(request, "expected", dict)
    _hashes([*inputs.values(), *expected.values()])
    settings = _field(request, "settings", dict)
    spec = {
        "kind": "measure",
        "candidate": _field(request, "candidate", str),
        "reference": _optional(request, "reference", str),
        "inputs": inputs,
        "expected": expected,
        "tolerance": _field(request, "tolerance", Number),
        "threads": _between(request, "threads", int, 1, _THREADS_MAX),
        "settings": settings,
        "cap_seconds": _between(settings, "cap_seconds", Number, 0, _CAP_MAX_SECONDS),
    }
    # What only the measuring process understands goes through as it came, or not at all.
    for name, kind in (("runtime", dict), ("weights", dict), ("model_bytes", int), ("tolerances", dict)):
        if request.get(name) is not None:
            spec[name] = _field(request, name, kind)
    if not expected and not spec.get("weights", {}).get("candidate"):
        raise Failure("bad_request", "measure: without expected outputs nothing says that the model is the right one")
    return spec


def _sweep_spec(request: dict[str, Any]) -> dict[str, Any]:
    models = _field(request, "models", list)
    _hashes(models)
    runtime = _optional(request, "runtime", dict)
    return {
        **({"runtime": runtime} if runtime else {}),
        "kind": "sweep",
        "models": models,
        "threads": _between(request, "threads", int, 1, _THREADS_MAX),
        "rounds": _between(request, "rounds", int, 1, 1000),
        "visit_ms": _between(request, "visit_ms", Number, 0, 60_000),
        "visit_runs": _between(request, "visit_runs", int, 1, 10_000),
        "seed": _between(request, "seed", int, 0, 2**32 - 1),
        "cap_seconds": _between(request, "cap_seconds", Number, 0, _CAP_MAX_SECONDS),
    }


SPECS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"measure": _measure_spec, "sweep": _sweep_spec}
"""the kinds of job: how each is checked and made what its child gets"""


class Server:
    """Answers one host's requests, one after the other.

    `trusted`: the host's login is the agent's own user, who may put another agent in its place.
    """

    def __init__(self, channel: Channel, agent: Agent, *, trusted: bool = True) -> None:
        self._channel = channel
        self._agent = agent
        self._trusted = trusted
        self.answering = False
        """a request is being answered now"""
        self._verbs: dict[str, Callable[[dict[str, Any], bytes], Reply]] = {
            "hello": self._hello,
            "lease": self._lease,
            "have": self._have,
            "put": self._put,
            "submit": self._submit,
            "wait": self._wait,
            "ack": self._ack,
            "cancel": self._cancel,
            "status": self._status,
            "upgrade": self._upgrade,
        }

    def serve(self) -> None:
        """Answer until the host closes its side. Raises `Failure` if it cannot be understood or is silent."""
        while True:
            try:
                message = self._channel.receive(SILENCE_SECONDS)
            except Failure as failure:
                self._channel.send({**failure.header(), "id": None})
                raise
            if message is None:
                return
            self.answering = True
            self._answer(message)
            self.answering = False

    def _answer(self, message: Message) -> None:
        number = _number(message.header)
        try:
            verb = message.header.get("verb")
            if not isinstance(verb, str) or verb not in self._verbs:
                raise Failure("unknown_verb", "this agent knows {}, not {!r}".format(", ".join(VERBS), str(verb)[:40]))
            header, body = self._verbs[verb](message.header, message.body)
        except Failure as failure:
            header, body = failure.header(), b""
        except OSError as error:
            header, body = Failure("agent_crashed", f"the agent failed: {error}").header(), b""
        self._channel.send({"ok": True, **header, "id": number}, body)

    def _alive(self, request: dict[str, Any]) -> Callable[[], None]:
        return lambda: self._channel.send({"id": _number(request), "alive": True})

    def _hello(self, request: dict[str, Any], _: bytes) -> Reply:
        chosen = negotiate(_field(request, "protocol_min", int), _field(request, "protocol_max", int))
        agent = self._agent
        reply: dict[str, Any] = {
            "protocol": chosen,
            "protocol_min": PROTOCOL_MIN,
            "protocol_max": PROTOCOL_MAX,
            "measurement_version": MEASUREMENT_VERSION,
            "agent": rlprune_agent.__version__,
            "agent_sha256": upgrade.own_sha256(),
            "verbs": list(VERBS),
            "isolation": agent.isolation,
        }
        reply.update(agent.runtime(_PROBE_SECONDS, self._alive(request), ALIVE_SECONDS))
        reply.update(facts=vitals.facts(agent.root), vitals=vitals.read(agent.root), daemon=agent.daemon_fields())
        return reply, b""

    def _lease(self, request: dict[str, Any], _: bytes) -> Reply:
        action = _field(request, "action", str)
        agent, lease = self._agent, self._agent.lease
        if action == "acquire":
            owner = printable(_field(request, "owner", str))[:200]
            session = str(_optional(request, "session", str) or owner)[:200]
            return agent.acquire(owner, session), b""
        if action == "renew":
            return {"granted": True, "token": lease.check(request.get("token")), "seconds": lease.seconds}, b""
        if action == "release":
            agent.release(_field(request, "token", int))
            return {"granted": False}, b""
        if action == "show":
            return lease.show(), b""
        if action == "break":
            broken = lease.take_away()
            agent.tick()
            return {"granted": False, "broken": broken}, b""
        raise Failure("bad_request", "lease: the actions are acquire, renew, release, show and break")

    def _have(self, request: dict[str, Any], _: bytes) -> Reply:
        self._agent.lease.check(request.get("token"))
        files = _field(request, "files", list)
        if len(files) > _FILES_MAX:
            raise Failure("bad_request", f"have: at most {_FILES_MAX} files at a time")
        store = self._agent.store
        return {"missing": {sha256: store.offset(sha256) for sha256 in files if not store.has(sha256)}}, b""

    def _put(self, request: dict[str, Any], body: bytes) -> Reply:
        self._agent.lease.check(request.get("token"))
        sha256 = _field(request, "sha256", str)
        size, offset, crc32 = (_field(request, name, int) for name in ("size", "offset", "crc32"))
        here, whole = self._agent.store.put(
            sha256, size=size, offset=offset, crc32=crc32, data=body, beat=self._alive(request)
        )
        return {"offset": here, "whole": whole}, b""

    def _submit(self, request: dict[str, Any], _: bytes) -> Reply:
        token = self._agent.lease.check(request.get("token"))
        kind = _field(request, "job", str)
        if kind not in SPECS:
            raise Failure("bad_request", "submit: the kinds of job are {}".format(", ".join(sorted(SPECS))))
        if self._agent.retiring.is_set():
            raise Failure("agent_crashed", "another agent is about to take over; connect again")
        spec = SPECS[kind](request)
        job_id = _field(request, "job_id", str)
        jobs, store = self._agent.jobs, self._agent.store
        if not jobs.knows(job_id):
            missing = sorted(sha256 for sha256 in files_of(spec) if not store.has(sha256))
            if missing:
                raise Failure("missing_files", f"{len(missing)} files are not here", missing=missing[:500])
        return self._state(jobs.submit(job_id, token, spec)), b""

    def _wait(self, request: dict[str, Any], _: bytes) -> Reply:
        agent, jobs = self._agent, self._agent.jobs
        agent.lease.check(request.get("token"))
        job = jobs.find(request.get("job_id"))
        now = time.monotonic()
        end = now + _between(request, "seconds", Number, 0, _WAIT_MAX_SECONDS)
        beat = now + ALIVE_SECONDS
        with jobs.watched() as changed:
            while job.state != "done" and now < end and not self._channel.holds_more:
                ready = select.select([changed, self._channel.fileno()], [], [], min(end, beat) - now)[0]
                if self._channel.fileno() in ready:  # the host has something else to say, or is gone: no more waiting
                    break
                if changed in ready:
                    os.read(changed, 4096)
                now = time.monotonic()
                if now >= beat:
                    self._alive(request)()
                    beat = now + ALIVE_SECONDS
        if job.state != "done":
            return self._state(job), b""
        result = jobs.result(job)
        return {**result.header, "state": "done"}, result.body

    def _ack(self, request: dict[str, Any], _: bytes) -> Reply:
        self._agent.lease.check(request.get("token"))
        self._agent.jobs.acknowledge(request.get("job_id"))
        return {}, b""

    def _cancel(self, request: dict[str, Any], _: bytes) -> Reply:
        self._agent.lease.check(request.get("token"))
        job = self._agent.jobs.find(request.get("job_id"))
        self._agent.jobs.stop(job, Failure("connection_lost", "the host cancelled the job"))
        return self._state(job), b""

    def _status(self, _request: dict[str, Any], _: bytes) -> Reply:
        agent, store = self._agent, self._agent.store
        unfinished = agent.jobs.unfinished()
        return {
            "lease": agent.lease.show(),
            "running": [self._summary(job) for job in unfinished if job.state == "running"],
            "queue": [self._summary(job) for job in unfinished if job.state == "queued"],
            "store": {"bytes": store.used_bytes(), "quota": store.quota_bytes},
            "disk_free_bytes": store.free_bytes(),
            "agents": upgrade.installed(agent.home),
            "current": upgrade.current(agent.home),
            "agent_sha256": upgrade.own_sha256(),
            "isolation": agent.isolation,
            "daemon": agent.daemon_fields(),
        }, b""

    def _upgrade(self, request: dict[str, Any], _: bytes) -> Reply:
        agent = self._agent
        agent.lease.check(request.get("token"))
        sha256 = _field(request, "sha256", str)
        if agent.alone:
            raise Failure("bad_request", "upgrade: an agent that serves one conversation is chosen by who starts it")
        if not self._trusted:
            raise Failure("auth_failed", "upgrade: only the user that the agent runs as may replace it; run the set-up")
        upgrade.upgrade(agent.home, sha256, agent.store.read(sha256))
        agent.retiring.set()
        return {"agent_sha256": sha256}, b""

    def _state(self, job: Job) -> dict[str, Any]:
        return {"state": job.state, "phase": job.phase, "position": self._agent.jobs.position(job)}

    @staticmethod
    def _summary(job: Job) -> dict[str, Any]:
        return {"job_id": job.id, "kind": job.spec.get("kind"), "phase": job.phase}


def _number(header: dict[str, Any]) -> int | None:
    number = header.get("id")
    return number if isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63 else None
