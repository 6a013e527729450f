"""A board at the other end of SSH: the same agent that measures on this machine, reached by one constant command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

from rlprune_agent.protocol import SILENCE_SECONDS, Failure, Message, printable
from rlprune_edge.device import boards
from rlprune_edge.device.boards import BoardFile
from rlprune_edge.device.link import Conversation, Link
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.ssh import SshSession, SshTarget
from rlprune_edge.device.station import Station
from rlprune_edge.errors import DeviceError

COMMAND: LiteralString = ".local/share/rlprune-edge/bin/rlprune-edge-agent stdio"

_ABSENT = ("not found", "No such file")


def target(board: BoardFile) -> SshTarget:
    """Where the board is, as SSH wants to know it."""
    identity, config = (Path(path) if path else None for path in (board.identity, board.ssh_config))
    return SshTarget(board.host, board.port, identity, config)


def connect(board: BoardFile) -> SshSession:
    """Log in to the board; its host key has to be known. Raises `DeviceError`, `UserError`."""
    return SshSession.connect(target(board), known_hosts=boards.known_hosts())


class _FirstWords:
    """A conversation whose first silence is explained: a board without an agent gets none by being asked again."""

    def __init__(self, conversation: Conversation, last_words: Callable[[], str], name: str) -> None:
        self._conversation, self._last_words, self._name = conversation, last_words, name
        self._answered = False

    @property
    def noise(self) -> str:
        return self._conversation.noise

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = SILENCE_SECONDS) -> None:
        try:
            self._conversation.send(header, body, seconds)
        except Failure:
            self._explain()
            raise

    def receive(self, seconds: float | None) -> Message | None:
        message = self._conversation.receive(seconds)
        if message is None:
            self._explain()
        self._answered = True
        return message

    def _explain(self) -> None:
        words = "" if self._answered else self._last_words()
        if "rlprune-edge-agent" in words and any(sign in words for sign in _ABSENT):
            how = f"put one there: rlprune-edge device setup {self._name}"
            raise Failure("runtime_missing", f"there is no agent on it yet; {how}")


class Board(Station):
    """Measures on one of the user's boards. A context manager; connected when first needed."""

    def __init__(
        self,
        name: str,
        board: BoardFile,
        profile: Profile,
        *,
        cache_dir: Path,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        calibration = board.calibration if threads is None else board.calibration_for(threads)
        super().__init__(
            # Under its own name: two boards of one kind are two devices, in every record and every file.
            profile.model_copy(update={"name": name}),
            cache_dir=cache_dir,
            threads=calibration.threads if calibration and threads is None else threads,
            golden_ms=calibration.golden_ms if calibration else None,
            clock_ns=calibration.clock_ns if calibration else None,
            **settings,
        )
        self.board = board

    def _where(self) -> str:
        return f"the board '{self.profile.name}'"

    def _connect(self) -> Link:
        session = connect(self.board)
        try:
            conversation, end, last_words = session.converse(COMMAND)
        except BaseException:
            session.close()
            raise

        def close() -> None:
            end()
            session.close()

        return Link(
            _FirstWords(conversation, last_words, self.profile.name),
            close=close,
            last_words=last_words,
            patience=self.profile.patience,
        )

    def user(self) -> str | None:
        """Who has the board at the moment; `None` if it is free. Raises `DeviceError`."""
        lease = self.status().get("lease")
        holder = lease.get("holder") if isinstance(lease, dict) else None
        return printable(str(holder.get("owner")))[:200] if isinstance(holder, dict) else None

    def check_free(self) -> None:
        """Raises `DeviceError` if somebody has the board. An agent that does not answer is nobody's."""
        try:
            user = self.user()
        except DeviceError:
            return
        if user is not None:
            name = self.profile.name
            raise DeviceError(
                "device_locked",
                f"'{name}' is in use by {user}. Wait, or take it: rlprune-edge device release {name} --force",
            )
