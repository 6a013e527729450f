"""The task cifar10 on small folders in the hub's layout, and on the real images where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.images import Cifar10Task
from rlprune_edge.tasks.resnet import cifar_resnet, fixed_names
from rlprune_edge.tasks.task import SPLITS, LoadedModel
from rlprune_edge.tasks.training import Training


def load(task: Cifar10Task, name: str | None, tmp_path: Path, weights: Path | None = None) -> LoadedModel:
    return task.model(name, weights=weights, cache_dir=tmp_path / "cache")


def test_a_validation_split_is_halved_and_train_stays_whole(image_folder: Any) -> None:
    task = Cifar10Task(str(image_folder({"train": 60, "validation": 30, "test": 12})))
    assert [task.size(split) for split in SPLITS] == [60, 15, 15, 12]
    assert task.labels == ["red", "green", "blue"]
    assert task.tensors("search")[1].bincount().tolist() == [5, 5, 5]
    assert "the data set's own validation split steers the search (15 images)" in task.notes[0]
    assert "optimistic" not in task.notes[0]


def test_without_one_both_are_carved_from_train_and_the_note_says_so(image_folder: Any) -> None:
    folder = image_folder({"train": 90, "test": 12}, image="image")
    task, again = Cifar10Task(str(folder)), Cifar10Task(str(folder))
    assert [task.size(split) for split in SPLITS] == [72, 9, 9, 12]
    assert "Weights that were trained on all of train saw these images" in task.notes[0]
    pictures = [picture.flatten().tolist() for split in SPLITS[:3] for picture in task.tensors(split)[0]]
    stored = datasets.load_dataset(str(folder), split="train")
    whole = [np.asarray(row["image"]).transpose(2, 0, 1).flatten().tolist() for row in stored]
    assert sorted(pictures) == sorted(whole)
    assert all(torch.equal(task.tensors(split)[0], again.tensors(split)[0]) for split in SPLITS)


def test_what_an_app_is_told_to_do_gives_the_network_the_same_input(image_folder: Any) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    how = task.preprocessing
    raw = task.tensors("train")[0][0].double()
    expected = (raw * how["scale"] - torch.tensor(how["mean"]).view(3, 1, 1)) / torch.tensor(how["std"]).view(3, 1, 1)
    example = task.example_input()
    assert (str(example.dtype), list(example.shape)) == ("torch.float32", [1, 3, *how["size"]])
    assert torch.allclose(example[0].double(), expected, atol=1e-5)
    assert task.reads == {}


def test_grey_images_become_rgb_and_folders_of_classes_are_read(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "pictures" / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (32, 32), 40 * i).save(tmp_path / "pictures" / split / label / f"{i}.png")
    task = Cifar10Task(str(tmp_path / "pictures"))
    assert task.labels == ["cat", "dog"]
    assert task.tensors("test")[0][1].unique().tolist() == [40]


def test_training_here_is_possible_and_learns_three_colours(image_folder: Any, tmp_path: Path) -> None:
    task = Cifar10Task(str(image_folder({"train": 150, "validation": 30, "test": 12})))
    task.training = Training(epochs=9, batch_size=25, learning_rate=0.05, weight_decay=1e-4)
    loaded = load(task, "resnet20:train=2", tmp_path)
    assert loaded.source == "trained here, 2 epochs"
    assert task.score(loaded.module, "validation").loss < task.chance_loss
    assert task.reads["test"] == 0


def test_weights_of_another_depth_are_refused_with_the_one_that_fits(image_folder: Any, tmp_path: Path) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    module = cifar_resnet(32, num_classes=3)
    weight_files.save(module, tmp_path / "w.safetensors", about={"license": "MIT"})
    with pytest.raises(UserError, match=r"(?s)do not fit resnet20.*unexpected: layer.*try --model resnet32\."):
        load(task, "resnet20", tmp_path, tmp_path / "w.safetensors")
    loaded = load(task, "resnet32", tmp_path, tmp_path / "w.safetensors")
    assert (loaded.source, loaded.licence) == ("file w.safetensors", "MIT")


def test_published_files_need_not_hold_the_shortcut_kernels(image_folder: Any, tmp_path: Path) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    module = cifar_resnet(20, num_classes=3)
    published = {name: t for name, t in module.state_dict().items() if name not in fixed_names(module)}
    torch.save(published, tmp_path / "w.pt")
    loaded = load(task, None, tmp_path, tmp_path / "w.pt").module.eval()
    x = task.example_input()
    assert torch.equal(loaded(x), module.eval()(x))


def test_untrained_networks_say_so_and_are_the_same_every_time(image_folder: Any, tmp_path: Path) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    loaded, again = (load(task, "resnet20:untrained", tmp_path) for _ in range(2))
    assert "untrained" in loaded.description
    assert "the network is untrained" in loaded.notes[0]
    assert torch.equal(loaded.module(task.example_input()), again.module(task.example_input()))


def test_resnet50_has_a_cifar_stem_unless_the_other_is_named(image_folder: Any, tmp_path: Path) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    ours, imagenet = (load(task, f"{name}:untrained", tmp_path) for name in ("resnet50", "resnet50-imagenet-stem"))
    sizes = []
    for loaded in (ours, imagenet):
        loaded.module.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
        assert loaded.module(task.example_input()).shape == (1, 3)
    assert sizes == [(1, 64, 32, 32), (1, 64, 8, 8)]
    assert "CIFAR stem" in ours.description
    assert any("ImageNet stem" in note for note in imagenet.notes)


@pytest.mark.parametrize(
    ("name", "weights", "complaint"),
    [
        ("resnet18", None, "has no model 'resnet18'; it has resnet20, "),
        ("resnet20:train=0", None, "'0' is no number of epochs"),
        ("resnet56", None, r"resnet56 needs trained weights: --weights FILE.*resnet56:train .*30 epochs"),
        ("resnet20:untrained", "w.safetensors", "contradict each other: write --model resnet20"),
        ("resnet20", "absent.safetensors", "There is no weight file .*absent.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_explained(
    image_folder: Any, tmp_path: Path, name: str, weights: str | None, complaint: str
) -> None:
    task = Cifar10Task(str(image_folder({"train": 10, "test": 3})))
    with pytest.raises(UserError, match=complaint):
        load(task, name, tmp_path, tmp_path / weights if weights else None)


@pytest.mark.parametrize(
    ("splits", "changes", "complaint"),
    [
        ({"train": 5}, {}, "has no split test; it has train"),
        (
            {"train": 5, "test": 5},
            {"image": "photo"},
            "no data set of labelled images: it has the columns photo, label",
        ),
        ({"train": 5, "test": 5}, {"size": 28}, "image 0 is 28x28 pixels; this task takes 32x32"),
        ({"train": 5, "test": 5}, {"spoiled": True}, r"\(test\): image 0 of 5 could not be decoded"),
    ],
)
def test_data_of_another_layout_are_explained(
    image_folder: Any, splits: dict[str, int], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        Cifar10Task(str(image_folder(splits, **changes))).tensors("test")


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no data folder .*/nowhere"):
        Cifar10Task(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"does not hold a data set in the hub's layout .* Expected are parquet files"):
        Cifar10Task(str(tmp_path))


def test_without_a_network_the_message_names_the_folder_option() -> None:
    # In a process of its own: the hub's library reads the variable once, when it is imported.
    code = (
        "from rlprune_edge.tasks.images import Cifar10Task\n"
        "from rlprune_edge.errors import UserError\n"
        "try: Cifar10Task()\n"
        "except UserError as error: print(error)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    assert "uoft-cs/cifar10 is not a folder here and could not be fetched from the hub" in done.stdout
    assert done.stdout.strip().endswith("With a local copy in the same layout: --data DIR.")


def test_published_weights_reach_their_published_accuracy(real_data: Path, tmp_path: Path) -> None:
    task = Cifar10Task(str(real_data / "cifar10"))
    file = real_data / "weights" / "resnet20-cifar10" / "model.safetensors"
    module = load(task, "resnet20", tmp_path, file).module
    halves = [task.score(module, split) for split in ("search", "validation")]
    assert [half.examples for half in halves] == [1000, 1000]
    assert sum(half.metric for half in halves) / 2 == pytest.approx(91.65, abs=0.05)
    assert task.score(module, "test").metric == pytest.approx(91.37, abs=0.05)
    assert task.reads == {"search": 1, "validation": 1, "test": 1}
