"""Models of real size with random weights, as ONNX files, for the benchmarks beside this file.

bert (12 layers), bert-2 (two) and wav2vec2 need one package more: `pip install -c constraints.txt transformers`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlprune_edge.export import torch_export
from rlprune_edge.inputs import SINGLE
from rlprune_edge.tasks.resnet import cifar_resnet
from rlprune_edge.tasks.torchvision_models import import_torchvision, resnet50

Feeds = dict[str, np.ndarray]


def build(name: str, path: Path) -> Feeds:
    """Write the model with random weights (and plausible batch statistics) to `path`; inputs for it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name in ("bert", "bert-2", "wav2vec2"):
        return transformer(name, path, rng)
    module, side = {
        "resnet20": lambda: (cifar_resnet(20), 32),
        "resnet56": lambda: (cifar_resnet(56), 32),
        "resnet50": lambda: (resnet50(stem="imagenet", num_classes=1000), 224),
    }[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    torch_export.export(module.eval(), torch.zeros(1, 3, side, side), path)
    return {SINGLE: rng.standard_normal((1, 3, side, side), dtype=np.float32)}


def transformer(name: str, path: Path, rng: np.random.Generator) -> Feeds:
    import_torchvision()  # in the way that works beside a CPU torch; transformers would fail over it
    import transformers  # no dependency of the product's yet

    if name.startswith("bert"):
        layers = 2 if name == "bert-2" else 12
        config = transformers.BertConfig(num_hidden_layers=layers, attn_implementation="eager")
        module = transformers.BertModel(config)
        ids = rng.integers(1000, config.vocab_size, (1, 128))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    else:
        module = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(attn_implementation="eager"))
        feeds = {"input_values": rng.standard_normal((1, 16000), dtype=np.float32)}
    module.config.return_dict = False
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(value) for value in feeds.values()),
            str(path),
            dynamo=False,
            opset_version=torch_export.OPSET,
            input_names=list(feeds),
            output_names=["output"],
        )
    return feeds
