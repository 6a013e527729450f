"""What users install: the wheel holds all of it and works without the checkout."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlprune_edge.device.agent_zip import agent_zip

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unzipped wheel, built from this checkout."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = made.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def outside(unpacked: Path, cwd: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code that finds the wheel's packages first and the checkout not at all."""
    # An editable install puts the checkout on the path through site-packages, which -I leaves alone.
    elsewhere = (
        "import sys\n"
        f"checkout = {{{str(ROOT)!r}, {str(ROOT / 'agents')!r}}}\n"
        f"sys.path[:] = [{str(unpacked)!r}] + [p for p in sys.path if p not in checkout]\n"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", elsewhere + code], cwd=cwd, capture_output=True, text=True, check=False
    )


def metadata(unpacked: Path) -> Path:
    (folder,) = unpacked.glob("rlprune_edge-*.dist-info")
    return folder


def test_it_holds_every_module_of_both_packages_and_nothing_else(unpacked: Path) -> None:
    ours = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("rlprune_edge/**/*.py")}
    ours |= {p.relative_to(ROOT / "agents").as_posix() for p in ROOT.glob("agents/rlprune_agent/**/*.py")}
    assert {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*.py")} == ours
    assert {p.name for p in unpacked.iterdir()} == {"rlprune_edge", "rlprune_agent", metadata(unpacked).name}


def test_the_device_profiles_and_the_licence_travel_along(unpacked: Path) -> None:
    for profile in ROOT.glob("device_profiles/*.toml"):
        assert (unpacked / "rlprune_edge" / "device_profiles" / profile.name).read_bytes() == profile.read_bytes()
    assert (unpacked / "rlprune_edge" / "device_profiles" / "local.toml").is_file()
    units = sorted(ROOT.glob("agents/systemd/*"))
    assert [(unpacked / "rlprune_edge" / "systemd" / unit.name).read_bytes() for unit in units] == [
        unit.read_bytes() for unit in units
    ]
    assert len(units) == 3
    (licence,) = metadata(unpacked).rglob("LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


def test_both_commands_are_declared_and_can_be_found(unpacked: Path, tmp_path: Path) -> None:
    declared = configparser.ConfigParser()
    declared.read(metadata(unpacked) / "entry_points.txt")
    scripts = dict(declared["console_scripts"])
    assert set(scripts) == {"rlprune-edge", "rlprune-edge-agent"}
    for target in scripts.values():
        module, function = target.split(":")
        done = outside(
            unpacked,
            tmp_path,
            f"import {module}; print({module}.__file__); print(callable({target.replace(':', '.')}))",
        )
        assert done.stdout.split() == [str(unpacked / Path(*module.split(".")).with_suffix(".py")), "True"], done.stderr
        assert function == "main"


def test_it_lists_its_devices_far_from_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "sys.argv = ['rlprune-edge', 'device', 'list', '--json']\n"
        "import rlprune_edge\n"
        f"assert rlprune_edge.__file__.startswith({str(unpacked)!r}), rlprune_edge.__file__\n"
        "from rlprune_edge.__main__ import main\n"
        "raise SystemExit(main())\n"
    )
    done = outside(unpacked, tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert '"name": "local"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_agent_that_is_sent_to_boards_is_the_same_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom rlprune_edge.device.agent_zip import agent_zip\nprint(agent_zip(Path.cwd()))\n"
    )
    done = outside(unpacked, tmp_path, code)
    assert done.returncode == 0, done.stderr
    sent = Path(done.stdout.strip())
    assert sent.parent == tmp_path
    assert agent_zip(tmp_path / "checkout").read_bytes() == sent.read_bytes()
