"""Finding a task or a network by name, and saying what is wrong where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlprune_edge.errors import UserError
from rlprune_edge.tasks.catalog import TASKS, load_own_model, load_task
from rlprune_edge.tasks.digits import DigitsTask
from rlprune_edge.tasks.task import Task

MODULE = """
import torch
from rlprune_edge.errors import UserError
from rlprune_edge.tasks.arrays import InMemoryTask
from rlprune_edge.tasks.digits import DigitsTask

NUMBER = 3
def digits(seed, cache_dir): task = DigitsTask(); task.given = (seed, cache_dir.name); return task
def with_data(data=None, **others): task = DigitsTask(); task.given = (data, sorted(others)); return task
def nothing(): pass
def fails(): return {}["key"]
def refuses(): raise UserError("not today")
class Half(InMemoryTask):
    name = "half"
def nameless(): return type("Nameless", (InMemoryTask,), {"tensors": None, "model": None})()
def linear(outputs=10): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs))
def seeded(weights, seed): net = linear(); net.given = (weights.name, seed); return net
def narrow(): return linear(7)
def wrong_input(): return torch.nn.Linear(5, 10)
def pairs(): return Pair()
class Pair(torch.nn.Module):
    def forward(self, x): return x, x
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's in the current folder."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def load(name: str, data: str | None = None) -> Task:
    return load_task(name, data=data, seed=5, cache_dir=Path("cache"))


def test_the_default_task_is_found() -> None:
    assert isinstance(load("digits"), DigitsTask)
    assert set(TASKS) == {"digits", "cifar10", "imdb", "librispeech", "toy-text", "toy-speech"}


def test_a_factory_in_the_current_folder_gets_what_it_names(mine: str) -> None:
    assert load(f"{mine}:digits").given == (5, "cache")  # type: ignore[attr-defined]
    assert load(f"{mine}:with_data", "a/folder").given == ("a/folder", ["cache_dir", "seed"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "digit",
            r"no task 'digit'\. Did you mean digits\? There are digits, cifar10, imdb, .*toy-speech, and your own",
        ),
        ("sound", r"no task 'sound'\. There are digits, cifar10"),
        ("./tasks/mine.py:make", r"write --task tasks\.mine:make"),
        ("mine:", "is no package.module:factory"),
        ("nowhere:make", r"no module nowhere in the current folder \(/"),
        ("nowhere.deep:make", "no module nowhere in"),
        ("needy:make", "needy imports not_installed_anywhere, which is not installed"),
        ("broken:make", r"broken could not be imported: ZeroDivisionError: .*broken\.py, line 1\)"),
        ("MINE:digit", r"has no digit\. Did you mean digits\?"),
        ("MINE:NUMBER", "NUMBER is an object of type int, not a function or class"),
        ("MINE:nothing", r"returned nothing, which is no task: .*derived from rlprune_edge\.tasks\.task\.Task"),
        ("MINE:fails", r"fails failed: KeyError: 'key' \(.*line 11\)"),
        ("MINE:refuses", "^not today$"),
        ("MINE:Half", r"Half failed: TypeError: .*abstract.* model.* tensors"),
        ("MINE:nameless", r"lacks name, metric, preprocessing, chance_loss; set them in Nameless"),
    ],
)
def test_what_is_no_task_is_explained(mine: str, name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load(name.replace("MINE", mine))


def test_data_for_a_task_that_brings_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="Task digits brings its own data and takes no --data"):
        load("digits", "some/folder")


def test_an_own_network_is_tried_and_may_load_its_own_weights(mine: str) -> None:
    task = DigitsTask()
    loaded = load_own_model(f"{mine}:linear", task=task, weights=None, seed=5, cache_dir=Path("cache"))
    assert loaded.module(task.example_input()).shape == (1, 10)
    assert (loaded.source, loaded.module.training) == (f"weights from {mine}:linear", False)
    told = load_own_model(f"{mine}:seeded", task=task, weights=Path("w.pt"), seed=5, cache_dir=Path("cache"))
    assert told.module.given == ("w.pt", 5)


def test_weights_are_loaded_into_an_own_network(mine: str, tmp_path: Path) -> None:
    from rlprune_edge.tasks import weights

    task = DigitsTask()
    args = {"task": task, "seed": 0, "cache_dir": tmp_path}
    first = load_own_model(f"{mine}:linear", weights=None, **args).module
    weights.save(first, tmp_path / "w.safetensors", about={})
    second = load_own_model(f"{mine}:linear", weights=tmp_path / "w.safetensors", **args)
    assert second.source == "file w.safetensors"
    assert bool((first(task.example_input()) == second.module(task.example_input())).all())


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("NUMBER", "--model .*NUMBER is an object of type int"),
        ("nothing", r"returned nothing; it has to return a torch\.nn\.Module"),
        ("narrow", "has 7 outputs; task digits has 10 labels"),
        ("wrong_input", r"does not take the inputs of task digits, \(1, 1, 8, 8\): mat1 and mat2"),
        ("pairs", "returns an object of type tuple; it has to return one tensor"),
    ],
)
def test_what_is_no_network_is_explained(mine: str, factory: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_own_model(f"{mine}:{factory}", task=DigitsTask(), weights=None, seed=0, cache_dir=Path("cache"))


def test_the_catalog_imports_no_torch() -> None:
    code = "import sys, rlprune_edge.tasks.catalog; print(sorted({'torch', 'sklearn', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
