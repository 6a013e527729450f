"""The agent itself at the far end of an SSH connection."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from device.ssh.board import LoopbackBoard

import rlprune_agent
from rlprune_edge.device.ssh import SshSession
from rlprune_edge.device.ssh_channel import SshChannel


@pytest.fixture
def agent(board: LoopbackBoard) -> Iterator[SshChannel]:
    launcher = board.home / "agent"
    launcher.write_text(
        f'#!/bin/sh\nPYTHONPATH="{Path(rlprune_agent.__file__).parent.parent}" '
        f'exec "{sys.executable}" -m rlprune_agent "$@"\n'
    )
    launcher.chmod(0o755)
    with SshSession.connect(board.target(), known_hosts=board.known_hosts()) as session:
        channel, close, last_words = session.converse("./agent stdio --alone --home agent-home")
        yield channel
        close()
        assert last_words() == ""


def _ask(channel: SshChannel, body: bytes = b"", **header: Any) -> dict[str, Any]:
    channel.send({"id": 1, **header}, body)
    while True:
        answer = channel.receive(90)
        assert answer is not None, "the agent ended"
        if not answer.header.get("alive"):
            return answer.header


def test_hello_and_a_model_over_ssh(agent: SshChannel, board: LoopbackBoard, dense: Callable[[int], bytes]) -> None:
    hello = _ask(agent, verb="hello", protocol_min=1, protocol_max=1)
    assert hello["agent"] == rlprune_agent.__version__
    assert hello["facts"]["online_cpus"] >= 1
    token = _ask(agent, verb="lease", action="acquire", owner="test")["token"]
    model = dense(4096)  # 1.2 MB: more than one frame
    sha256, half = hashlib.sha256(model).hexdigest(), len(model) // 2
    for offset, part in ((0, model[:half]), (half, model[half:])):
        fields = {"token": token, "sha256": sha256, "size": len(model), "offset": offset, "crc32": zlib.crc32(part)}
        reply = _ask(agent, part, verb="put", **fields)
    assert (reply["ok"], reply["whole"]) == (True, True)
    (kept,) = [path for path in (board.home / "agent-home").rglob("*") if path.is_file() and sha256 in path.name]
    assert kept.read_bytes() == model
