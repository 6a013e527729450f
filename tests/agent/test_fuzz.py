"""F34: whatever arrives at the daemon's socket, it answers or closes, lives, and does not grow."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talk import Daemon, Host, wait_for

from rlprune_agent.protocol import FRAME_BODY_MAX, HEADER_MAX, KINDS, MAGIC, VERBS, Channel, Failure, encode

_PREFIX = struct.Struct(">8sBBII")
_HELLO = b"".join(encode({"verb": "hello", "id": 1, "protocol_min": 1, "protocol_max": 1}))


def _frame(header: bytes, body: bytes = b"", *, flags: int = 0, sizes: tuple[int, int] | None = None) -> bytes:
    return _PREFIX.pack(MAGIC, 1, flags, *(sizes or (len(header), len(body)))) + header + body


def _resident_mb(daemon: Daemon) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found.group(1)) / 1e3


def _answers(daemon: Daemon) -> bool:
    with daemon.socket() as connection:
        host = Host(Channel(connection.fileno(), connection.fileno()), connection.close)
        try:
            return host.ask(verb="status").header["ok"] is True
        except (AssertionError, Failure):
            return False


def _last_word(connection: socket.socket) -> dict[str, Any]:
    """The failure that the daemon sends before it closes."""
    connection.settimeout(20)
    message = Channel(connection.fileno(), connection.fileno()).receive(20)
    assert message is not None
    connection.setblocking(True)
    connection.settimeout(20)
    try:
        assert connection.recv(1) == b""
    except ConnectionResetError:  # closed with something of ours unread
        return message.header
    return message.header


def _send_all(connection: socket.socket, data: bytes) -> None:
    """Send, unless the other side closes while we do."""
    connection.settimeout(20)
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


@pytest.fixture
def connection(shared_daemon: Daemon) -> Iterator[socket.socket]:
    with shared_daemon.socket() as connection:
        yield connection


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (_frame(b"{}", sizes=(HEADER_MAX + 1, 0)), "bad_request"),
        (_frame(b"{}", sizes=(2**32 - 1, 2**32 - 1)), "bad_request"),
        (_frame(b"{}", sizes=(2, FRAME_BODY_MAX + 1)), "bad_request"),
        (_frame(b"[" * 60_000), "bad_request"),
        (_frame(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "bad_request"),
        (_frame(b"\xff\xfe\x00"), "bad_request"),
        (_frame(b'{"verb": NaN}'), "bad_request"),
        (_frame(b'{"seconds": 1e999}'), "bad_request"),
        (_frame(b'"hello"'), "bad_request"),
        (_frame(b"{}", flags=1), "bad_request"),
        (_PREFIX.pack(MAGIC, 9, 0, 2, 0) + b"{}", "version_mismatch"),
        (b"GET / HTTP/1.1\r\n\r\n" * 300, "version_mismatch"),
        (_frame(b'{"verb": "have"}')[:-3] + MAGIC * 3, "bad_request"),
    ],
)
def test_what_is_no_message_gets_a_last_word_and_a_closed_connection(
    shared_daemon: Daemon, connection: socket.socket, data: bytes, kind: str
) -> None:
    _send_all(connection, data)
    word = _last_word(connection)
    assert (word["id"], word["ok"], word["kind"]) == (None, False, kind)
    assert shared_daemon.connect().ask(verb="status").header["ok"] is True


def test_a_body_that_never_ends_is_cut_off_and_costs_no_memory(
    shared_daemon: Daemon, connection: socket.socket
) -> None:
    before = _resident_mb(shared_daemon)
    _send_all(connection, _frame(b'{"verb": "put"}', bytes(FRAME_BODY_MAX), flags=1))
    for _ in range(30):
        _send_all(connection, _frame(b"", bytes(FRAME_BODY_MAX), flags=1))
    assert _last_word(connection)["kind"] == "bad_request"
    assert _resident_mb(shared_daemon) - before < 20


def test_random_bytes_and_spoilt_messages_do_not_end_the_daemon_or_make_it_grow(shared_daemon: Daemon) -> None:
    rng = random.Random(34)
    with shared_daemon.socket() as first:
        _send_all(first, rng.randbytes(10_000))
        assert _last_word(first)["kind"] == "version_mismatch"
    before = _resident_mb(shared_daemon)
    for _ in range(150):
        data = bytearray(_HELLO + b"".join(encode({"verb": "status", "id": 2}, rng.randbytes(rng.randrange(3000)))))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            if rng.random() < 0.3:
                del data[at : at + rng.randint(1, 50)]
            else:
                data[at] = rng.randrange(256)
            data = data or bytearray(b"x")
        with shared_daemon.socket() as connection:
            _send_all(connection, bytes(data))
    assert shared_daemon.process.poll() is None
    assert wait_for(lambda: _answers(shared_daemon)), "once the conversations that were given up have ended"
    assert _resident_mb(shared_daemon) - before < 20


def _anything(rng: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None, True, -1, 0, 3, 2**63, 10**40, -0.5, 1e308, "", "x" * 200, "a" * 64, "../../etc/passwd", "\x1b[2J\0",
    ]  # fmt: skip
    if depth < 3:
        kinds += [
            [_anything(rng, depth + 1) for _ in range(rng.randrange(4))],
            {str(_anything(rng, 3))[:20]: _anything(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(kinds)


def test_every_verb_with_every_sort_of_field_is_answered(host: Host) -> None:
    rng = random.Random(35)
    names = [
        "action", "owner", "session", "files", "sha256", "size", "offset", "crc32", "job", "job_id", "seconds",
        "candidate", "reference", "inputs", "expected", "tolerance", "threads", "settings", "models", "rounds",
        "visit_ms", "visit_runs", "seed", "cap_seconds", "runtime", "weights", "model_bytes", "protocol_min",
    ]  # fmt: skip
    host.held()
    kinds = set()
    for number in range(400):
        verb = VERBS[number % len(VERBS)]
        fields = {name: _anything(rng) for name in rng.sample(names, rng.randint(0, 12))}
        fields |= {"token": host.token} if rng.random() < 0.8 else {}
        if verb == "submit":
            fields |= {"job": rng.choice(["measure", "sweep"]), "job_id": f"{number:016x}"}
        if verb == "wait":
            fields["seconds"] = 0
        if fields.get("action") in ("release", "break"):
            del fields["action"]
        answer = host.ask(rng.randbytes(rng.randrange(100)), verb=verb, **fields).header
        if not answer["ok"]:
            kinds.add(answer["kind"])
            assert len(json.dumps(answer)) < HEADER_MAX
    assert kinds <= set(KINDS)
    assert {"bad_request", "device_locked"} & kinds
    assert host.ask(verb="status").header["ok"] is True
