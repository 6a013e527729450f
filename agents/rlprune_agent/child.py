"""One job in a process of its own: told on standard input, answered on standard output.

What a child imports is paid for by every measurement, so there is nothing here that only the agent needs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from rlprune_agent import limits
from rlprune_agent.protocol import Channel, Failure

_JOB_SECONDS = 30.0


def claim_stdout() -> int:
    """A private descriptor for the protocol; from now on whatever a library prints to descriptor 1 goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def main(parent: str, self_test_of: str | None = None) -> None:
    """Do the job that is on standard input, or be the self-test of another agent, and end; die with `parent`."""
    limits.become_child(int(parent))
    if self_test_of:
        os.execv(sys.executable, [sys.executable, "-B", self_test_of, "--self-test"])
    channel = Channel(0, claim_stdout())
    message = channel.receive(_JOB_SECONDS)
    if message is None:
        sys.exit(1)

    def tell(header: dict[str, Any], body: bytes = b"") -> None:
        channel.send(header, body)

    job = message.header
    try:
        if "limits" in job:
            limits.apply(job["limits"])
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
