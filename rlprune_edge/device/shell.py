"""Run our own small program on a board before it has an agent, and read what it answers.

The command is one of three constants; the program, its parameters and the files it needs travel over standard input, so
that nothing anybody typed is ever part of a shell's command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, LiteralString, Protocol

from rlprune_agent.protocol import printable
from rlprune_edge.errors import DeviceError, UserError

Who = Literal["login", "root", "agent", "agent, from root"]
Tell = Callable[[str], None]

_PYTHON: LiteralString = (
    "python3 -I -c 'import sys; i = sys.stdin.buffer; "
    'exec(compile(i.read(int(i.readline())), "rlprune-edge", "exec"), {"__name__": "__main__"})\''
)
COMMANDS: dict[Who, LiteralString] = {
    "login": _PYTHON,
    "root": "sudo -n " + _PYTHON,
    "agent": "sudo -n runuser -u rlprune -- " + _PYTHON,
    "agent, from root": "runuser -u rlprune -- " + _PYTHON,
}
"""who the program runs as, by name"""


_SAID = 500
"""characters of one line of progress, at most"""
_WORDS = 1500


class Finished(Protocol):
    """What is left of a command that has ended."""

    @property
    def status(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...


class Shell(Protocol):
    """Somewhere to run commands: a board at the other end of SSH, or this machine."""

    def run(
        self,
        command: LiteralString,
        *,
        stdin: bytes = b"",
        seconds: float,
        on_output: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run a command to its end. Raises `DeviceError` where it cannot be reached or takes longer than `seconds`."""


@dataclass(frozen=True)
class _Ended:
    status: int
    stdout: bytes
    stderr: bytes


class LocalShell:
    """This machine, with an environment of one's own."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(os.environ if environment is None else environment)

    def run(
        self,
        command: LiteralString,
        *,
        stdin: bytes = b"",
        seconds: float,
        on_output: Callable[[str], None] | None = None,
    ) -> Finished:
        """See `Shell.run`."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            out, error = process.communicate(stdin)
        finally:
            timer.cancel()
        if late.is_set():
            raise DeviceError("connection_lost", f"a command did not finish within {seconds:.0f} s")
        if on_output:
            for line in out.decode("utf-8", "replace").splitlines():
                on_output(line)
        return _Ended(process.returncode, out, error)


def _passing_on(tell: Tell) -> Tell:
    """Takes lines of output; passes on what the program says in them."""

    def take(line: str) -> None:
        said = answer_in(line).get("say")
        if isinstance(said, str):
            tell(printable(said)[:_SAID])

    return take


def answer_in(line: str) -> dict[str, Any]:
    """The JSON object that a line is, else an empty one: a board's shell may say things of its own."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def do(
    shell: Shell,
    action: str,
    params: Mapping[str, Any] | None = None,
    *,
    files_to_send: Sequence[Path] = (),
    names: Sequence[str] | None = None,
    program: Literal["bootstrap.py", "shelf.py"] = "bootstrap.py",
    who: Who = "login",
    seconds: float,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Have the board do one action of a program in `rlprune_agent/`; what it found.

    `names` are what the files are called there, if not as here.

    Raises `UserError` where whoever asked has to change something, `DeviceError` where the board could not do it.
    """
    source = (files("rlprune_agent") / program).read_bytes()
    contents = [path.read_bytes() for path in files_to_send]
    entries = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in zip(names or [path.name for path in files_to_send], contents, strict=True)
    ]
    line = json.dumps({**(params or {}), "action": action, "files": entries}).encode()
    stdin = b"%d\n%s%s\n%s" % (len(source), source, line, b"".join(contents))
    done = shell.run(COMMANDS[who], stdin=stdin, seconds=seconds, on_output=_passing_on(tell))
    for text in reversed(done.stdout.decode("utf-8", "replace").splitlines()):
        answer = answer_in(text)
        if isinstance(answer.get("done"), dict):
            return dict(answer["done"])
        if isinstance(answer.get("failed"), str):
            words = printable(answer["failed"])[:_WORDS]
            raise UserError(words) if answer.get("kind") == "user" else DeviceError("setup_failed", words)
    words = printable(done.stderr.decode("utf-8", "replace")).strip()[-_WORDS:]
    raise DeviceError("setup_failed", _no_answer(done.status, words, who))


def _no_answer(status: int, words: str, who: Who) -> str:
    if who != "login" and "sudo" in words:
        return (
            f"root is needed for this and sudo wants a password: {words}. Log in as root for it, or allow this user "
            "sudo without a password while it lasts, or leave --system away"
        )
    if status == 127:
        return (
            f"there is no python3 on the board ({words}). Install it, e.g. with: sudo apt install python3 python3-venv"
        )
    return f"the board did not answer as expected (exit status {status}): {words or 'it said nothing'}"
