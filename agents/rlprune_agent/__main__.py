"""The agent's command line: `stdio` (talk to a host), `child` (one job, started by the agent), `check`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import rlprune_agent
from rlprune_agent import vitals
from rlprune_agent.protocol import Channel, Failure
from rlprune_agent.server import Server
from rlprune_agent.store import Store
from rlprune_agent.supervise import become_child, run_child


def _claim_stdout() -> int:
    """A private descriptor for the protocol; from now on whatever a library prints to descriptor 1 goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def _stdio(cache: Path, quota_mb: int, root: Path) -> int:
    channel = Channel(0, _claim_stdout())
    try:
        Server(channel, Store(cache, quota_mb * 10**6), root).serve()
    except Failure as failure:  # not to be understood any more, or gone: say so where an operator may look, and end
        sys.stderr.write(f"rlprune-edge-agent: {failure.message}\n")
        return 1
    return 0


def _child(parent: int) -> int:
    become_child(parent)
    channel = Channel(0, _claim_stdout())
    message = channel.receive(None)
    if message is None:
        return 1

    def tell(header: dict[str, Any], body: bytes = b"") -> None:
        channel.send(header, body)

    job = message.header
    try:
        if job["kind"] == "measure":
            from rlprune_agent.measure import measure

            measure(job, tell)
        elif job["kind"] == "sweep":
            from rlprune_agent.sweep import sweep

            sweep(job, tell)
        else:
            tell({"phase": "runtime"})
            from rlprune_agent.runtime import probe

            tell({"result": probe()})
    except Failure as failure:
        tell({"failure": failure.header()})
    except ImportError as error:
        text = "onnxruntime cannot be imported: %s (install it with: %s -m pip install onnxruntime numpy)"
        tell({"failure": Failure("runtime_missing", text % (error, sys.executable)).header()})
    except MemoryError:
        tell({"failure": Failure("oom", "out of memory").header()})
    sys.stderr.flush()
    # Tearing down sessions takes time and can crash; all that counts has been told.
    os._exit(0)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlprune-edge-agent", description="Measure models for rlprune-edge on this device."
    )
    parser.add_argument("--version", action="version", version=rlprune_agent.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    stdio = commands.add_parser("stdio", help="talk to a host over standard input and output")
    stdio.add_argument("--cache", type=Path, required=True, help="folder for the files a host sends")
    stdio.add_argument("--quota-mb", type=int, default=2000, help="how much the folder may hold (default: 2000)")
    child = commands.add_parser("child", help="do one job from standard input (started by the agent itself)")
    child.add_argument("parent", type=int, help="process id to die with")
    check = commands.add_parser("check", help="print what this device is and whether onnxruntime works, as JSON")
    for command in (stdio, check):
        command.add_argument("--root", type=Path, default=Path("/"), help="where /proc and /sys are found (default: /)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the agent; ends the process with its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command == "stdio":
        sys.exit(_stdio(options.cache, options.quota_mb, options.root))
    if options.command == "child":
        sys.exit(_child(options.parent))
    if options.command == "check":
        sys.exit(_check(options.root))
    parser.print_help()
    sys.exit(2)


if __name__ == "__main__":
    main()
