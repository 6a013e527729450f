"""A pruned network on disk, as transformers writes it: loaded in another process it is the same network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
import reload_pruned  # tools/bench
from encoder_samples import encoder, inputs, parts

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained


@pytest.mark.parametrize("family", ["distilbert", "wav2vec2"])
def test_it_is_loaded_and_exported_in_a_new_process(family: str, tmp_path: Path) -> None:
    loaded, exported, largest = (float(word) for word in reload_pruned.differences(family, tmp_path))
    assert loaded < 1e-5 * max(1.0, largest)
    assert exported < 1e-4 * max(1.0, largest)
    assert largest > 0.05, "outputs of nothing would agree as well"


def test_its_configuration_carries_the_widths(tmp_path: Path) -> None:
    import numpy as np

    from rlprune_edge.prune import cut

    model, x = encoder("bert"), inputs("bert")
    groups, space = parts(model, x)
    plan = space.plan({"layer.0.heads": 2, "layer.2.neurons": 5}, ("layer.1", "layer.2.attention"))
    small = cut.apply(model, groups, {g.name: np.arange(g.width) for g in groups}, plan).module
    assert isinstance(small, pretrained.Encoder)
    pretrained.save(small, tmp_path / "small", {"tokenizer.json": b"{}"})
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert written["rlprune_edge"] == {
        "layers": [{"heads": 2, "neurons": 64}, {"heads": 0, "neurons": 0}, {"heads": 0, "neurons": 5}],
        "channels": [],
    }
    assert written["architectures"] == ["BertForSequenceClassification"]
    assert written["num_hidden_layers"] == 3
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == b"{}"
    assert getattr(model.network.config, "rlprune_edge", None) is None, "the network in hand is left as it was"


def test_a_folder_whose_widths_are_not_its_weights_is_refused(tmp_path: Path) -> None:
    pretrained.save(encoder("bert"), tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    config["rlprune_edge"]["layers"][0]["heads"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not fit"):
        pretrained.load(tmp_path, "classifier")
