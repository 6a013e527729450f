"""A board as SSH would reach it, but for SSH: a station whose bridge to a daemon is a process that a test can kill."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talk import ENVIRONMENT, agent_command

from rlprune_agent.protocol import Channel, Message
from rlprune_edge.device.link import Link
from rlprune_edge.device.profiles import Limits, Profile
from rlprune_edge.device.station import Station

# What else runs on the machine of these tests is no reason to refuse a figure.
# More than a profile may allow: the planted board's clock is this machine's, which others take for a moment.
CALM = Limits(load_percent=6400).model_copy(update={"max_clock_loss": 1000.0})
SHED = Profile(format=1, name="shed", title="the board in the shed", source="board", threads=1, limits=CALM)


class Lossy:
    """A conversation that breaks just before the answer to one verb is heard: the agent has done what it was asked."""

    def __init__(self, channel: Channel, verb: str | None, broken: Callable[[], None]) -> None:
        self._channel = channel
        self._verb = verb
        self._broken = broken
        self._asked: Any = None

    @property
    def noise(self) -> str:
        return self._channel.noise

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = 15.0) -> None:
        self._asked = header["verb"]
        self._channel.send(header, body, seconds)

    def receive(self, seconds: float | None) -> Message | None:
        message = self._channel.receive(seconds)
        if self._asked != self._verb or (message and message.header.get("alive")):
            return message
        self._broken()
        return None


class Bridged(Station):
    """A station of that kind; `home` is the daemon's."""

    _reconnect_seconds = 20.0
    silence_seconds = 15.0
    bridge: subprocess.Popen[bytes]

    def __init__(self, home: Path, *, words: tuple[str, ...] = (), profile: Profile = SHED, **settings: Any) -> None:
        super().__init__(profile, **settings)
        self._command = agent_command("stdio", "--home", str(home), "--idle-seconds", "1", *words)
        self.connections = 0
        self.lose: str | None = None
        """the verb whose next answer is lost"""

    def _where(self) -> str:
        return "the shed"

    def _connect(self) -> Link:
        self.connections += 1
        self.bridge = bridge = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        assert bridge.stdin is not None
        assert bridge.stdout is not None
        pipes = [bridge.stdin, bridge.stdout]

        def close() -> None:
            for pipe in pipes:
                pipe.close()
            bridge.wait(20)

        channel = Channel(pipes[1].fileno(), pipes[0].fileno())
        conversation = Lossy(channel, self.lose, bridge.kill)
        self.lose = None
        return Link(conversation, close=close, last_words=lambda: "", silence_seconds=self.silence_seconds)
