"""One conversation with one host: hello, have, put, measure, sweep; ends when the host's side closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import rlprune_agent
from rlprune_agent import vitals
from rlprune_agent.protocol import (
    MEASUREMENT_VERSION,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    VERBS,
    Channel,
    Failure,
    Message,
    negotiate,
)
from rlprune_agent.store import Store
from rlprune_agent.supervise import HostGone, run_child

Reply = Tuple[Dict[str, Any], bytes]

_GRACE_SECONDS = 30.0
_PROBE_SECONDS = 60.0


def _field(request: dict[str, Any], name: str, kind: Any) -> Any:
    value = request.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Failure(
            "bad_request", "{}: the field {!r} is missing or of the wrong type".format(request.get("verb"), name)
        )
    return value


class Server:
    """Answers requests one after the other. Files live in `store`; sensors are read below `root`."""

    def __init__(self, channel: Channel, store: Store, root: Path) -> None:
        self._channel = channel
        self._store = store
        self._root = root
        self._verbs: dict[str, Callable[[dict[str, Any], bytes], Reply]] = {
            "hello": self._hello,
            "have": self._have,
            "put": self._put,
            "measure": self._measure,
            "sweep": self._sweep,
        }

    def serve(self) -> None:
        """Answer until the host closes its side (or cannot be understood any more: raises `Failure`)."""
        while True:
            message = self._channel.receive(None)
            if message is None:
                return
            try:
                self._answer(message)
            except HostGone:
                return

    def _answer(self, message: Message) -> None:
        number = message.header.get("id")
        try:
            verb = message.header.get("verb")
            if not isinstance(verb, str) or verb not in self._verbs:
                raise Failure("unknown_verb", "this agent knows {}, not {!r}".format(", ".join(VERBS), verb))
            header, body = self._verbs[verb](message.header, message.body)
            header["ok"] = True
        except Failure as failure:
            header, body = failure.header(), b""
        header["id"] = number
        self._channel.send(header, body)

    def _hello(self, request: dict[str, Any], _: bytes) -> Reply:
        chosen = negotiate(_field(request, "protocol_min", int), _field(request, "protocol_max", int))
        reply: dict[str, Any] = {
            "protocol": chosen,
            "protocol_min": PROTOCOL_MIN,
            "protocol_max": PROTOCOL_MAX,
            "measurement_version": MEASUREMENT_VERSION,
            "agent": rlprune_agent.__version__,
            "verbs": list(VERBS),
            "facts": vitals.facts(self._root),
            "vitals": vitals.read(self._root),
            "isolation": "user",
        }
        try:
            probed = run_child(
                {"kind": "probe"}, seconds=_PROBE_SECONDS, host=self._channel, alive=self._alive(request)
            )
            reply["runtime"] = probed.header["result"]
        except Failure as failure:
            reply["runtime_error"] = failure.message
        return reply, b""

    def _have(self, request: dict[str, Any], _: bytes) -> Reply:
        missing = {}
        for sha256 in _field(request, "files", list):
            if not self._store.has(sha256):
                missing[sha256] = self._store.offset(sha256)
        return {"missing": missing}, b""

    def _put(self, request: dict[str, Any], body: bytes) -> Reply:
        sha256 = _field(request, "sha256", str)
        size, offset, crc32 = (_field(request, name, int) for name in ("size", "offset", "crc32"))
        here, whole = self._store.put(sha256, size=size, offset=offset, crc32=crc32, data=body)
        return {"offset": here, "whole": whole}, b""

    def _measure(self, request: dict[str, Any], _: bytes) -> Reply:
        inputs, expected = _field(request, "inputs", dict), _field(request, "expected", dict)
        reference = request.get("reference")
        wanted = [_field(request, "candidate", str)] + ([reference] if reference else [])
        self._require(wanted + list(inputs.values()) + list(expected.values()))
        settings = _field(request, "settings", dict)
        job = {
            "kind": "measure",
            "store": str(self._store.folder),
            "candidate": request["candidate"],
            "reference": reference,
            "inputs": inputs,
            "expected": expected,
            "tolerance": _field(request, "tolerance", (int, float)),
            "threads": _field(request, "threads", int),
            "settings": settings,
        }
        return self._timed(request, job, _field(settings, "cap_seconds", (int, float)))

    def _sweep(self, request: dict[str, Any], _: bytes) -> Reply:
        models = _field(request, "models", list)
        self._require(models)
        job: dict[str, Any] = {"kind": "sweep", "store": str(self._store.folder), "models": models}
        for name, kind in (
            ("threads", int),
            ("rounds", int),
            ("visit_ms", (int, float)),
            ("visit_runs", int),
            ("seed", int),
        ):
            job[name] = _field(request, name, kind)
        return self._timed(request, job, _field(request, "cap_seconds", (int, float)))

    def _require(self, files: Any) -> None:
        missing = sorted({sha256 for sha256 in files if not self._store.has(sha256)})
        if missing:
            raise Failure("missing_files", f"{len(missing)} files are not here", missing=missing[:500])

    def _timed(self, request: dict[str, Any], job: dict[str, Any], cap_seconds: float) -> Reply:
        before = vitals.read(self._root)
        result = run_child(
            job,
            seconds=cap_seconds + _GRACE_SECONDS,
            host=self._channel,
            alive=self._alive(request),
            count_oom=self._oom_kills,
        )
        header = {"result": result.header["result"], "vitals_before": before, "vitals_after": vitals.read(self._root)}
        return header, result.body

    def _alive(self, request: dict[str, Any]) -> Callable[[], None]:
        return lambda: self._channel.send({"id": request.get("id"), "alive": True})

    def _oom_kills(self) -> int | None:
        return vitals.read(self._root).get("oom_kills")
