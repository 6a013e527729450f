"""Cut, fine-tune and cut again: the rungs, the spaces they search, and a whole climb on a tiny network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_samples import encoder, inputs
from torch import nn

from rlprune_edge import parents, rungs
from rlprune_edge import request as requests
from rlprune_edge.compress import Outcome, compress
from rlprune_edge.errors import UserError
from rlprune_edge.journal import Journal
from rlprune_edge.progress import Silent
from rlprune_edge.prune import space, structure
from rlprune_edge.records import Baseline, Quality, Trial
from rlprune_edge.request import Request
from rlprune_edge.run_folder import RunFolder

EXAMPLES = Path(__file__).parent / "examples"
UNCUT = Baseline(Quality(90.0, 0.3, 100), latency_ms=80.0, memory_mb=400.0, parameters=1, macs=1)


def asked(**words: Any) -> Request:
    return requests.make({"target_speedup": 2.0, "budget": 60, **words})


# ---------------------------------------------------------------- rungs


def test_rungs_go_to_the_target_by_equal_factors_and_share_what_may_be_spent() -> None:
    found = rungs.rungs(asked(ladder=3, device_seconds=90.0, finalists=2), UNCUT)
    assert [r.target.speedup for r in found] == [1.26, 1.59, 2.0]
    assert [r.budget for r in found] == [20, 40, 60]
    assert [r.device_seconds for r in found] == pytest.approx([30.0, 60.0, 90.0])
    assert [r.finalists for r in found] == [1, 1, 2]
    assert [r.final_mode for r in found] == ["reward", "reward", "report"]
    assert [r.last for r in found] == [False, False, True]
    assert [r.named("verified.json") for r in found] == ["verified.json", "verified-2.json", "verified-3.json"]


def test_networks_without_their_preprocessing_have_to_be_faster_by_what_it_takes() -> None:
    first, last = rungs.rungs(asked(ladder=2), UNCUT, 1.0, 2.0)  # 82 ms with it
    assert (first.contained.speedup, last.contained.speedup) == (1.41, 2.0)
    assert [r.final for r in (first, last)] == [r.contained for r in (first, last)]
    assert last.target.speedup == pytest.approx(80 / (41 - 2), abs=1e-3)
    assert first.target.speedup == pytest.approx(80 / (82 / 1.41 - 2), abs=1e-3)
    for rung in (first, last):
        assert rung.target.speedup is not None
        assert rungs.with_preprocessing(rung.target.speedup, UNCUT, 2.0) == pytest.approx(
            rung.contained.speedup, abs=1e-3
        )
    (in_ms,) = rungs.rungs(requests.make({"target_latency_ms": 20.0, "max_memory_mb": 100.0}), UNCUT, 1.0, 2.0)
    assert (in_ms.target.latency_ms, in_ms.contained.latency_ms) == (18.0, 20.0)
    assert in_ms.target.memory_mb == 100.0
    (hopeless,) = rungs.rungs(asked(target_speedup=50.0), UNCUT, 1.0, 2.0)
    assert hopeless.target.speedup == pytest.approx(80 / (82 / 50 / 2), abs=1e-3), "half of what is asked for, not less"
    (easy,) = rungs.rungs(asked(), UNCUT, 1.5, 2.0)
    assert easy.contained == rungs.eased(asked().target, UNCUT, 1.5)
    assert easy.target.speedup == pytest.approx(80 / (82 / (2 / 1.5 * 1.03) - 2), abs=1e-3)
    assert easy.final.speedup == 2.0


def test_targets_in_milliseconds_and_megabytes_begin_at_the_uncut_model() -> None:
    words = {"target_speedup": None, "target_latency_ms": 20.0, "max_memory_mb": 100.0, "max_drop": 1.0}
    first, last = rungs.rungs(requests.make({**words, "ladder": 2}), UNCUT)
    assert first.target.latency_ms == 40.0
    assert first.target.memory_mb == 200.0
    assert first.target.max_drop is None, "what may be lost is asked of the network that is handed over"
    assert last.target == requests.make(words).target


def test_without_a_ladder_the_only_rung_is_the_request() -> None:
    assert rungs.rungs(asked(), UNCUT) == [rungs.whole(asked())]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"ladder": 2, "target_speedup": None}, "nothing to climb to"),
        ({"ladder": 9, "budget": 8}, "--budget of at least as many"),
        ({"ladder": 0}, "--ladder"),
    ],
)
def test_a_ladder_without_a_goal_or_a_budget_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        asked(**words)


# ---------------------------------------------------------------- what a rung leaves can be cut again


class Residual(nn.Module):
    """Three blocks over one stream of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()) for _ in range(3))
        self.ends = nn.ModuleList(nn.Conv2d(24, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, end in zip(self.blocks, self.ends, strict=True):
            x = x + end(block(x))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


class Once:
    """As much of a task as a ranking needs."""

    def __init__(self, x: Any) -> None:
        self._x = x

    def batches(self, *_args: Any, **_words: Any) -> list[tuple[Any, torch.Tensor]]:
        return [(self._x, torch.arange(len(self._x)) % 2)]

    def loss(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(out, y)


def parent_of(model: nn.Module, x: Any, example: Any) -> tuple[parents.Parent, Any]:
    groups, _ = structure.find_groups(model, example)
    described = space.build(model, example, groups)
    macs = described.macs(described.uncut())
    return parents.make(asked(), Once(x), model, groups, macs=macs, example=example), described  # type: ignore[arg-type]


def test_a_convolutional_network_is_cut_twice_as_it_would_be_at_once_in_size() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = Residual().eval()
    parent, described = parent_of(model, x, x[:1])
    first = described.plan({"stem": 12, "blocks.1.0": 10})
    small = parent.cut(first)
    after = parents.next_of(
        parent,
        small.module,
        first,
        request=asked(),
        task=Once(x),  # type: ignore[arg-type]
        space=described,
        x=x[:1],
    )
    assert {g.name: g.width for g in after.groups} == first.widths
    second = described.plan({"stem": 8, "blocks.0.0": 6, "blocks.1.0": 10})
    twice = after.cut(second)
    assert after.check(twice, x[:2]) < 1e-5
    assert twice.parameters == parent.cut(second).parameters


def test_an_encoder_that_lost_heads_and_a_sub_layer_is_cut_again() -> None:
    model = encoder("bert")
    x = inputs("bert")
    parent, described = parent_of(model, x, x[:1])
    heads = next(g for g in described.groups if g.unit == "head")
    neurons = [g for g in described.groups if g.unit == "neuron"]
    gone = next(b for b in described.blocks if b.name == neurons[-1].block)
    first = described.plan({heads.name: heads.width - 1}, (gone.name,))
    small = parent.cut(first)
    words: dict[str, Any] = {"request": asked(), "task": Once(x), "space": described, "x": x[:1]}
    after = parents.next_of(parent, small.module, first, **words)
    second = described.plan({heads.name: heads.width - 1, neurons[0].name: neurons[0].width // 2}, (gone.name,))
    twice = after.cut(second)
    assert after.check(twice, x[:1]) < 1e-5
    assert twice.parameters == parent.cut(second).parameters


def test_a_network_that_lost_what_the_plan_keeps_ends_the_ladder() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    parent, described = parent_of(Residual().eval(), x, x[:1])
    small = parent.cut(described.plan({"stem": 12}))
    other = described.plan({"stem": 13})
    words: dict[str, Any] = {"request": asked(), "task": Once(x), "space": described, "x": x[:1]}
    with pytest.raises(UserError, match="stem cannot be cut on its own"):
        parents.next_of(parent, small.module, other, **words)


# ---------------------------------------------------------------- a whole climb


class Kept(Silent):
    """Keeps what a kill would leave as soon as the second rung has a candidate."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self._folder = folder
        self._kept = kept

    def trial(self, trial: Trial, **_words: Any) -> None:
        if trial.rung == 1 and not self._kept.exists():
            shutil.copytree(self._folder, self._kept)


def climb(out: Path, cache: Path, watcher: Silent) -> Outcome:
    if (out / requests.FILE).exists():
        folder, request = RunFolder.reopen(out)
    else:
        request = requests.make(
            {
                **{"task": "own_task:Bars", "target_speedup": 1.4, "budget": 12, "ladder": 2, "finalists": 2},
                **{"agent": "random", "search_mode": "brief", "final_mode": "reward"},
            }
        )
        folder = RunFolder.create(out, request)
    try:
        return compress(request, folder, watcher, cache_dir=cache)
    finally:
        folder.close()


def lines(folder: Path) -> list[tuple[int, str]]:
    return [(t.rung, t.plan.key) for t in Journal(folder / "trials.jsonl").trials]


TRIES = 3
"""climbs, until one leaves its first rung: where others use this machine, finalists may be timed below their target"""


@pytest.mark.alone
def test_a_climb_that_is_interrupted_on_the_second_rung_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cache = tmp_path / "cache"
    for number in range(TRIES):
        folder, kept = tmp_path / f"whole-{number}", tmp_path / f"kept-{number}"
        whole = climb(folder, cache, Kept(folder, kept))
        if "number" in whole.report["ladder"][0]:
            break
    # Of the same climb: the finalists of another one's first rung are timed anew, and another of them may win.
    before = lines(kept)
    assert before[-1][0] == 1
    again = climb(kept, cache, Silent())
    sys.modules.pop("own_task", None)

    assert lines(kept) == lines(folder)
    assert lines(kept)[: len(before)] == before
    assert again.report["ladder"][0] == whole.report["ladder"][0]

    trials = Journal(folder / "trials.jsonl").trials
    ladder = whole.report["ladder"]
    assert [r["rung"] for r in ladder] == [1, 2]
    start = trials[ladder[0]["number"]].plan
    for trial in trials:
        if trial.rung == 1:
            assert all(trial.plan.widths[g] <= n for g, n in start.widths.items())
    assert ladder[0]["speedup"] >= rungs.rungs(asked(target_speedup=1.4, ladder=2), UNCUT)[0].target.speedup
    for outcome in (whole, again):
        last = outcome.report["ladder"][1]
        if outcome.status == "met":
            assert last["speedup"] == outcome.report["compressed"]["speedup"] >= 1.4
            # what the first rung left stays where it was, or may have been, fast enough for the second
            assert last["plan_key"] != ladder[0]["plan_key"] or ladder[0]["speedup_ci"][1] >= 1.4
        else:  # the machine was disturbed; then nothing is claimed
            assert outcome.status == "infeasible"
            assert "speedup" not in last
    assert "The ladder" in (folder / "report.html").read_text()
    assert whole.report["spent"]["candidates"] == len(trials) - 1
