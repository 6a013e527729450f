"""Weight files that fit, that do not, and that are no weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import weights


def small(hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))


def refusal(module: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        weights.load(module, path, name="small")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    return str(caught.value)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    module, other = small(), small()
    weights.save(module, tmp_path / "deep" / "w.safetensors", about={"license": "MIT", "epochs": 3})
    weights.load(other, tmp_path / "deep" / "w.safetensors", name="small")
    assert torch.equal(module[0].weight, other[0].weight)
    assert weights.metadata(tmp_path / "deep" / "w.safetensors") == {"license": "MIT", "epochs": "3"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pickled_files_with_a_wrapper_and_a_prefix_are_read(tmp_path: Path, suffix: str) -> None:
    module, other = small(), small()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / f"w{suffix}")
    weights.load(other, tmp_path / f"w{suffix}", name="small")
    assert torch.equal(module[2].weight, other[2].weight)


def test_a_mismatch_names_the_tensors_of_each_kind(tmp_path: Path) -> None:
    wrong = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 2), *[nn.Linear(1, 1) for _ in range(5)])
    weights.save(wrong, tmp_path / "w.safetensors", about={})
    message = refusal(small(), tmp_path / "w.safetensors")
    assert "do not fit small" in message
    assert "4 missing: 1.weight, 1.bias, 1.running_mean, 1.running_var" in message
    assert "10 unexpected: 3." in message
    assert "and 6 more" in message
    assert "3 of another shape: 0.weight is 5x3 and should be 4x3" in message


def test_the_message_says_what_would_fit(tmp_path: Path) -> None:
    weights.save(small(5), tmp_path / "w.safetensors", about={})
    with pytest.raises(UserError, match=r"looks like large: try --model large\.$"):
        weights.load(small(), tmp_path / "w.safetensors", name="small", fits=lambda _: "large")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    whole = tmp_path / f"whole{Path(name).suffix}"
    if name.endswith(".pt"):
        torch.save(small().state_dict(), whole)
    else:
        weights.save(small(), whole, about={})
    (tmp_path / name).write_bytes(whole.read_bytes()[:150])
    assert "could not be read" in refusal(small(), tmp_path / name)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "module.pt")
    assert "could not be read" in refusal(small(), tmp_path / "module.pt")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pt")
    assert "does not hold a state_dict" in refusal(small(), tmp_path / "list.pt")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(small(), tmp_path / "none.safetensors") == f"There is no weight file {tmp_path / 'none.safetensors'}."
    )


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be saved"):
        weights.save(small(), tmp_path / "file" / "w.safetensors", about={})
