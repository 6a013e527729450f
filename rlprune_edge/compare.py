"""The spine of `compare`: many searches on one prepared problem, every network of which is evaluated once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlprune_edge import deployment, finalists, probing, second_look
from rlprune_edge.comparison import (
    FINISHED,
    NAME,
    Finished,
    Search,
    Step,
    append_finished,
    append_search,
    best_so_far,
    load_finished,
    load_searches,
)
from rlprune_edge.comparison_report import write_comparison
from rlprune_edge.compress import prepared
from rlprune_edge.deliver import versions
from rlprune_edge.errors import BudgetSpent, UserError
from rlprune_edge.progress import Watcher
from rlprune_edge.records import Plan, Trial, WidthTimes
from rlprune_edge.report_words import target_words
from rlprune_edge.request import Request
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search import agents
from rlprune_edge.search.agents import Entrant
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.sensitivity import Sensitivity

PROBED = 0.4
"""share of a budget that probes of single cuts may take"""


@dataclass(frozen=True)
class Field:
    """Who is compared, and how often each."""

    agents: tuple[str, ...]
    """as `agents.entrant` reads them"""
    seeds: tuple[int, ...]
    finish: tuple[str, ...] = ()
    """those of them whose best plans are fine-tuned, measured again and tested"""
    estimate_from: str | None = None
    """a device's profile, whose predictions take the place of measurements"""

    def __post_init__(self) -> None:
        for name in self.agents:
            agents.entrant(name)
        if strangers := [name for name in self.finish if name not in self.agents]:
            raise UserError(f"--finish {', '.join(strangers)}: not among the agents {', '.join(self.agents)}.")
        if self.finish and self.estimate_from is not None:
            raise UserError(
                "--finish measures what it hands over, and with --estimate-from there are estimates alone.\n"
                "Compare with --device in a folder of its own."
            )
        for what, named in (("agents", self.agents), ("seeds", self.seeds)):
            if not named or len(set(named)) < len(named):
                raise UserError(
                    f"--{what} needs at least one, and each once, not {', '.join(map(str, named)) or 'none'}."
                )


def compare(
    request: Request, field: Field, folder: RunFolder, watcher: Watcher, *, cache_dir: Path, command: str
) -> dict[str, Any]:
    """Run what is missing of the field's searches and write the comparison; returns the content of compare.json.

    All searches share the uncut model, its ranking, the board's table, and every evaluated network: whoever proposes it
    first has it evaluated, everybody pays for it from his own budget. So equal plans have equal figures, and an
    interrupted comparison loses time in the search it was in, not measurements.
    """
    done = {(s.agent, s.seed) for s in load_searches(folder.path / NAME)}
    profile = Path(field.estimate_from) if field.estimate_from is not None else None
    with prepared(request, folder, watcher, cache_dir=cache_dir, estimate_from=profile) as (run, tables):
        words = _words(run, field, command)
        write_comparison(folder.path, words)  # so that `--render` shows what there is, whenever
        sensitivity = None
        run.tells = False  # each search counts for itself
        if any(_informed(agents.entrant(name), request) for name in field.agents):
            sensitivity = probing.probe_sensitivity(run, most=int(PROBED * request.budget))
        places = [(name, seed) for seed in field.seeds for name in field.agents]
        for number, (name, seed) in enumerate(places, start=1):
            if (name, seed) in done:
                continue
            watcher.stage(f"{name}, seed {seed}: search {number} of {len(places)}")
            search = _search(run, tables, name, seed, sensitivity)
            append_search(folder.path / NAME, search)
            best = best_so_far(search, request.budget)
            found = f"best {best:.3f}" if best is not None else "nothing that meets the target"
            watcher.note(f"{found} after {len(search.steps)} candidates, {search.probes} probes; {search.reason}")
        for search in load_searches(folder.path / NAME):
            if search.agent in field.finish:
                _finish(run, search)
    return write_comparison(folder.path, words)


def _finish(run: Run, search: Search) -> None:
    """Fine-tune what a search has found, once, measure it in turns with the uncut model, and test it."""
    path = run.folder.path / FINISHED
    known = load_finished(path)
    if any((f.agent, f.seed) == (search.agent, search.seed) for f in known):
        return
    run.watcher.stage(f"{search.agent}, seed {search.seed}: its best plan, fine-tuned")
    keys = {step.key for step in search.steps}
    trial = second_look.first_that_meets(run, [t for t in run.trials if t.plan.key in keys])
    if trial is None:
        run.watcher.note("it has found nothing that meets the target when it is measured once more")
        return
    like = next((f for f in known if f.plan_key == trial.plan.key), None)
    append_finished(
        path,
        replace(like, agent=search.agent, seed=search.seed) if like else _finished(run, search, trial),
    )


def _finished(run: Run, search: Search, trial: Trial) -> Finished:
    module, validation, _ = finalists.fine_tuned(run, trial)
    measured = deployment.measured(run, deployment.deployed(run, module), run.request.final_mode)
    assert measured.speedup is not None
    before, after = (run.task.score(network, "test").metric for network in (run.loaded.module, module))
    drop = run.task.metric.drop(before, after)
    run.watcher.note(
        f"{second_look.reached(measured)}; test split: {before:.2f} -> {after:.2f}, {drop:.2f} points lost"
    )
    return Finished(
        agent=search.agent,
        seed=search.seed,
        plan_key=trial.plan.key,
        speedup=measured.speedup.value,
        speedup_ci=(measured.speedup.low, measured.speedup.high),
        latency_ms=measured.latency_ms.value,
        mode=run.request.final_mode,
        before=before,
        after=after,
        drop=drop,
        validation=validation.metric,
    )


def _informed(entrant: Entrant, request: Request) -> bool:
    return agents.informed(entrant.agent, prior=entrant.prior, target=request.target)


def _search(run: Run, tables: tuple[WidthTimes, ...], name: str, seed: int, sensitivity: Sensitivity | None) -> Search:
    entrant, request = agents.entrant(name), run.request
    known = sensitivity if _informed(entrant, request) else None
    account = _Account(run, probes=run.probes if known is not None else 0)
    env = PruningEnv(
        run.space,
        account.evaluate,
        baseline=run.baseline,
        target=request.target,
        tables=tables,
        sensitivity=known,
        masks=entrant.parts.masks,
        evaluate_all=account.evaluate_all,
    )
    began = time.perf_counter()
    end = agents.search(entrant.agent, env, seed=seed, budget=account.left, parts=entrant.parts)
    thinking = time.perf_counter() - began - account.seconds
    return Search(name, seed, tuple(account.steps), account.probes, end.reason, round(thinking, 2))


class _Account:
    """What one search has spent: candidates (probes among them) and device seconds, as if it were alone."""

    def __init__(self, run: Run, *, probes: int) -> None:
        self._run, self.probes = run, probes
        self.left = max(1, run.request.budget - probes)
        """candidates beside the probes"""
        self.steps: list[Step] = []
        self.seconds = 0.0
        """spent in evaluations"""
        self._device_seconds = 0.0
        self._seen = {run.baseline_trial.plan.key}
        """the uncut model is free"""
        self._best: Trial | None = None

    def evaluate(self, plan: Plan) -> Trial:
        """Like `Run.evaluate`, on this account. Raises BudgetSpent."""
        return next(self.evaluate_all([plan]))

    def evaluate_all(self, plans: Iterable[Plan]) -> Iterator[Trial]:
        """Like `Run.evaluate_all`, on this account. Raises BudgetSpent."""
        under_way: set[str] = set()
        spent: list[str] = []

        def affordable() -> Iterator[Plan]:
            for plan in plans:
                if plan.key not in self._seen and plan.key not in under_way:
                    if said := self._spent(len(under_way)):
                        spent.append(said)
                        return
                    under_way.add(plan.key)
                yield plan

        coming = self._run.evaluate_all(affordable(), spent=lambda _: None)
        while True:
            began = time.perf_counter()
            try:
                trial = next(coming, None)
            finally:
                self.seconds += time.perf_counter() - began
            if trial is None:
                break
            under_way.discard(trial.plan.key)
            if trial.plan.key not in self._seen:
                self._enter(trial)
            yield trial
        if spent:
            raise BudgetSpent(spent[0])

    def _spent(self, under_way: int) -> str | None:
        request = self._run.request
        if len(self.steps) + under_way >= self.left:
            return f"{request.budget} candidates evaluated"
        if request.device_seconds and self._device_seconds >= request.device_seconds:
            return f"{request.device_seconds:g} device seconds used"
        return None

    def _enter(self, trial: Trial) -> None:
        self._seen.add(trial.plan.key)
        measured = trial.measurement
        if trial.score.feasible and (self._best is None or trial.score.reward > self._best.score.reward):
            self._best = trial
        self._device_seconds += measured.device_seconds if measured else 0.0
        self.steps.append(
            Step(
                spent=self.probes + len(self.steps) + 1,
                device_seconds=round(self._device_seconds, 3),
                value=trial.score.reward if trial.failure is None else None,
                feasible=trial.score.feasible,
                latency_ms=measured.latency_ms.value if measured else None,
                metric=trial.quality.metric if trial.quality else None,
                key=trial.plan.key,
            )
        )
        spent, budget = self.steps[-1].spent, self._run.request.budget
        self._run.watcher.trial(trial, best=self._best, spent=spent, budget=budget)


def _words(run: Run, field: Field, command: str) -> dict[str, Any]:
    """What the comparison's report says it is about."""
    request, measured = run.request, run.baseline_trial.measurement
    notes: Sequence[str] = run.notes
    return {
        "task": run.task.name,
        "model": run.loaded.description,
        "device": request.device if run.estimate is None or measured is None else measured.device,
        "source": measured.source if measured else None,
        "mode": request.search_mode if run.estimate is None else None,
        "metric": run.task.metric.name,
        "recipe": request.recipe,
        "target": target_words(asdict(request.target)),
        "budget": request.budget,
        "device_seconds": request.device_seconds,
        "agents": list(field.agents),
        "seeds": list(field.seeds),
        "groups": len(run.space.groups),
        "blocks": len(run.space.blocks),
        "step": request.step,
        "command": command,
        "versions": versions(),
        "notes": list(notes),
    }
