"""What a child process may use: limits the kernel holds it to, whatever the model in it tries."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

GIB = 1024**3
_MIB = 1024**2

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE = "800"
_OPEN_FILES = 1024
_SPARE_TASKS = 512
"""how many more processes and threads a child's user may have; the limit counts all that the user has anyway"""
_CPU_MARGIN_SECONDS = 30
_USUAL_THREADS = 4
_STACK_BYTES = 8 * _MIB
_ARENA_BYTES = 64 * _MIB
"""what the C library sets aside, but does not use, for each of its heaps; it makes up to 8 of them per CPU"""
_ACCELERATOR_FILE_BYTES = 4 * GIB
_ACCELERATOR_SHARE = 0.8


class Limits(NamedTuple):
    """Bytes and seconds a child may use; `None` is no limit."""

    address_space: int | None
    resident: int | None
    """checked by the parent, where the address space cannot be limited"""
    cpu_seconds: int
    file_bytes: int


def for_job(
    *, model_bytes: int, threads: int, models: int, seconds: float, accelerator: bool, available_bytes: int | None
) -> Limits:
    """The limits of a job over `models` models of `model_bytes` together, that ends after `seconds` at the latest.

    The address space is four times the model and 1.5 GiB, at least 2 GiB: what is mapped is far more than what is used
    (0.5 to 0.8 GiB for a model of a megabyte). More threads than four map their stacks and heaps on top. With an
    accelerator there is no such limit, for its driver maps tens of GiB; there the parent watches the resident size.
    """
    cpus = os.cpu_count() or 1
    cpu_seconds = math.ceil(seconds * cpus) + _CPU_MARGIN_SECONDS
    if accelerator:
        resident = None if available_bytes is None else int(_ACCELERATOR_SHARE * available_bytes)
        return Limits(None, resident, cpu_seconds, _ACCELERATOR_FILE_BYTES)
    more = max(0, threads * models - _USUAL_THREADS)
    space = max(2 * GIB, 4 * model_bytes + 3 * GIB // 2)
    space += more * _STACK_BYTES + min(more, 8 * cpus) * _ARENA_BYTES
    return Limits(space, None, cpu_seconds, 0)


def _tasks_of_user(uid: int) -> int:
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it may end while we look
                if os.stat(f"/proc/{entry}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def _lower(kind: int, value: int, *, margin: int = 0) -> None:
    """Set a limit, the hard one higher by `margin`; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    highest = value + margin if hard == resource.RLIM_INFINITY else min(value + margin, hard)
    resource.setrlimit(kind, (min(value, highest), highest))


def become_child(parent: int) -> None:
    """First thing in a child: die with the parent, leave no core file, gain no rights, be the first to go for memory.

    The parent's death is that of the thread that started us, so that has to be one that lives long.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
    # A sandbox may forbid it; then the kernel chooses by size, which mostly hits us as well.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    with contextlib.suppress(OSError, ValueError):
        _lower(resource.RLIMIT_NPROC, _tasks_of_user(os.getuid()) + _SPARE_TASKS)


def apply(fields: dict[str, Any]) -> None:
    """Hold this process to `Limits` that came as a dictionary."""
    limits = Limits(**fields)
    if limits.address_space is not None:
        _lower(resource.RLIMIT_AS, limits.address_space)
    # At the soft limit a signal says what it was about; at the hard one the kernel just kills.
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, margin=_CPU_MARGIN_SECONDS)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
