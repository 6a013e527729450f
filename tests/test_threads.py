"""How PyTorch's threads wait for each other: they share a machine with the rest of the work."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CHOICES = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings GNU's OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("chosen", "turns"),
    [({}, 10000), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)],
    ids=["nothing", "turns", "policy"],
)
def test_they_spin_for_a_moment_unless_the_user_has_chosen(chosen: dict[str, str], turns: int) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    said = subprocess.run(
        [sys.executable, "-c", "import rlprune_edge, torch"],
        env=clean | chosen | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\d+)'", said) == [str(turns)], said
