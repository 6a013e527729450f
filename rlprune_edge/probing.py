"""The spine, between trial 0 and the search: which widths pay on the board, and what single cuts cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlprune_edge.errors import CandidateError
from rlprune_edge.export import probes
from rlprune_edge.inputs import Input
from rlprune_edge.latency_profile import load_profile
from rlprune_edge.records import WidthTimes
from rlprune_edge.run import Run
from rlprune_edge.search import reward, staircase
from rlprune_edge.search import sensitivity as sensitivities

STAIRCASE = "staircase.json"
SENSITIVITY = "sensitivity.json"
PROBE_MACS = 50_000_000_000
"""of one sensitivity probe: as many examples as that makes, so that large models are probed in minutes, too"""
PROBE_EXAMPLES_LEAST, PROBE_EXAMPLES_MOST = 64, 500


def probe_widths(run: Run, profile: Path | str | None = None) -> tuple[WidthTimes, ...]:
    """The board's measured table of widths, or that of a profile.

    Kept in the run's folder, so that a resumed run sees the same stairs.
    """
    known = run.folder.read_json(STAIRCASE)
    if known is None and profile is not None:
        found_tables = load_profile(Path(profile), run.space)
        run.watcher.note(f"the widths that pay are those of {profile}, timed on {found_tables.device}")
        known = [{"groups": list(t.groups), "times_ns": t.times_ns} for t in found_tables.tables]
        run.folder.write_json(STAIRCASE, known)
    if known is None:
        run.watcher.stage("probing the device for the widths that pay")
        widths = {g.name: staircase.candidate_widths(g.width, run.request.step) for g in run.space.groups}
        found = probes.probes(run.space, widths)
        models = list(dict.fromkeys(model for probe in found for model in probe.models.values()))
        try:
            times = dict(zip(models, run.device.sweep(models), strict=True))
        except CandidateError as error:
            run.watcher.note(f"the device cannot run the probes ({error}); every 10 % step is offered instead")
            found = []
        known = [
            {"groups": list(p.groups), "times_ns": {str(w): p.scale * times[m] for w, m in p.models.items()}}
            for p in found
        ]
        run.folder.write_json(STAIRCASE, known)
    return tuple(
        WidthTimes(tuple(entry["groups"]), {int(w): float(t) for w, t in entry["times_ns"].items()}) for entry in known
    )


def probe_sensitivity(run: Run, *, most: int | None = None) -> sensitivities.Sensitivity:
    """What each single cut costs, scored on the host alone; kept in the run's folder like the staircase.

    At most `most` cuts (see `sensitivity.probes`).
    """
    kept = run.rung.named(SENSITIVITY)
    known = run.folder.read_json(kept)
    if known is None:
        cuts = sensitivities.probes(run.space, most=most)
        run.watcher.stage(f"sensitivity: {len(cuts)} single cuts, scored without the device")
        most = min(PROBE_EXAMPLES_MOST, run.request.search_examples or PROBE_EXAMPLES_MOST)
        count = min(most, max(PROBE_EXAMPLES_LEAST, PROBE_MACS // run.baseline.macs))
        calibration = list(_first(run.parent.calibration, count // 3))
        known = {"groups": {}, "blocks": {}, "examples": count}
        # the whole network with its statistics taken from the same inputs: what is compared is the cut alone
        whole = run.parent.cut(run.space.start())
        run.parent.heal(whole, calibration)
        uncut = run.task.score(whole.module, "search", limit=count).loss
        for number, (name, width, plan) in enumerate(cuts, start=1):
            probe = run.parent.cut(plan)
            run.parent.heal(probe, calibration)
            loss = run.task.score(probe.module, "search", limit=count).loss
            cost = 1.0 - reward.loss_quality(loss, uncut_loss=uncut, chance_loss=run.task.chance_loss)
            if width is None:
                known["blocks"][name] = cost
            else:
                known["groups"].setdefault(name, {})[str(width)] = cost
            if number % 10 == 0 or number == len(cuts):
                run.watcher.step("single cuts", number, len(cuts))
        run.folder.write_json(kept, known)
    run.probed[run.rung.number] = sum(len(widths) for widths in known["groups"].values()) + len(known["blocks"])
    groups = {name: {int(w): cost for w, cost in widths.items()} for name, widths in known["groups"].items()}
    return sensitivities.Sensitivity(groups, known["blocks"])


def _first(batches: list[Input], count: int) -> Iterator[Input]:
    for x in batches:
        if count > 0:
            yield x[:count]
        count -= len(x)
