"""Full-size transformers with random weights: what is found, a 2x plan cut and measured, seconds of every stage.

    .venv/bin/python tools/bench/encoder_stages.py bert --data DIR          IMDB's folder
    .venv/bin/python tools/bench/encoder_stages.py wav2vec2 --data DIR      LibriSpeech's folder; 1, 5 and 15 s of audio

Uniform plans around the budget are tried until one is measured at 2x; weights do not change the latency.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.places import cache_dir
from rlprune_edge.progress import Silent
from rlprune_edge.records import Trial
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search import agents
from rlprune_edge.search.env import PruningEnv

STAGES = ("cut", "check", "recover", "score", "export", "parity", "measure")
CANDIDATES = 4
MODELS = {
    "bert": ("imdb", "bert-base-uncased:untrained", [("sequence_length", 128)]),
    "wav2vec2": ("librispeech", "wav2vec2-base:untrained", [("audio_seconds", s) for s in (1.0, 5.0, 15.0)]),
}


def bench(task: str, model: str, data: str, option: tuple[str, float]) -> None:
    words = {
        "task": task,
        "model": model,
        "data": data,
        "target_speedup": 2.0,
        "budget": CANDIDATES,
        "agent": "uniform",
    }
    request = requests.make({**words, option[0]: option[1], "search_examples": 16, "calibration_examples": 16})
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run", request)
        with prepared(request, folder, Silent(), cache_dir=cache_dir()) as (run, tables):
            ready = time.perf_counter() - began
            env = PruningEnv(run.space, run.evaluate, baseline=run.baseline, target=request.target, tables=tables)
            agents.search(request.agent, env, seed=0)
            trials, uncut, space = run.journal.trials[1:], run.baseline_trial, run.space
            met = [t for t in trials if t.score.feasible] or trials
            best = max(met, key=lambda t: t.parameters or 0)
            masked = run.parent.check(run.parent.cut(best.plan), run.probe_input)
    units = {unit: sum(g.unit == unit for g in space.groups) for unit in ("channel", "head", "neuron")}
    found = ", ".join(f"{count} of {unit}s" for unit, count in units.items() if count)
    say(f"\n### {model}, {run.task.measured}\n")
    say(f"{len(space.groups)} groups ({found}), {len(space.blocks)} removable blocks; ready after {ready:.0f} s\n")
    say(f"the cut network differs from its masked twin by {masked:.1e} of the largest output\n")
    say("| | uncut | cut |\n|---|---|---|")
    for title, before, after in rows(uncut, best):
        say(f"| {title} | {before} | {after} |")
    assert best.measurement is not None
    assert best.measurement.speedup is not None
    speedup = best.measurement.speedup
    say(f"\nspeed-up {speedup.value:.2f}x ({speedup.low:.2f} to {speedup.high:.2f}), mode {best.measurement.mode}")
    say(f"\n| {' | '.join(STAGES)} |\n|{'---|' * len(STAGES)}")
    say("| " + " | ".join(f"{best.seconds.get(stage, 0):.2f}" for stage in STAGES) + " |")


def rows(uncut: Trial, cut: Trial) -> list[tuple[str, str, str]]:
    def of(trial: Trial) -> list[str]:
        assert trial.measurement is not None
        assert trial.artifact is not None
        ms = trial.measurement.latency_ms
        return [
            f"{(trial.parameters or 0) / 1e6:.1f} M",
            f"{(trial.macs or 0) / 1e9:.2f} G",
            f"{ms.value:.1f} ({ms.low:.1f} to {ms.high:.1f})",
            f"{trial.measurement.memory_mb or 0:.0f} MB",
            f"{trial.artifact.bytes / 1e6:.0f} MB",
            f"{trial.artifact.max_difference:.1e}",
        ]

    titles = ("parameters", "multiply-accumulates", "latency, ms", "memory, peak", "ONNX file", "ONNX against torch")
    return list(zip(titles, of(uncut), of(cut), strict=True))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(MODELS))
    parser.add_argument("--data", required=True, help="folder (or hub id) of IMDB or LibriSpeech")
    asked = parser.parse_args()
    task, model, options = MODELS[asked.network]
    for option in options:
        bench(task, model, asked.data, option)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
