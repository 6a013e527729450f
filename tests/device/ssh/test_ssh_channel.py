"""A conversation over SSH on a link that breaks, stalls and crawls, with a peer that chatters, hangs and dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device.ssh.board import LinkFault, LoopbackBoard, wait_for
from device.ssh.conftest import QUICK

import rlprune_agent
from rlprune_agent.protocol import NOISE_MAX, Failure
from rlprune_edge.device.link import Link, LinkBroken
from rlprune_edge.device.ssh import Deadlines, SshSession
from rlprune_edge.device.ssh_channel import SshChannel

_AGENTS = Path(rlprune_agent.__file__).parent.parent
_MEGABYTE = 1_000_000

_PEER = f"""\
#!{sys.executable}
import os, sys, time
sys.path.insert(0, {str(_AGENTS)!r})
from rlprune_agent.protocol import Channel

channel = Channel(0, 1)
while True:
    message = channel.receive(None)
    if message is None:
        break
    ask = message.header
    if ask["do"] == "echo":
        channel.send({{"id": ask["id"]}}, message.body)
    elif ask["do"] == "where":  # how much of an upload is here
        size = os.path.getsize("upload") if os.path.exists("upload") else 0
        channel.send({{"id": ask["id"], "offset": size, "pid": os.getpid()}})
    elif ask["do"] == "keep":
        with open("upload", "ab") as file:
            file.write(message.body)
        channel.send({{"id": ask["id"], "offset": os.path.getsize("upload")}})
    elif ask["do"] == "chatter":
        sys.stderr.write("chatter " * 500_000 + "the last of it\\n")
        channel.send({{"id": ask["id"]}})
    elif ask["do"] == "die":
        sys.stderr.write("a reason \\x1b[2Jto die\\n")
        os._exit(7)
"""


@pytest.fixture
def home(board: LoopbackBoard) -> Iterator[Path]:
    peer = board.home / "peer"
    peer.unlink(missing_ok=True)  # one of the last test may still be running: its file cannot be written to
    peer.write_text(_PEER)
    peer.chmod(0o755)
    yield board.home
    for name in (".bashrc", "upload"):
        (board.home / name).unlink(missing_ok=True)


Connect = Callable[..., SshSession]


@pytest.fixture
def connect(board: LoopbackBoard, home: Path) -> Iterator[Connect]:  # noqa: ARG001 - the peer has to be there
    """Sessions, straight or over a link; all are closed in the end."""
    sessions = []

    def make(link: LinkFault | None = None, deadlines: Deadlines = QUICK) -> SshSession:
        port = link.port if link else board.port
        known = board.known_hosts(board.folder / f"known-{port}", port=port)
        sessions.append(SshSession.connect(board.target(port=port), known_hosts=known, deadlines=deadlines))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def _ask(channel: SshChannel, body: bytes = b"", seconds: float = 20, **header: object) -> dict[str, object]:
    channel.send({"id": 1, **header}, body, seconds)
    answer = channel.receive(seconds)
    assert answer is not None, "the peer ended"
    return answer.header


def _lost(channel: SshChannel, body: bytes = b"", seconds: float = 20, **header: object) -> str:
    with pytest.raises(Failure) as caught:
        _ask(channel, body, seconds, **header)
    assert caught.value.kind == "connection_lost"
    return caught.value.message


def _upload(channel: SshChannel, data: bytes, part: int = 250_000) -> None:
    """Send what the peer does not have, portion by portion."""
    offset = _ask(channel, do="where")["offset"]
    while offset != len(data):
        assert isinstance(offset, int)
        offset = _ask(channel, data[offset : offset + part], do="keep")["offset"]


def test_messages_go_both_ways_and_the_peer_ends_with_us(board: LoopbackBoard, connect: Connect) -> None:
    channel, close, last_words = connect().converse("./peer")
    body = bytes(range(256)) * 12_000  # three frames
    channel.send({"id": 1, "do": "echo"}, body)
    answer = channel.receive(20)
    assert answer is not None
    assert (answer.header, answer.body == body, channel.noise) == ({"id": 1}, True, "")
    pid = _ask(channel, do="where")["pid"]
    assert pid in board.processes()
    close()
    wait_for(lambda: pid not in board.processes(), "the peer ending")
    assert last_words() == ""


def test_several_conversations_share_a_connection(connect: Connect) -> None:
    session = connect()
    first, close, _ = session.converse("./peer")
    second, _, _ = session.converse("./peer")
    assert _ask(first, do="where")["pid"] != _ask(second, do="where")["pid"]
    close()
    assert _ask(second, do="echo") == {"id": 1}


def test_what_a_login_shell_prints_first_is_skipped_and_kept(home: Path, connect: Connect) -> None:
    """F28: a greeting in .bashrc, with a control sequence in it."""
    (home / ".bashrc").write_text("printf 'Welcome to pi4\\033[2J\\n'\n")
    channel, _, _ = connect().converse("./peer")
    assert _ask(channel, do="echo") == {"id": 1}
    assert channel.noise == "Welcome to pi4\ufffd[2J"


def test_noise_without_an_agent_is_shown(home: Path, connect: Connect) -> None:
    (home / ".bashrc").write_text("echo This account is closed; exit 1\n")
    channel, close, last_words = connect().converse("./peer")
    link = Link(channel, close=close, last_words=last_words)
    with pytest.raises(LinkBroken, match="exit status 1"):
        link.request({"verb": "hello"}, seconds=20)
    assert channel.noise == "This account is closed"


def test_endless_noise_is_cut_off_and_shown(home: Path, connect: Connect) -> None:
    (home / ".bashrc").write_text("yes lecture\n")
    channel, _, _ = connect().converse("./peer")
    with pytest.raises(Failure, match="not an rlprune-edge agent; it says: lecture\nlecture") as caught:
        channel.receive(20)
    assert caught.value.kind == "version_mismatch"
    assert len(caught.value.message) < NOISE_MAX + 200


def test_a_command_that_is_not_there_says_so(connect: Connect) -> None:
    channel, _, last_words = connect().converse("./no-such-agent stdio")
    assert channel.receive(20) is None
    assert "not found" in last_words()


def test_a_peer_that_dies_leaves_its_reason(connect: Connect) -> None:
    channel, _, last_words = connect().converse("./peer")
    channel.send({"id": 1, "do": "die"})
    assert channel.receive(20) is None
    assert last_words() == "a reason \ufffd[2Jto die"
    assert _lost(channel, do="echo") == "the other side is gone"


def test_a_peer_that_ends_in_silence_leaves_its_status(connect: Connect) -> None:
    channel, _, last_words = connect().converse("exit 9")
    assert channel.receive(20) is None
    assert last_words() == "it ended with exit status 9"


def test_four_megabytes_on_standard_error_do_not_get_in_the_way(connect: Connect) -> None:
    channel, _, last_words = connect().converse("./peer")
    assert _ask(channel, do="chatter") == {"id": 1}
    assert _ask(channel, do="echo") == {"id": 1}
    assert last_words().endswith("the last of it")
    assert len(last_words()) <= 4096


def test_an_upload_goes_on_where_the_link_broke(home: Path, connect: Connect, link: LinkFault) -> None:
    """F1: RST at 40 % of the upload; the rest is sent, not the whole."""
    data = os.urandom(2 * _MEGABYTE)
    channel, _, _ = connect(link).converse("./peer")
    link.reset_after(int(0.4 * len(data)))
    with pytest.raises(Failure) as caught:
        _upload(channel, data)
    assert caught.value.kind == "connection_lost"
    assert caught.value.message.startswith("the connection broke: ")
    before = link.sent
    channel, _, _ = connect(link).converse("./peer")
    _upload(channel, data)
    assert (home / "upload").read_bytes() == data
    assert link.connections == 2
    assert link.sent - before < 0.9 * len(data)


def test_a_link_that_stalls_during_an_upload_is_noticed(connect: Connect, link: LinkFault) -> None:
    """F2: nothing is carried any more, and no end is told."""
    channel, _, _ = connect(link).converse("./peer")
    link.stall_after(_MEGABYTE)
    start = time.monotonic()
    assert _lost(channel, os.urandom(40 * _MEGABYTE), 30, do="echo") == "the connection broke: no sign of life for 1 s"
    assert time.monotonic() - start < 20
    link.resume()


def test_a_peer_that_is_stopped_during_an_upload_is_noticed(connect: Connect, board: LoopbackBoard) -> None:
    """F2: sshd lives and answers, the agent takes nothing: its window fills and stays full."""
    channel, _, _ = connect().converse("./peer")
    pid = _ask(channel, do="where")["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert _lost(channel, os.urandom(40 * _MEGABYTE), 1, do="echo") == "the other side took no bytes for 1 s"
    finally:
        os.kill(pid, signal.SIGKILL)
    assert pid not in board.processes() or channel.receive(20) is None


def test_a_dead_peer_is_noticed_while_waiting(connect: Connect, link: LinkFault) -> None:
    """Nobody sends anything: only that questions for life stay without an answer gives the peer away."""
    channel, _, _ = connect(link).converse("./peer")
    assert _ask(channel, do="echo") == {"id": 1}
    link.stall()
    with pytest.raises(Failure, match="no sign of life for 1 s"):
        channel.receive(60)
    link.resume()


def test_a_quiet_peer_and_a_slow_link_are_not_dead(connect: Connect, link: LinkFault) -> None:
    channel, _, _ = connect(link).converse("./peer")
    with pytest.raises(Failure, match="no answer for 2 s"):
        channel.receive(2.0)
    link.throttle(200_000)  # two and a half seconds for the upload, and nothing comes back meanwhile
    assert _ask(channel, os.urandom(_MEGABYTE // 2), do="keep")["offset"] == _MEGABYTE // 2
    link.throttle(None)
    link.delay(0.05)
    assert _ask(channel, do="echo") == {"id": 1}


def test_a_board_without_power_is_noticed_at_once(connect: Connect, link: LinkFault) -> None:
    channel, close, last_words = connect(link).converse("./peer")
    threading.Timer(0.2, link.shut).start()
    with pytest.raises(Failure, match="the connection broke") as caught:
        channel.receive(60)
    assert caught.value.kind == "connection_lost"
    assert last_words() == ""
    close()
    link.reopen()


def test_a_server_that_is_killed_is_noticed(tmp_path: Path) -> None:
    with LoopbackBoard(tmp_path / "b") as board:
        with SshSession.connect(board.target(), known_hosts=board.known_hosts()) as session:
            channel, _, _ = session.converse("cat")
            board.stop()
            with pytest.raises(Failure) as caught:
                channel.receive(60)
            assert caught.value.kind == "connection_lost"
        board.start()
        with SshSession.connect(board.target(), known_hosts=board.known_hosts()) as session:
            assert session.run("echo again", seconds=20).stdout == b"again\n"


def test_nothing_is_left_of_a_stalled_session(connect: Connect, link: LinkFault) -> None:
    before = set(threading.enumerate())
    session = connect(link)
    _, close, _ = session.converse("./peer")
    link.stall()
    close()
    session.close()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in left if "ssh" in name or "paramiko" in name.lower()]
    link.resume()
