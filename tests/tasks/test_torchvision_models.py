"""ResNet-50 as torchvision builds it, beside a torch that torchvision's extension does not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlprune_edge.tasks.torchvision_models import import_torchvision, resnet50


@pytest.mark.parametrize(("stem", "parameters"), [("cifar", 23_520_842), ("imagenet", 23_528_522)])
def test_resnet50_has_its_known_size(stem: str, parameters: int) -> None:
    assert sum(p.numel() for p in resnet50(stem=stem, num_classes=10).parameters()) == parameters  # type: ignore[arg-type]


def test_importing_twice_gives_the_same_package() -> None:
    assert import_torchvision() is import_torchvision()


def test_a_missing_torchvision_is_the_users_to_install() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from rlprune_edge.errors import UserError\n"
        "from rlprune_edge.tasks.torchvision_models import resnet50\n"
        "try: resnet50(stem='cifar', num_classes=10)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchvision cannot be used with torch" in done.stdout
    assert "torchvision 0.28.0" in done.stdout
