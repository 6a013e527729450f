"""A network in fp32, int8 (static and dynamic) and fp16: latency with its interval, size, metric; what is chosen.

    .venv/bin/python tools/bench/precision.py --task cifar10 --data DIR --model resnet56 --weights FILE
    .venv/bin/python tools/bench/precision.py --task imdb --data DIR --model FOLDER [--device pi4]

What `--precision auto` does with a fine-tuned network, done to the uncut one; mode verify, in turns with fp32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from rlprune_edge import deployment, precisions
from rlprune_edge import request as requests
from rlprune_edge.compress import opened
from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.places import cache_dir
from rlprune_edge.precisions import FP32, Variant
from rlprune_edge.report_words import Figures, milliseconds, size
from rlprune_edge.run_folder import RunFolder


def bench(words: Figures, mode: str) -> None:
    request = requests.make({k: v for k, v in words.items() if v is not None} | {"precision": "auto", "prior": False})
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run", request)
        watcher = ConsoleWatcher(Console(stderr=True, highlight=False))
        with watcher, opened(request, folder, watcher, cache_dir=cache_dir()) as run:
            quality = run.task.score(run.loaded.module, "validation")
            ready = deployment.deployed(run, run.loaded.module)
            fp32 = Variant(FP32, ready, run.loaded.module, quality, deployment.measured(run, ready, mode))
            best, tried = precisions.choose(run, run.loaded.module, fp32, quality, mode=mode)
            metric, source = run.task.metric, run.baseline_trial.measurement
        folder.close()
    where = f"{request.device} ({source.source if source else '-'})"
    what = f"{run.loaded.description}, {run.task.measured or 'one example'}"
    say(f"\n{what}; {where}, mode {mode}; auto chooses {best.name}\n")
    say(f"| precision | latency (95 % interval) | speed-up | {metric.name}, validation | ONNX file | |\n{'|---' * 6}|")
    for row in precisions.table(tried):
        ends, factor = row["latency_ci_ms"], row["speedup"]
        latency = f"{milliseconds(row['latency_ms'])} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "-"
        ratio = f"{factor:.2f} ({row['speedup_ci'][0]:.2f} to {row['speedup_ci'][1]:.2f})" if factor else "-"
        scored = "-" if row["validation_metric"] is None else f"{row['validation_metric']:.2f} {metric.unit}"
        words = "; ".join(filter(None, ("used" if row["kept"] else row["why"], row["details"])))
        say(f"| {row['precision']} | {latency} | {ratio} | {scored} | {size(row['onnx_bytes'])} | {words} |")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("task", "model", "weights", "data", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--mode", default="verify")
    asked = vars(parser.parse_args())
    bench(asked, asked.pop("mode"))


if __name__ == "__main__":
    main()
