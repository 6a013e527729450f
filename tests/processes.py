"""Commands as processes of their own, in the folder of the examples.

Importing torch takes longer than most of them have to do. So they are forked from a process that has imported what they
need and has computed nothing. That a fresh interpreter comes as far is shown by one whole run in test_spine.py.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
MISSED, TRIES = 4, 5
"""A machine that others disturb may time one of so few candidates at half its speed; the run says, rightly, that the
target is missed. Where that is not what a test is about, the command is tried again."""

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    [
        # what the commands import on their way
        *("torch._dynamo", "transformers", "optimum.exporters.onnx", "stable_baselines3", "sb3_contrib", "plotly.io"),
        *("rlprune_edge.cli", "rlprune_edge.compress", "rlprune_edge.compare", "rlprune_edge.profile"),
    ]
)


class Command:
    """`rlprune-edge` with these words, begun; as much of `subprocess.Popen` as is needed."""

    def __init__(self, words: list[str], environment: Mapping[str, str], cwd: Path) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._process = _forking.Process(target=_command, args=(words, dict(environment), str(cwd), str(self._folder)))
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Output and errors, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within `timeout` seconds; it is killed.
        """
        self._process.join(timeout)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self._folder)
        if late:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0, out, err)
        return out, err


def _command(words: list[str], environment: dict[str, str], cwd: str, outputs: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(outputs, name), os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = ["rlprune-edge", *words]
    from rlprune_edge.__main__ import main

    sys.exit(main())


def start(words: list[str], cache: Path, cwd: Path = EXAMPLES) -> Command:
    """`rlprune-edge` with these words, its output kept apart from its errors."""
    return Command(words, {**os.environ, "RLPRUNE_CACHE": str(cache)}, cwd)


def finish(words: list[str], cache: Path, cwd: Path = EXAMPLES) -> tuple[int, str, str]:
    """The same to its end: exit code, output, errors."""
    process = start(words, cache, cwd)
    out, err = process.communicate(timeout=500)
    assert process.returncode is not None
    return process.returncode, out, err


def finish_within_target(words: list[str], cache: Path, cwd: Path = EXAMPLES) -> tuple[int, str, str]:
    """The same, tried again where the machine's noise let it miss its target; `words` name the run's folder.

    Measured again, too: what was measured of the same files before would be taken for it.
    """
    for _ in range(TRIES):
        done = finish(words, cache, cwd)
        if done[0] != MISSED:
            break
        shutil.rmtree(cwd / words[words.index("--out") + 1])
        shutil.rmtree(cache / "measurements")
    return done
