"""A thousand measuring jobs over SSH while a twentieth of them is disturbed: nothing may be lost, doubled or invented.

    .venv/bin/python tools/bench/soak.py [--jobs 1000] [--faults 0.05] [--seed 0]

A real sshd on loopback is the board, with a link before it that can fail. Each job is a `measure` of its own with the
shortest of settings (what is tried is the way there and back, not the figure); every tenth brings a new model. The
faults: the connection is reset in mid-job or in mid-upload, nothing passes any more, the measuring child is killed, the
daemon is killed, a file in the board's cache is damaged. Exits with 1 unless every job came to one result, no job that
gave a result had begun twice, no fault was taken for the model's, and the daemon's memory stayed where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from device.ssh.board import LinkFault, LoopbackBoard

from rlprune_agent.protocol import Message
from rlprune_edge.device import boards, contact
from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.board import Board
from rlprune_edge.device.link import Link
from rlprune_edge.device.meter import MODES
from rlprune_edge.device.profiles import Limits, Profile
from rlprune_edge.errors import CandidateError, DeviceError
from rlprune_edge.export import host, onnx_graph

# What else runs on this machine is no reason to refuse a figure that nobody uses.
CALM = Limits(load_percent=6400, max_clock_loss=0.99)
PROFILE = Profile(format=1, name="soak", title="a board on loopback", source="board", threads=1, limits=CALM)
QUICK = replace(
    MODES["reward"], warmup_seconds=0.02, warmup_cap_seconds=0.1, window_ms=5, pairs=(6,), block_ms=2, sample_ms=0.5
)
AGENT = ".local/share/rlprune-edge"


class Counted(Board):
    """Knows which jobs gave a result."""

    results: Counter[str]

    def _connect(self) -> Link:
        link = super()._connect()
        plain = link.wait

        def wait(job_id: str, seconds: float) -> Message | tuple[str, str]:
            outcome = plain(job_id, seconds)
            if isinstance(outcome, Message):
                self.results[job_id] += 1
            return outcome

        link.wait = wait  # type: ignore[method-assign]
        return link


def dense(path: Path, width: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 8, name)
        for name, shape in (("a", (64, width)), ("b", (width, 10)))
    ]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, [8, 64])], [value("y", TensorProto.FLOAT, [8, 10])]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class Faults:
    """Does the board and the link harm, while a job runs."""

    def __init__(self, board: LoopbackBoard, link: LinkFault, rng: random.Random) -> None:
        self._board, self._link, self._rng = board, link, rng
        self.done: Counter[str] = Counter()
        self.owed = 0
        self.kinds: dict[str, tuple[float, Callable[[], bool]]] = {
            "connection reset": (0.35, self._drop),
            "reset in an upload": (0.15, self._reset_upload),
            "nothing passes for 20 s": (0.06, self._stall),
            "child killed": (0.20, self._kill_child),
            "daemon killed": (0.14, self._kill_daemon),
            "cached file damaged": (0.10, self._damage),
        }

    def one(self, running: threading.Event) -> None:
        """One fault, after a moment, if the job still runs then; if not, the next job owes it."""
        weights = [weight for weight, _ in self.kinds.values()]
        name = self._rng.choices(list(self.kinds), weights)[0]
        time.sleep(self._rng.uniform(0, 0.4))
        if running.is_set() and self.kinds[name][1]():
            self.done[name] += 1
            self.owed -= 1

    def _drop(self) -> bool:
        self._link.drop()
        return True

    def _reset_upload(self) -> bool:
        self._link.reset_after(self._rng.randrange(1000, 50_000))
        return True

    def _stall(self) -> bool:
        self._link.stall()
        timer = threading.Timer(20, self._link.resume)
        timer.daemon = True
        timer.start()
        return True

    def _kill_child(self) -> bool:
        return self._kill(" child ")

    def _kill_daemon(self) -> bool:
        return self._kill(" serve ")

    def _kill(self, word: str) -> bool:
        pids = processes(self._board, word)
        for pid in pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _damage(self) -> bool:
        files = [p for p in (self._board.home / AGENT).rglob("*") if re.fullmatch("[0-9a-f]{64}", p.name)]
        if not files:
            return False
        path = self._rng.choice(sorted(files))
        with contextlib.suppress(OSError), path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
            return True
        return False


def processes(board: LoopbackBoard, word: str) -> list[int]:
    """Processes of this board's agent whose command line has the word; a daemon is nobody's child."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace") + " "
            environment = (path.parent / "environ").read_bytes().decode(errors="replace")
            if word in line and f"HOME={board.home}" in environment.split("\0"):
                found.append(int(path.parent.name))
    return found


def resident_kb(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(match.group(1)) if match else None
    return None


def install(board: LoopbackBoard, cache: Path) -> None:
    """The agent, where `device setup` would put it."""
    place = board.home / AGENT / "bin" / "rlprune-edge-agent"
    place.parent.mkdir(parents=True)
    place.write_text(f'#!/bin/sh\nexec {sys.executable} {agent_zip(cache)} "$@"\n')
    place.chmod(0o755)


def soak(jobs: int, share: float, seed: int, folder: Path) -> int:
    MODES["soak"] = QUICK
    contact._POLL_SECONDS = 0.2  # type: ignore[misc]
    rng = random.Random(seed)
    os.environ["RLPRUNE_CONFIG"] = str(folder / "config")
    outcomes: Counter[str] = Counter()
    memory: dict[int, list[int]] = {}
    began = time.monotonic()
    with LoopbackBoard(folder / "board") as board, LinkFault(board) as link:
        install(board, folder / "cache")
        (folder / "config").mkdir()
        board.known_hosts(boards.known_hosts(), port=link.port)
        where = boards.BoardFile(
            profile="linux",
            host=f"{board.user}@{board.host}",
            port=link.port,
            identity=str(board.identity),
            ssh_config=str(board.empty_config()),
        )
        faults = Faults(board, link, rng)
        x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
        with Counted("soak", where, PROFILE, cache_dir=folder / "cache") as station:
            station.results = Counter()
            _ = station.facts
            models: list[tuple[Any, dict[str, np.ndarray]]] = []
            for number in range(jobs):
                if number % 10 == 0:
                    path = dense(folder / f"{number}.onnx", rng.choice([256, 1024, 4096]), number)
                    models.append((onnx_graph.describe(path, max_difference=0), host.outputs(path, {"x": x})))
                artifact, expected = rng.choice(models[-5:])
                running = threading.Event()
                running.set()
                faults.owed += rng.random() < share
                harm = threading.Thread(target=faults.one, args=(running,)) if faults.owed else None
                if harm:
                    harm.start()
                outcomes[once(station, artifact, x, expected)] += 1
                running.clear()
                if harm:
                    harm.join()
                if number % 25 == 0:
                    for pid in processes(board, " serve "):
                        if (kb := resident_kb(pid)) is not None:
                            memory.setdefault(pid, []).append(kb)
                    tell(f"{number}/{jobs}: {dict(outcomes)}, {sum(faults.done.values())} faults")
        logs = (path.read_text(errors="replace") for path in (board.home / AGENT).rglob("*.log*"))
        starts = Counter(re.findall(r"job ([0-9a-f]+) begins", "\n".join(logs)))
    return judged(outcomes, station.results, starts, memory, faults.done, jobs, time.monotonic() - began)


def once(station: Board, artifact: Any, x: np.ndarray, expected: dict[str, np.ndarray]) -> str:
    """One job to its end, as a search would have it: what is nobody's fault is tried again until it works."""
    for _ in range(20):
        try:
            found = station.measure(
                Path(artifact.path),
                model_sha256=artifact.sha256,
                graph_sha256=artifact.graph_sha256,
                reference=None,
                inputs={"x": x},
                expected=expected,
                mode="soak",
                use_cache=False,
            )
        except DeviceError as error:
            tell(f"{error.kind}: {error}")
            continue
        except CandidateError as error:
            tell(f"TAKEN FOR THE MODEL'S FAULT: {error.kind}: {error}")
            return "blamed"
        return "measured" if len(found.processes) == 1 else "odd"
    return "lost"


def judged(
    outcomes: Counter[str],
    results: Counter[str],
    starts: Counter[str],
    memory: dict[int, list[int]],
    faults: Counter[str],
    jobs: int,
    seconds: float,
) -> int:
    twice = [job for job in results if starts[job] != 1]
    longest = max(memory.values(), key=len, default=[0])
    growth = longest[-1] - longest[min(2, len(longest) - 1)]
    tell(f"{jobs} jobs in {seconds / 60:.0f} minutes: {dict(outcomes)}")
    tell(f"faults: {dict(faults)}")
    tell(
        f"{len(results)} jobs gave a result, {len(twice)} of them had not begun just once; {sum(starts.values())} began"
    )
    lives = ", ".join(f"{kb[0]} -> {kb[-1]}" for kb in memory.values() if len(kb) > 1)
    tell(f"resident kB of each daemon that lived long enough to be looked at twice: {lives}")
    good = outcomes == Counter(measured=jobs) and not twice and len(results) >= jobs and growth < 3000
    tell("as it should be" if good else "NOT as it should be")
    return 0 if good else 1


def tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return soak(options.jobs, options.faults, options.seed, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
