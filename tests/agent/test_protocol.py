"""Framing: what goes in comes out, and anything else is refused in words, with bounded memory."""

from __future__ import annotations

import json
import os
import random
import struct

import pytest

from rlprune_agent.protocol import (
    FRAME_BODY_MAX,
    HEADER_MAX,
    MAGIC,
    NOISE_MAX,
    PROTOCOL_MAX,
    Channel,
    Failure,
    FrameReader,
    encode,
    negotiate,
    printable,
)


def _frame(header: bytes, body: bytes = b"", version: int = 1, header_size: int | None = None) -> bytes:
    size = len(header) if header_size is None else header_size
    return struct.pack(">8sBBII", MAGIC, version, 0, size, len(body)) + header + body


def _refusal(data: bytes) -> Failure:
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(Failure) as caught:
        reader.next()
    return caught.value


def test_a_message_survives_any_cutting_into_portions() -> None:
    body = random.Random(1).randbytes(2 * FRAME_BODY_MAX + 17)
    stream = b"".join(encode({"verb": "put", "n": 7}, body)) + b"".join(encode({"verb": "hello"}))
    reader, rest, got = FrameReader(), stream, []
    cut = random.Random(2)
    while rest:
        size = cut.randint(1, 300_000)
        reader.feed(rest[:size])
        rest = rest[size:]
        while (message := reader.next()) is not None:
            got.append(message)
    assert [m.header for m in got] == [{"verb": "put", "n": 7}, {"verb": "hello"}]
    assert got[0].body == body


def test_frames_stay_below_their_limit() -> None:
    sizes = [len(frame) for frame in encode({"a": 1}, bytes(3 * FRAME_BODY_MAX))]
    assert len(sizes) == 3
    assert max(sizes) <= FRAME_BODY_MAX + HEADER_MAX


def test_a_greeting_before_the_first_message_is_skipped_and_kept() -> None:
    reader = FrameReader()
    for byte in b"Welcome to Raspberry Pi OS\n\x93RLPR" + b"".join(encode({"id": 1})):
        reader.feed(bytes([byte]))
    message = reader.next()
    assert message is not None
    assert message.header == {"id": 1}
    assert "Welcome to Raspberry Pi OS" in reader.noise


def test_too_much_noise_is_a_version_mismatch_that_shows_the_text() -> None:
    failure = _refusal(b"bash: python3: command not found\n" * (NOISE_MAX // 20))
    assert failure.kind == "version_mismatch"
    assert "command not found" in failure.message


def test_text_in_the_middle_of_the_conversation_is_refused() -> None:
    reader = FrameReader()
    reader.feed(b"".join(encode({"id": 1})) + b"Segmentation fault, core dumped")
    assert reader.next() is not None
    with pytest.raises(Failure, match="Segmentation fault"):
        reader.next()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (_frame(b"{}", header_size=HEADER_MAX + 1), "bad_request"),
        (_frame(b"{}", header_size=2**32 - 1), "bad_request"),
        (_frame(b"[1, 2]"), "bad_request"),
        (_frame(b'{"a": NaN}'), "bad_request"),
        (_frame(b"\xff\xfe"), "bad_request"),
        (_frame(b"[" * 60_000), "bad_request"),
        (_frame(b"{}", version=2), "version_mismatch"),
    ],
)
def test_a_frame_out_of_order_is_refused(data: bytes, kind: str) -> None:
    assert _refusal(data).kind == kind


def test_oversize_and_nan_are_not_sent_either() -> None:
    with pytest.raises(ValueError, match="header"):
        list(encode({"a": "x" * HEADER_MAX}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(encode({"a": float("nan")}))


def test_random_bytes_never_raise_anything_but_a_failure() -> None:
    rng = random.Random(3)
    outcomes = set()
    for _ in range(300):
        data = bytearray(b"".join(encode({"verb": "have", "files": []}, b"abc")))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        reader = FrameReader()
        reader.feed(bytes(data))
        try:
            outcomes.add("message" if reader.next() else "waiting")
        except Failure as failure:
            outcomes.add(failure.kind)
    assert {"bad_request", "waiting"} <= outcomes


def test_versions_meet_at_the_newest_that_both_speak() -> None:
    assert negotiate(1, PROTOCOL_MAX + 5) == PROTOCOL_MAX
    with pytest.raises(Failure) as caught:
        negotiate(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2)
    assert caught.value.kind == "version_mismatch"


def test_a_failure_outside_the_closed_list_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        Failure("it_broke", "somehow")
    assert json.loads(json.dumps(Failure("oom", "too big", phase="candidate").header()))["phase"] == "candidate"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\ufffd[2Jb\nc"


def test_a_peer_that_does_not_read_cannot_hold_us_for_ever() -> None:
    read_fd, write_fd = os.pipe()
    try:
        channel = Channel(read_fd, write_fd)
        with pytest.raises(Failure, match="took no bytes") as caught:
            channel.send({"id": 1}, bytes(FRAME_BODY_MAX), seconds=0.05)
        assert caught.value.kind == "connection_lost"
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_silent_peer_ends_the_wait() -> None:
    read_fd, write_fd = os.pipe()
    try:
        with pytest.raises(Failure, match="no answer") as caught:
            Channel(read_fd, write_fd).receive(0.05)
        assert caught.value.kind == "connection_lost"
    finally:
        os.close(read_fd)
        os.close(write_fd)
