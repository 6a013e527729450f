"""When a peer counts as dead: on a real socket, with a clock of our own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from rlprune_edge.device.ssh_wire import Wire, dial


class Line:
    """A watched end (15 s) and the peer's end of a connection, whose time only passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("rlprune_edge.device.ssh_wire.time.monotonic", lambda: self.now)
        near, self.peer = socket.socketpair()
        near.settimeout(0.001)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.wire = Wire(near)
        self.wire.watch(15)

    def quiet(self, seconds: int) -> bytes | None:
        """What comes within so many seconds of looking every half second; `None` for nothing."""
        for _ in range(2 * seconds):
            self.now += 0.5
            try:
                return self.wire.recv(100)
            except TimeoutError:
                continue
        return None

    def fill(self) -> None:
        """Send until the peer takes no more."""
        with contextlib.suppress(TimeoutError):
            while self.wire.send(bytes(2000)):
                pass


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    line = Line(monkeypatch)
    yield line
    line.wire.close()
    line.peer.close()


def test_silence_ends_the_line_after_its_time(line: Line) -> None:
    assert line.quiet(15) is None
    assert line.wire.verdict is None
    assert line.quiet(1) == b""
    assert line.wire.verdict == "no sign of life for 15 s"


def test_a_word_in_time_starts_the_count_again(line: Line) -> None:
    assert line.quiet(14) is None
    line.peer.sendall(b"here")
    assert line.quiet(1) == b"here"
    assert line.quiet(15) is None


def test_a_host_that_slept_has_not_waited(line: Line) -> None:
    line.now += 3600
    assert line.quiet(13) is None
    line.peer.sendall(b"still here")
    assert line.quiet(1) == b"still here"


def test_data_that_is_taken_is_a_sign_of_life_and_a_question_is_not(line: Line) -> None:
    assert line.quiet(14) is None
    assert line.wire.send(b"are you there?") == 14
    assert line.quiet(2) == b""


def test_a_peer_that_takes_data_lives_until_it_takes_no_more(line: Line) -> None:
    assert line.quiet(14) is None
    line.fill()  # the peer's system has taken some of it
    assert line.quiet(14) is None
    line.peer.recv(1_000_000)
    line.fill()
    for _ in range(30):
        line.now += 0.5
        with pytest.raises(TimeoutError):
            line.wire.send(bytes(2000))
    line.now += 0.5
    with pytest.raises(ConnectionError, match="no sign of life for 15 s"):
        line.wire.send(bytes(2000))


def test_a_name_and_a_port_are_dialled_or_an_error_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stream = dial("localhost", port, 5)
        stream.close()
    with pytest.raises(ConnectionRefusedError):
        dial("127.0.0.1", port, 5)
    with pytest.raises(socket.gaierror):
        dial("no-such-board.invalid", 22, 5)
