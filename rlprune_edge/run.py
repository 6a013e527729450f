"""The spine, part 1: what a run has in its hands, and `evaluate`, the one door every candidate goes through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlprune_edge.device.fleet import Fleet
from rlprune_edge.device.station import Station
from rlprune_edge.errors import BudgetSpent, CandidateError, UserError
from rlprune_edge.export import exporter, onnx_graph, parity, skeleton
from rlprune_edge.export.templates import Templates, Topology
from rlprune_edge.inputs import Input, named
from rlprune_edge.journal import Journal
from rlprune_edge.measurements import Measurement
from rlprune_edge.parents import Parent
from rlprune_edge.progress import Watcher
from rlprune_edge.prune import cut, space
from rlprune_edge.records import Baseline, Failure, OnnxArtifact, Plan, PruningSpace, Quality, Score, Trial
from rlprune_edge.request import Request
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.rungs import Rung, with_preprocessing
from rlprune_edge.search import reward
from rlprune_edge.tasks.task import LoadedModel, Task
from rlprune_edge.time_spent import Stopwatch, timed

BASELINE = "baseline.onnx"
TOLERANCE = 1e-3
"""by which a device's outputs may differ from this machine's, in float32"""


@dataclass
class _Prepared:
    """A candidate on its way to a trial."""

    plan: Plan
    path: Path
    uncut: bool
    seconds: dict[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    parameters: int | None = None
    macs: int | None = None
    file: tuple[OnnxArtifact, dict[str, np.ndarray]] | None = None
    """as exported, with the outputs that the device has to reproduce"""
    measurement: Measurement | None = None
    failure: Failure | None = None

    def failed(self, error: CandidateError) -> None:
        if self.uncut:
            raise UserError(f"The uncut model itself cannot be used: {error}") from error
        self.path.unlink(missing_ok=True)
        self.failure = Failure(error.kind, str(error))


@dataclass
class Run:
    """All that a run has in its hands while it lasts; made by `compress`, used up by `deliver`."""

    request: Request
    folder: RunFolder
    watcher: Watcher
    task: Task
    loaded: LoadedModel
    device: Station | Fleet
    journal: Journal
    parent: Parent
    """what candidates are cut from"""
    rung: Rung
    """what the search is for, and may spend"""
    space: PruningSpace
    example: Input
    """the one real input, [1, ...], that every export is held against torch with, and that is timed"""
    probe_input: Input
    """a few real inputs on which every candidate is held against its masked twin"""
    benchmark: str | None
    """what the second labelled set is called"""
    compute: torch.device
    """where torch scores and trains: a GPU if there is one"""
    estimate: Callable[[Plan], Measurement] | None = None
    """what a profile predicts of a plan, where that is wanted in place of what the device measures; nothing is exported
    then"""
    templates: Templates = field(default_factory=Templates)
    """what candidates of the search are written into"""
    tells: bool = True
    """the watcher hears of every new trial"""
    scores: bool = True
    """candidates are healed and scored; where their speed alone is wanted that would be most of the time"""
    sign: Callable[[bytes], bytes] | None = None
    """makes a bundle's signature out of its sums"""
    notes: list[str] = field(default_factory=list)
    predicted: dict[str, float] = field(default_factory=dict)
    """what the search expected of its candidates before they were measured, in ms, by plan key"""
    starts: dict[tuple[int, str], torch.nn.Module] = field(default_factory=dict)
    """what the fine-tuning of finalists begins with, by rung and plan key (`recipes.start`)"""
    probed: dict[int, int] = field(default_factory=dict)
    """single cuts scored on the host, beside the candidates, on each rung"""
    precision_gain: float = 1.0
    """times faster that the uncut model is in fewer bits, where they are asked for: cutting has to do the rest"""
    preprocessing_ms: float = 0.0
    """what an inference takes longer on the device with its preprocessing inside, which the search's networks lack"""
    climbed: list[dict[str, Any]] = field(default_factory=list)
    """what the rungs before this one came to, for the report"""
    stopwatch: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.folder, lambda: self.device.device_seconds)

    @property
    def baseline_trial(self) -> Trial:
        return self.journal.trials[0]

    @property
    def baseline(self) -> Baseline:
        return _baseline(self.baseline_trial)

    @property
    def trials(self) -> list[Trial]:
        """Of this rung's search, without trial 0."""
        return [t for t in self.journal.trials[1:] if t.rung == self.rung.number]

    @property
    def trials_before(self) -> list[Trial]:
        """Of the rungs before, without trial 0."""
        return [t for t in self.journal.trials[1:] if t.rung < self.rung.number]

    @property
    def candidates_spent_before(self) -> int:
        """By the rungs before this one."""
        return len(self.trials_before)

    @property
    def probes(self) -> int:
        """Single cuts scored on the host, beside the candidates."""
        return sum(self.probed.values())

    @property
    def candidates_spent(self) -> int:
        return max(0, len(self.journal.trials) - 1)  # trial 0, the uncut model, is free

    @property
    def device_seconds_spent(self) -> float:
        """Of all candidates; cached ones count as when they were measured, so that a repeated run ends where it did."""
        return sum(t.measurement.device_seconds for t in self.journal.trials if t.measurement)

    @property
    def best(self) -> Trial | None:
        met = [t for t in self.trials if t.score.feasible]
        return max(met, key=lambda t: t.score.reward, default=None)

    def promised(self, speedup: float) -> float:
        """What a speed-up that the search has seen comes to with the preprocessing inside."""
        return with_preprocessing(speedup, self.baseline, self.preprocessing_ms)

    def evaluate(self, plan: Plan) -> Trial:
        """The trial of a plan: the recorded one, else it is evaluated.

        Raises BudgetSpent instead of starting a candidate beyond the budget.
        """
        return self._within(plan, self._spent)

    def _within(self, plan: Plan, spent: Callable[[int], str | None]) -> Trial:
        if known := self._known(plan):
            return known
        if said := spent(0):
            raise BudgetSpent(said)
        return self.evaluated(plan)

    def evaluated(self, plan: Plan) -> Trial:
        """The recorded trial of a plan, else it is cut, healed, scored, exported, measured, rewarded and recorded.

        Whatever the budget; DeviceError passes through: it is nobody's reward.
        """
        if known := self._known(plan):
            return known
        return self._record(self._timed(self._prepared(plan)))

    def evaluate_all(
        self, plans: Iterable[Plan], *, spent: Callable[[int], str | None] | None = None
    ) -> Iterator[Trial]:
        """`evaluate`, one after the other, each candidate made while the board times the one before.

        The trials come in the order of the plans. On this machine nothing is made meanwhile: it would be seen in the
        figures. What a board says after an error here is not waited for. `spent` says what is used up, other than this
        run's budget, when so many candidates are still being timed.
        """
        spent = spent or self._spent
        if self.device.profile.source == "local":
            yield from (self._within(plan, spent) for plan in plans)
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="measure")
        waiting: Future[_Prepared] | None = None
        timing: str | None = None
        try:
            for plan in plans:
                new = plan.key != timing and self._find(plan) is None
                if new and not spent(1 if waiting else 0):
                    prepared = self._prepared(plan)
                    if waiting:
                        yield self._record(waiting.result())
                    waiting, timing = pool.submit(self._timed, prepared), plan.key
                    continue
                if waiting:
                    yield self._record(waiting.result())
                    waiting = None
                yield self._within(plan, spent)
            if waiting:
                yield self._record(waiting.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _find(self, plan: Plan) -> Trial | None:
        return self.journal.find(plan.key, rung=self.rung.number)

    def _known(self, plan: Plan) -> Trial | None:
        if known := self._find(plan):
            self.stopwatch.known()
        return known

    def _spent(self, waiting: int = 0) -> str | None:
        """What of the budget is used up, with candidates that are still being timed; `None` if nothing is."""
        rung = self.rung
        if self.candidates_spent + waiting >= rung.budget:
            return f"{rung.budget} candidates evaluated"
        if rung.device_seconds and self.device_seconds_spent >= rung.device_seconds:
            return f"{rung.device_seconds:g} device seconds used"
        return None

    def _prepared(self, plan: Plan) -> _Prepared:
        """A candidate up to its file, or to what it failed with; torch's work, all of it on this machine."""
        uncut = plan.key == self.space.uncut().key
        made = _Prepared(plan, self.folder.scratch(BASELINE if uncut else f"{plan.key}.onnx"), uncut)
        try:
            candidate = self.make_candidate(plan, made.seconds)
            made.parameters = candidate.parameters
            made.macs = space.count_macs(candidate.module, self.example)
            if self.scores:
                with timed(made.seconds, "score"):
                    made.quality = self.task.score(candidate.module, "search", limit=self.request.search_examples)
            if self.estimate is not None:
                made.measurement = self.estimate(plan)
            else:
                made.file = self.export(candidate.module, made.path, made.seconds, topology=plan.dropped)
        except CandidateError as error:
            made.failed(error)
        return made

    def _timed(self, made: _Prepared) -> _Prepared:
        """The same with what the device measured of it."""
        if made.file is None:
            return made
        artifact, outputs = made.file
        try:
            with timed(made.seconds, "measure"):
                mode = self._baseline_mode if made.uncut else self.request.search_mode
                made.measurement = self.measure(artifact, outputs, mode, alone=made.uncut, searching=True)
        except CandidateError as error:
            made.failed(error)
        finally:
            if not made.uncut:
                made.path.unlink(missing_ok=True)
        return made

    def _record(self, made: _Prepared) -> Trial:
        trial = Trial(
            number=len(self.journal.trials),
            plan=made.plan,
            quality=made.quality,
            parameters=made.parameters,
            macs=made.macs,
            artifact=made.file[0] if made.file else None,
            measurement=made.measurement,
            failure=made.failure,
            score=Score(reward=0.0, quality=1.0, feasible=False),
            seconds={k: round(v, 4) for k, v in made.seconds.items()},
            rung=0 if made.uncut else self.rung.number,
        )
        trial = replace(trial, score=self._score(trial, _baseline(trial) if made.uncut else self.baseline))
        self.journal.append(trial)
        self.stopwatch.evaluated()
        if self.tells:
            self.watcher.trial(trial, best=self.best, spent=self.candidates_spent, budget=self.rung.budget)
        return trial

    def make_candidate(self, plan: Plan, seconds: dict[str, float]) -> cut.Candidate:
        """Cut a plan, prove it equal to its masked twin, and heal what is left."""
        with timed(seconds, "cut"):
            candidate = self.parent.cut(plan)
        with timed(seconds, "check"):
            self.parent.check(candidate, self.probe_input)
        with timed(seconds, "recover"):
            if self.scores and plan.key != self.space.uncut().key:
                self.parent.heal(candidate)
        return candidate

    def export(
        self, module: torch.nn.Module, path: Path, seconds: dict[str, float], *, topology: Topology | None = None
    ) -> tuple[OnnxArtifact, dict[str, np.ndarray]]:
        """Write ONNX and hold it against torch; returns it with the outputs that the device has to reproduce.

        `topology`: of a candidate of the search, which may be written into the template of an earlier one. What is
        handed over is exported truly.
        """
        if self.compute.type != "cpu":
            module = copy.deepcopy(module).cpu()  # torch and ONNX Runtime are compared on the same processor
        sliced = None
        with timed(seconds, "export"):
            if topology is None:
                exporter.export(module, self.example, path)
            else:
                sliced = self.templates.export(module, self.example, path, topology)
        # other lengths than the timed one have to work, too
        others = () if isinstance(self.example, torch.Tensor) else (self.other_length,)
        try:
            with timed(seconds, "parity"):
                outputs, difference = parity.check(path, module, self.example, *others)
                if sliced is not None:
                    return sliced.describe(max_difference=difference), outputs
                return onnx_graph.describe(path, max_difference=difference), outputs
        except CandidateError as error:
            if sliced is None or topology is None or error.kind == "not_finite":
                raise
            truly = self.export(module, path, seconds)  # raises where the fault is the candidate's own
            self.templates.refuse(topology)
            return truly

    @property
    def other_length(self) -> Input:
        """One real input of another length than the example's, without padding."""
        return next(iter(self.task.batches("train", 1, limit=1)))[0]

    def measure(
        self,
        artifact: OnnxArtifact,
        outputs: dict[str, np.ndarray],
        mode: str,
        *,
        alone: bool = False,
        searching: bool = False,
        inputs: Mapping[str, np.ndarray] | None = None,
        reference: tuple[Path, str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> Measurement:
        """Time an exported candidate on the device, in turns with the uncut model (`alone`: without it).

        `inputs` and `reference` (a file and its sha256) in place of the example and the file that the search's
        candidates are timed with: those of a network as an app gets it, whose outputs may be off by `tolerance`.

        `searching`: take the figure of an earlier run for the same graph, so that the same seed finds the same plans
        again, and send a board the graph without its weights. What is claimed of finalists and the winner is measured
        now, with their own.
        """
        path = Path(artifact.path)
        bare = searching and not alone and self.device.profile.source != "local"
        return self.device.measure(
            path,
            model_sha256=artifact.sha256,
            graph_sha256=artifact.graph_sha256,
            reference=None if alone else reference or self._reference(),
            inputs=arrays(self.example, artifact) if inputs is None else inputs,
            expected=outputs,
            mode=mode,
            use_cache=searching,
            tolerance=tolerance,
            skeleton=skeleton.strip(path.read_bytes()) if bare else None,
            work=artifact.work,
            reference_ms=None if alone else self.baseline.latency_ms,
        )

    @property
    def _baseline_mode(self) -> str:
        """How thoroughly trial 0 is measured.

        Its own milliseconds count for a target in milliseconds, and on a board, where they show later whether it still
        is what it was. Where candidates are judged by ratios to it alone, a first look will do.
        """
        absolute = self.request.target.latency_ms is not None or self.device.profile.source != "local"
        return "verify" if absolute else self.request.search_mode

    def _reference(self) -> tuple[Path, str]:
        """The uncut model's file in this folder, and its hash; written again if somebody tidied it away."""
        path = self.folder.scratch(BASELINE)
        if not path.exists():
            self.export(self.loaded.module, path, {})
        return path, onnx_graph.sha256_of(path)

    def reward_of(self, trial: Trial) -> Score:
        """What a trial, also one of another run of the same network, is worth under this run's target."""
        return self._score(trial, self.baseline)

    def score_of(self, quality: Quality, like: Trial) -> Score:
        """What a network of this quality is worth that has the size and the speed of a trial's."""
        return self._score(replace(like, quality=quality), self.baseline)

    def _score(self, trial: Trial, baseline: Baseline) -> Score:
        measured = trial.measurement if trial.failure is None else None
        return reward.score(
            trial.quality,
            reward.judged_latency_ms(measured, baseline) if measured else None,
            measured.memory_mb if measured else None,
            baseline=baseline,
            target=self.rung.target,
            metric=self.task.metric,
            chance_loss=self.task.chance_loss,
        )


def _baseline(trial: Trial) -> Baseline:
    if trial.quality is None or trial.measurement is None or trial.parameters is None or trial.macs is None:
        raise UserError("The journal's first trial is not the uncut model; start a new run.")
    return Baseline(
        quality=trial.quality,
        latency_ms=trial.measurement.latency_ms.value,
        memory_mb=trial.measurement.memory_mb,
        parameters=trial.parameters,
        macs=trial.macs,
    )


def arrays(x: Input, artifact: OnnxArtifact) -> dict[str, np.ndarray]:
    """Arrays by name, those alone that the exported model takes."""
    taken = {spec.name for spec in artifact.inputs}
    return {name: tensor.numpy() for name, tensor in named(x).items() if name in taken}
