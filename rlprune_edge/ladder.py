"""The spine, part 2a: cut, fine-tune and cut again, in rungs towards the target, with what was learned carried over.

Everything speaks of the uncut model: plans, latencies (each candidate is timed in turns with it), rewards, and the
teacher of fine-tuning. A rung changes what candidates are cut from, and that nothing wider is offered. So the latency
model and the policy of one rung serve the next as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from rlprune_edge import finalists, parents, rungs
from rlprune_edge.errors import UserError
from rlprune_edge.export.templates import Templates
from rlprune_edge.finalists import Winner
from rlprune_edge.records import Plan, PruningSpace, Trial
from rlprune_edge.report_words import target_words
from rlprune_edge.run import Run
from rlprune_edge.search.reward import scored_part
from rlprune_edge.search.warm_start import known_from

END = "rung.json"


def climb(run: Run, search: Callable[[], None]) -> None:
    """Search all rungs of the run, fine-tuning between them; the last one's finalists are left to `deliver`.

    A resumed run comes to the same rung in seconds: by the journal, the checkpoints of fine-tuning, and what was
    written of each rung's end. The last is no mere convenience: finalists are timed anew, and another one that is
    found fast enough the second time would leave a network that the next rung's trials were not cut from.
    """
    for rung in rungs.rungs(run.request, run.baseline, run.precision_gain, run.preprocessing_ms):
        run.rung = rung
        words = target_words(asdict(rung.contained))
        if rung.of > 1:
            run.watcher.stage(f"rung {rung.number + 1} of {rung.of}: {words}")
        search()
        if rung.last:
            return
        end, module = _end(run)
        run.notes += [note for note in end["notes"] if note not in run.notes]
        reached = {"rung": rung.number + 1, "target": words, "candidates": len(run.trials)}
        run.climbed.append(reached | end["figures"])
        if module is None:
            run.notes.append(f"rung {rung.number + 1} of the ladder found nothing that is {words}; the next began anew")
            continue
        try:
            _stand_on(run, _trial(run, end).plan, module)
        except UserError as error:
            run.notes.append(f"the ladder ended with rung {rung.number + 1}, since {error}")
            run.watcher.note(run.notes[-1])


def _end(run: Run) -> tuple[dict[str, Any], torch.nn.Module | None]:
    """How this rung ended, as its file says or will say, and the trained network that it leaves, if any."""
    kept = run.rung.named(END)
    end: dict[str, Any] | None = run.folder.read_json(kept)
    if end is not None:
        return end, finalists.fine_tuned(run, _trial(run, end))[0] if end["number"] is not None else None
    said = len(run.notes)
    winner, histories = finalists.choose(run)
    end = {
        "number": winner.trial.number if winner else None,
        "figures": _figures(winner, histories) if winner else {},
        "notes": run.notes[said:],
    }
    run.folder.write_json(kept, end)
    return end, winner.module if winner else None


def _trial(run: Run, end: dict[str, Any]) -> Trial:
    number: int = end["number"]
    return run.journal.trials[number]


def known(run: Run) -> tuple[tuple[Plan, float], ...]:
    """What the rung before has found of plans that can still be come to, moved by what its fine-tuning has gained.

    As (plan, `reward.scored_part`) each; nothing where this rung begins with the uncut model.
    """
    start = run.space.start()
    first = next((t for t in run.trials_before if t.plan.key == start.key and t.rung == run.rung.number - 1), None)
    if first is None:
        return ()
    target = run.rung.target
    trained = run.task.score(run.parent.module, "search", limit=run.request.search_examples)
    gained = scored_part(run.score_of(trained, first), target) - scored_part(run.reward_of(first), target)
    found = known_from([t for t in run.trials_before if t.rung == first.rung], run.reward_of, target)
    return tuple((inside, value + gained) for plan, value in found if (inside := _inside(plan, run.space)) is not None)


def _inside(plan: Plan, space: PruningSpace) -> Plan | None:
    """A plan as this space writes it, `None` where it keeps something that the space no longer has."""
    kept = {g.name: plan.widths[g.name] for g in space.groups if g.block not in plan.dropped}
    wider = any(kept.get(g.name, 0) > g.levels[0] for g in space.groups)
    return None if wider or not set(plan.dropped) >= set(space.removed) else space.plan(kept, plan.dropped)


def _stand_on(run: Run, plan: Plan, module: torch.nn.Module) -> None:
    """Candidates are cut from this plan's network from here on. Raises UserError where that cannot be done."""
    run.parent = parents.next_of(
        run.parent, module, plan, request=run.request, task=run.task, space=run.space, x=run.example
    )
    run.space = run.space.from_rung(plan)
    run.templates = Templates()


def _figures(winner: Winner, histories: list[dict[str, Any]]) -> dict[str, Any]:
    measured = winner.measurement
    return {
        "number": winner.trial.number,
        "plan_key": winner.trial.plan.key,
        "speedup": measured.speedup.value if measured.speedup else None,
        "speedup_ci": [measured.speedup.low, measured.speedup.high] if measured.speedup else None,
        "latency_ms": measured.latency_ms.value,
        "memory_mb": measured.memory_mb,
        "mode": measured.mode,
        "validation_metric": winner.quality.metric,
        "epochs": sum(len(h["epochs"]) for h in histories),
    }
