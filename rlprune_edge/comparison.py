"""searches.jsonl: every search of a comparison with all its candidates; it *is* the result of `compare`.

Beside it finished.jsonl: what became of the best plan of some of them once it was fine-tuned.
"""

# Format history of searches.jsonl:
#   1: {"format": 1, "search": {... Search ...}}, one line a finished search, in the order in which they ended.
# Format history of finished.jsonl:
#   1: {"format": 1, "finished": {... Finished ...}}, one line a fine-tuned network.

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlprune_edge.errors import UserError
from rlprune_edge.json_lines import append_line, read_lines

FORMAT = 1
NAME, FINISHED = "searches.jsonl", "finished.jsonl"


@dataclass(frozen=True)
class Step:
    """One distinct candidate of a search."""

    spent: int
    """candidates the search had used up after this one, sensitivity probes among them"""
    device_seconds: float
    """device time the search had used up after this one, likewise; a candidate that the device knew counts in full"""
    value: float | None
    """what is compared, higher is better: the reward; for a hard budget the share of the uncut model's knowledge that
    is kept (1 = all). None where the candidate failed"""
    feasible: bool
    """whether it meets the target"""
    latency_ms: float | None
    metric: float | None
    key: str
    """the plan's"""


@dataclass(frozen=True)
class Search:
    """One agent with one seed, from its first candidate to its end. Raises ValueError where the steps run backwards."""

    agent: str
    seed: int
    steps: tuple[Step, ...]
    """in the order of evaluation"""
    probes: int
    """candidates among those spent that only probed how sensitive the model is"""
    reason: str
    """why it ended, e.g. `budget spent`"""
    seconds: float
    """the searcher's own thinking time, without that of the evaluations"""

    def __post_init__(self) -> None:
        for one, two in pairwise(self.steps):
            if two.spent <= one.spent or two.device_seconds < one.device_seconds:
                raise ValueError(f"{self.agent}, seed {self.seed}: step {two.key} has spent less than the one before")


@dataclass(frozen=True)
class Finished:
    """The best plan of one search, fine-tuned, measured again and tested."""

    agent: str
    seed: int
    plan_key: str
    speedup: float
    speedup_ci: tuple[float, float]
    latency_ms: float
    mode: str
    """of that measurement"""
    before: float
    """the uncut model's metric on the test split"""
    after: float
    drop: float
    """points lost there"""
    validation: float
    """the metric on the validation split"""


_SEARCH: TypeAdapter[Search] = TypeAdapter(Search)
_FINISHED: TypeAdapter[Finished] = TypeAdapter(Finished)


def append_search(path: Path, search: Search) -> None:
    """Write one finished search through to the disk. Raises UserError where the disk is full."""
    append_line(path, {"format": FORMAT, "search": asdict(search)}, go_on="the same command")


def load_searches(path: Path) -> tuple[Search, ...]:
    """All finished searches of a comparison, in the order in which they ended; none where there is no file yet.

    A torn last line (power cut) is dropped. Raises UserError where the file is damaged, has another format, or holds
    a search twice.
    """
    found: dict[tuple[str, int], Search] = {}

    def read(entry: Any) -> None:
        search = _SEARCH.validate_python(entry["search"])
        if (search.agent, search.seed) in found:
            raise UserError(f"{path} holds {search.agent} with seed {search.seed} twice. Delete one of the lines.")
        found[search.agent, search.seed] = search

    if path.exists():
        read_lines(path, read, format_=FORMAT, go_on="the same command runs what is missing")
    return tuple(found.values())


def append_finished(path: Path, finished: Finished) -> None:
    """Write one fine-tuned network through to the disk. Raises UserError where the disk is full."""
    append_line(path, {"format": FORMAT, "finished": asdict(finished)}, go_on="the same command")


def load_finished(path: Path) -> tuple[Finished, ...]:
    """All fine-tuned networks of a comparison, in their order; none where there is no file. Raises UserError."""
    found: list[Finished] = []
    if path.exists():
        read_lines(
            path,
            lambda entry: found.append(_FINISHED.validate_python(entry["finished"])),
            format_=FORMAT,
            go_on="the same command fine-tunes what is missing",
        )
    return tuple(found)


def best_so_far(search: Search, at: int) -> float | None:
    """The highest value among the feasible candidates of the first `at`; None where none was feasible yet."""
    found = [s.value for s in search.steps if s.feasible and s.value is not None and s.spent <= at]
    return max(found, default=None)
