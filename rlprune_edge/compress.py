"""The spine, part 2: one run in the order it happens, from a request to a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from rlprune_edge import deliver, deployment, ladder, layout, parents, precisions, probing, rungs
from rlprune_edge.device.boards import load_devices
from rlprune_edge.device.fleet import Fleet
from rlprune_edge.device.station import Station
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import few
from rlprune_edge.journal import Journal
from rlprune_edge.latency_profile import LatencyProfile, load_profile, read_profile
from rlprune_edge.progress import Watcher
from rlprune_edge.prune import space, structure
from rlprune_edge.records import PruningSpace, Trial, WidthTimes
from rlprune_edge.request import Request
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search import agents, staircase
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.estimates import estimates
from rlprune_edge.search.parts import Parts
from rlprune_edge.search.warm_start import WarmStart, known_from
from rlprune_edge.tasks.catalog import is_factory, load_own_model, load_task
from rlprune_edge.tasks.task import LoadedModel, Task

SPACE = "space.json"
POLICY = "policy.zip"
ENDS = {
    "budget": "the budget is used up",
    "repeats": "the agent hardly proposes anything new",
    "exhausted": "there is nothing left to try",
}
PROBE_INPUTS = 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `met`, `infeasible` or `stopped`, and its report as written to report.json."""

    status: str
    report: dict[str, Any]


def compress(
    request: Request,
    folder: RunFolder,
    watcher: Watcher,
    *,
    cache_dir: Path,
    sign: Callable[[bytes], bytes] | None = None,
) -> Outcome:
    """Run `request` to its end in `folder`, going on from whatever the folder already holds.

    `sign` makes the bundle's signature, see `bundle/signature.py`; it is the caller's, who can ask for a passphrase.
    Resuming is replaying: with the same seed the agent proposes the same plans, the journal answers those it knows at
    no cost, and the first unknown plan is where the search goes on.
    """
    with prepared(request, folder, watcher, cache_dir=cache_dir) as (run, tables):
        run.sign = sign
        run.precision_gain = precisions.gain(run)
        run.preprocessing_ms = deployment.preprocessing_ms(run)
        ladder.climb(run, lambda: _search(run, tables))
        return Outcome(*deliver.deliver(run))


@contextmanager
def prepared(
    request: Request, folder: RunFolder, watcher: Watcher, *, cache_dir: Path, estimate_from: Path | None = None
) -> Iterator[tuple[Run, tuple[WidthTimes, ...]]]:
    """A run that is ready to search: trial 0 measured, the widths that pay known; with the board's table.

    `estimate_from`: the profile of a device, whose predictions take the place of all that would be measured.
    """
    with opened(request, folder, watcher, cache_dir=cache_dir, estimate_from=estimate_from) as run:
        tables = probing.probe_widths(run, estimate_from or request.profile)
        run.space = run.space.with_levels(staircase.paying_levels(run.space, tables, step=request.step))
        folder.write_json(SPACE, asdict(run.space))
        yield run, tables


@contextmanager
def opened(
    request: Request, folder: RunFolder, watcher: Watcher, *, cache_dir: Path, estimate_from: Path | None = None
) -> Iterator[Run]:
    """A run whose uncut model is measured; which widths pay on the board was not looked at."""
    _look_up(request, estimate_from)
    torch.manual_seed(request.seed)
    # Made first, contacted later: a wrong name is said before anything is trained.
    with load_devices(
        request.device,
        cache_dir=cache_dir,
        threads=request.threads,
        provider=request.provider,
        strict=request.strict,
    ) as device:
        watcher.stage(f"task {request.task}")
        task = load_task(
            request.task,
            data=request.data,
            seed=request.seed,
            cache_dir=cache_dir,
            max_length=request.max_length,
            sequence_length=request.sequence_length,
            audio_seconds=request.audio_seconds,
            recipe_changes=request.training,
        )
        loaded = _load_model(request, task, cache_dir, watcher)
        benchmark = task.add_benchmark(request.benchmark) if request.benchmark is not None else None
        run = _open(request, folder, watcher, task, loaded, device, benchmark)
        if estimate_from is not None:
            profile = load_profile(estimate_from, run.space)
            run.estimate = estimates(profile, run.space)
            run.notes.append(_estimated(estimate_from, profile))
            watcher.note(run.notes[-1])
        watcher.stage("trial 0: the uncut model")
        run.evaluate(run.space.uncut())
        yield run


def _estimated(path: Path, profile: LatencyProfile) -> str:
    return (
        f"nothing is measured: latencies are what {path} predicts, from {len(profile.plans)} networks timed on "
        f"{profile.device}; on the {profile.held_out} held out it was off by {100 * profile.mean_error:.1f} % in the "
        f"mean and {100 * profile.largest_error:.1f} % at most"
    )


def _look_up(request: Request, estimate_from: Path | None) -> None:
    """What is named has to be there: said before anything is trained."""
    for path in (request.profile, estimate_from):
        if path is not None:
            read_profile(Path(path))
    if request.warm_start is not None:
        _former_trials(Path(request.warm_start))


def _load_model(request: Request, task: Task, cache_dir: Path, watcher: Watcher) -> LoadedModel:
    weights = Path(request.weights) if request.weights else None
    if request.model and is_factory(request.model, task):
        return load_own_model(request.model, task=task, weights=weights, seed=request.seed, cache_dir=cache_dir)

    def told(done: int, total: int, loss: float) -> None:
        watcher.step(f"training: loss {loss:.3f}", done, total)

    return task.model(request.model, weights=weights, cache_dir=cache_dir, progress=told)


def _open(
    request: Request,
    folder: RunFolder,
    watcher: Watcher,
    task: Task,
    loaded: LoadedModel,
    device: Station | Fleet,
    benchmark: str | None,
) -> Run:
    """List what can be cut, rank the channels, draw the inputs that all candidates share."""
    watcher.stage(f"what can be cut from {loaded.name}")
    model = loaded.module.eval()
    example = task.example_input()
    groups, left_alone = structure.find_groups(model, example)
    described = space.build(model, example, groups)
    compute = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout.fast(model.to(compute))
    parent = parents.make(request, task, model, groups, macs=described.macs(described.uncut()), example=example)
    watcher.note(
        f"{len(described.groups)} groups of {_units(described)}, {len(described.blocks)} removable blocks, "
        f"{described.parameters:,} parameters"
    )
    for reason in left_alone:
        watcher.note(f"left alone: {reason}")
    return Run(
        request=request,
        folder=folder,
        watcher=watcher,
        task=task,
        loaded=loaded,
        device=device,
        journal=Journal(folder.trials),
        parent=parent,
        rung=rungs.whole(request),
        space=described,
        example=example,
        probe_input=few(example, parent.calibration[0], PROBE_INPUTS),
        benchmark=benchmark,
        compute=compute,
        notes=[*task.notes, *loaded.notes],
    )


def _units(described: PruningSpace) -> str:
    return " or ".join(dict.fromkeys(f"{group.unit}s" for group in described.groups)) or "channels"


def _warm_start(run: Run) -> WarmStart | None:
    """What the search begins with: on a later rung of a ladder the policy and the scores of the one before."""
    if run.rung.number > 0:
        policy = run.folder.path / POLICY
        return WarmStart(policy if policy.is_file() else None, ladder.known(run))
    return _from_former(run) if run.request.warm_start else None


def _from_former(run: Run) -> WarmStart:
    """The former run's policy, if it was made for the same groups and blocks, and what it found of the same network."""
    former = Path(str(run.request.warm_start))
    trials = _former_trials(former)
    space = TypeAdapter(PruningSpace).validate_python(json.loads((former / SPACE).read_text(encoding="utf-8")))
    if space.without_levels() != run.space.without_levels():
        raise UserError(
            f"{former} cut another network: its groups and blocks are not those of {run.loaded.name}.\n"
            "Start from a run of the same model, or leave --warm-start out."
        )
    same = _scores_alike(trials[0], run.baseline_trial)
    known = [t for t in trials[1:] if t.rung == 0] if same else []
    run.watcher.note(
        f"starting from {former}: its policy and {len(known)} scored plans"
        + ("" if same else " (its network scores otherwise, so its scores do not count)")
    )
    policy = former / POLICY
    return WarmStart(policy if policy.is_file() else None, known_from(known, run.reward_of, run.rung.target))


def _former_trials(former: Path) -> tuple[Trial, ...]:
    path = former / "trials.jsonl"
    trials = Journal(path).trials if path.is_file() else ()
    if not trials:
        raise UserError(f"{former} holds no run to start from.\nGive the folder a former run wrote to with --out.")
    return trials


def _scores_alike(first: Trial, second: Trial) -> bool:
    one, other = first.quality, second.quality
    if one is None or other is None:
        return False
    return one.examples == other.examples and math.isclose(one.loss, other.loss, rel_tol=1e-3)


def _search(run: Run, tables: tuple[WidthTimes, ...]) -> None:
    """One rung's search, its trials in the journal; what earlier rungs have learned of the board goes on with it."""
    request, rung, baseline = run.request, run.rung, run.baseline
    offered = sum(len(g.levels) - 1 for g in run.space.groups)
    run.watcher.note(f"{offered} steps that pay over {len(run.space.groups)} groups")
    informed = agents.informed(request.agent, prior=request.prior, target=rung.target)
    sensitivity = probing.probe_sensitivity(run) if informed else None
    left = rung.budget - run.candidates_spent_before
    run.watcher.stage(f"search: {request.agent}, {left} candidates")
    env = PruningEnv(
        run.space,
        run.evaluate,
        baseline=baseline,
        target=rung.target,
        tables=tables,
        sensitivity=sensitivity,
        masks=request.masks,
        evaluate_all=run.evaluate_all,
    )
    if request.profile is not None:
        for timed in load_profile(Path(request.profile), run.space).plans:
            env.model.observe(timed.plan, baseline.latency_ms / timed.speedup)
    for trial in run.trials_before:
        if trial.measurement is not None:
            env.model.observe(trial.plan, env.judged_ms(trial), trial.measurement.memory_mb)
    parts = Parts(request.demonstrations, request.surrogate, request.neighbours, request.masks)
    warm_start = _warm_start(run)
    with run.stopwatch.searching():
        end = agents.search(
            request.agent,
            env,
            seed=request.seed,
            budget=left,
            parts=parts,
            policy=run.folder.path / POLICY,
            log=run.folder.path / rung.named(deliver.PPO_LOG),
            warm_start=warm_start,
        )
    run.predicted |= env.predicted
    run.watcher.note(f"{len(end.trials)} candidates from {end.episodes} episodes; {ENDS[end.reason]}")
