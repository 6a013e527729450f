"""Host seconds of one candidate's file: exported truly, and written into a template, in one run.

    .venv/bin/python tools/bench/slice_export.py [resnet56 resnet50 bert] [--cpu]

Weights are random. Every candidate has widths (half to all of each group) and dropped blocks (each with a chance of
one in four) of its own, and its BatchNorm statistics or linear layers change as if it had been healed. Both files are
written, one after the other, and compared: bytes, hash of the graph, least work, outputs of ONNX Runtime. `export` is
the true one, medians are of the candidates that were not needed as examples. `describe` is what follows on the file:
validity, hashes, least work.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlprune_edge.export import exporter, host, onnx_graph
from rlprune_edge.export.templates import Templates
from rlprune_edge.inputs import Input, Inputs, named
from rlprune_edge.prune import cut, structure
from rlprune_edge.prune import space as spaces
from rlprune_edge.tasks.pretrained import Encoder
from rlprune_edge.tasks.resnet import cifar_resnet
from rlprune_edge.tasks.torchvision_models import resnet50

CANDIDATES = 20


def image_network(make: Callable[[], nn.Module]) -> tuple[nn.Module, Input]:
    return make(), torch.randn(1, 3, 32, 32)


def small_bert() -> tuple[nn.Module, Input]:
    import transformers  # after tasks.pretrained, which makes it importable

    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    network = transformers.BertForSequenceClassification._from_config(config, attn_implementation="eager")
    for weight in network.parameters():
        weight.data += 0.02 * torch.randn_like(weight)  # trained weights are never equal, those of a new network are
    ids = torch.randint(1000, 20000, (1, 128))
    return Encoder(network), Inputs({"input_ids": ids, "attention_mask": 0 * ids + 1, "token_type_ids": 0 * ids})


MODELS: dict[str, Callable[[], tuple[nn.Module, Input]]] = {
    "resnet56": lambda: image_network(lambda: cifar_resnet(56)),
    "resnet50": lambda: image_network(lambda: resnet50(stem="cifar", num_classes=10)),
    "bert": small_bert,
}


def healed(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
        elif isinstance(layer, nn.Linear):
            layer.weight.data *= 1 + 0.01 * torch.rand_like(layer.weight)
    return module


def bench(name: str, folder: Path, clock: Callable[[], float]) -> list[str]:
    torch.manual_seed(0)
    rng = random.Random(0)
    model, x = MODELS[name]()
    model.eval()
    groups, _ = structure.find_groups(model, x)
    space = spaces.build(model, x, groups)
    ranking = {g.name: np.arange(g.width) for g in groups}
    templates, times, sizes, same = Templates(), [], [], 0
    for number in range(CANDIDATES):  # the first is uncut, as in a run
        widths = {g.name: rng.randint(-(-g.width // 2), g.width) for g in space.groups}
        dropped = tuple(b.name for b in space.blocks if not b.parts and rng.random() < 0.25)
        plan = space.plan(widths, dropped) if number else space.uncut()
        module = healed(cut.apply(model, groups, ranking, plan).module)
        true, mine = folder / "true.onnx", folder / "mine.onnx"
        t0 = clock()
        exporter.export(module, x, true)
        t1 = clock()
        first = onnx_graph.describe(true, max_difference=0.0)
        t2 = clock()
        sliced = templates.export(module, x, mine, plan.dropped)
        t3 = clock()
        if sliced is None:
            continue
        second = sliced.describe(max_difference=0.0)
        t4 = clock()
        assert second.work == first.work
        feeds = {key: tensor.numpy() for key, tensor in named(x).items()}
        got, expected = host.outputs(mine, feeds), host.outputs(true, feeds)
        same += (
            mine.read_bytes() == true.read_bytes()
            and second.graph_sha256 == first.graph_sha256
            and all(np.array_equal(got[key], expected[key]) for key in expected)
        )
        times.append((t1 - t0, t2 - t1, t3 - t2, t4 - t3))
        sizes.append(len(mine.read_bytes()) / 1e6)
    export, described, slicing, redescribed = (statistics.median(stage) for stage in zip(*times, strict=True))
    ratio = statistics.median(t[0] / t[2] for t in times)
    both = statistics.median((t[0] + t[1]) / (t[2] + t[3]) for t in times)
    return [
        name,
        f"{statistics.median(sizes):.2f}",
        *(f"{1000 * seconds:.1f}" for seconds in (export, slicing)),
        f"{ratio:.0f}x",
        *(f"{1000 * seconds:.1f}" for seconds in (described, redescribed)),
        f"{both:.0f}x",
        str(CANDIDATES - len(times)),
        f"{same} of {len(times)}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor: for a machine that is not quiet")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu else time.perf_counter
    head = [
        "model",
        "MB",
        "export, ms",
        "sliced, ms",
        "ratio",
        "describe, ms",
        "of sliced, ms",
        "both",
        "examples",
        "identical",
    ]
    sys.stdout.write("| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models:
            sys.stdout.write("| " + " | ".join(bench(name, Path(folder), clock)) + " |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
