"""The agent's command line: `serve` (the daemon), `stdio` (talk to a host), `check`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import rlprune_agent
from rlprune_agent import bridge, durable, sockets, vitals
from rlprune_agent.agent import Agent
from rlprune_agent.child import claim_stdout
from rlprune_agent.daemon import alone, serve
from rlprune_agent.lease import LEASE_SECONDS
from rlprune_agent.protocol import PROTOCOL_MAX, Failure, FrameReader, encode
from rlprune_agent.supervise import run_child

HOME = "~/.local/share/rlprune-edge"

_IDLE_SECONDS = 600.0
_MB = 10**6
_MODULES = (
    *("agent", "bridge", "child", "compiled", "daemon", "jobs", "lease", "limits", "measure", "server", "store"),
    *("sweep", "upgrade"),
)


def _stdio(options: argparse.Namespace) -> int:
    private = claim_stdout()
    try:
        if options.alone:
            agent = Agent(
                options.home,
                root=options.root,
                quota_bytes=options.quota_mb * _MB,
                lease_seconds=options.lease_seconds,
                alone=True,
            )
            return alone(agent, 0, private)
        arguments = ["--root", str(options.root), "--quota-mb", str(options.quota_mb)]
        arguments += ["--lease-seconds", str(options.lease_seconds), "--idle-seconds", str(options.idle_seconds)]
        connection = bridge.connected(options.home, options.socket or sockets.SYSTEM_SOCKET, arguments)
        bridge.copy(connection, 0, private)
    except Failure as failure:
        return _complain(failure)
    except OSError as error:  # a card that turned read-only
        return _complain(durable.disk_failure(error, options.home))
    return 0


def _complain(failure: Failure) -> int:
    """Say what happened where an operator may look; the exit status."""
    sys.stderr.write(f"rlprune-edge-agent: {failure.message}\n")
    return 1


def _check(root: Path) -> int:
    report: dict[str, Any] = {
        "agent": rlprune_agent.__version__,
        "facts": vitals.facts(root),
        "vitals": vitals.read(root),
    }
    try:
        report["runtime"] = run_child({"kind": "probe"}, seconds=60.0).header["result"]
    except Failure as failure:
        report["runtime_error"] = failure.message
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if "runtime_error" in report else 0


def _self_test() -> int:
    """Can this agent work here at all? Everything but the runtime, which an upgrade does not touch."""
    for name in _MODULES:
        importlib.import_module(f"rlprune_agent.{name}")
    reader = FrameReader()
    reader.feed(b"".join(encode({"verb": "hello"}, b"body")))
    message = reader.next()
    if message is None or message.body != b"body":
        return 1
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder), quota_bytes=_MB, alone=True)
        granted = agent.acquire("self-test", "self-test")["granted"]
        agent.end()
    sys.stdout.write(json.dumps({"agent": rlprune_agent.__version__, "protocol_max": PROTOCOL_MAX}) + "\n")
    return 0 if granted else 1


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlprune-edge-agent", description="Measure models for rlprune-edge on this device."
    )
    parser.add_argument("--version", action="version", version=rlprune_agent.__version__)
    parser.add_argument("--self-test", action="store_true", help="try whether this agent can work here, and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    daemon = commands.add_parser("serve", help="be the daemon: listen on a Unix socket for hosts")
    stdio = commands.add_parser("stdio", help="talk to a host over standard input and output")
    stdio.add_argument("--alone", action="store_true", help="serve this one conversation without a daemon")
    check = commands.add_parser("check", help="print what this device is and whether onnxruntime works, as JSON")
    home = Path(HOME).expanduser()
    for command in (daemon, stdio):
        command.add_argument("--home", type=_absolute, default=home, help=f"the agent's folder (default: {HOME})")
        command.add_argument(
            "--socket", type=Path, help="where the daemon listens (default: run/agent.sock below home)"
        )
        command.add_argument("--quota-mb", type=int, default=2000, help="MB of files to keep (default: 2000)")
        command.add_argument(
            "--lease-seconds", type=float, default=LEASE_SECONDS, help="a silent host loses the device after this"
        )
    daemon.add_argument("--idle-seconds", type=float, help="end when there was nothing to do for so long")
    stdio.add_argument(
        "--idle-seconds", type=float, default=_IDLE_SECONDS, help="the same, for a daemon that has to be started"
    )
    for command in (daemon, stdio, check):
        command.add_argument("--root", type=Path, default=Path("/"), help="where /proc and /sys are found (default: /)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the agent; ends the process with its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.self_test:
        sys.exit(_self_test())
    if options.command == "serve":
        sys.exit(
            serve(
                options.home,
                root=options.root,
                quota_bytes=options.quota_mb * _MB,
                lease_seconds=options.lease_seconds,
                idle_seconds=options.idle_seconds,
                path=options.socket,
            )
        )
    if options.command == "stdio":
        sys.exit(_stdio(options))
    if options.command == "check":
        sys.exit(_check(options.root))
    parser.print_help()
    sys.exit(2)


if __name__ == "__main__":
    main()
