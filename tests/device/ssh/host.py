"""This machine with a configuration of its own, and a loopback board that it may add, as a user would."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from device.ssh.board import LoopbackBoard
from typer.testing import CliRunner, Result

from rlprune_edge.cli import app
from rlprune_edge.device import boards, profiles, setup, wheels
from rlprune_edge.device.board import Board
from rlprune_edge.device.shell import LocalShell

NAME = "attic"

# A board of that kind would be idle; the machine of these tests is not, and that is no reason to refuse its figures.
NEVER_IDLE = "[limits]\nload_percent = 6400\nmax_clock_loss = 0.99\n"


def repacked(package: str, folder: Path) -> None:
    """The wheel that `package` was installed from here, as far as it is needed."""
    found = importlib.metadata.distribution(package)
    with zipfile.ZipFile(folder / f"{package}-{found.version}-none-none-any.whl", "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc" and "tests" not in file.parts:
                archive.write(str(file.locate()), str(file))


class Host:
    """This machine, with a configuration and a cache of its own, and the board it may add."""

    def __init__(self, board: LoopbackBoard, folder: Path) -> None:
        self.board = board
        self.config, self.cache = folder / "config", folder / "cache"
        self.ssh_config = board.empty_config()
        self.profile = folder / "never-idle.toml"
        self.profile.write_text((profiles._folder() / "linux.toml").read_text() + NEVER_IDLE)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["device", *words])

    def add(self, *words: str) -> Result:
        host = f"{self.board.user}@{self.board.host}"
        where = ["--host", host, "--port", str(self.board.port), "--ssh-config", str(self.ssh_config)]
        return self.run("add", NAME, "--profile", str(self.profile), *where, *words)

    @property
    def station(self) -> Board:
        found = boards.load_device(NAME, cache_dir=self.cache)
        assert isinstance(found, Board)
        return found

    def has_wheels(self) -> None:
        """Put the packages of this very environment where those that were fetched for such a board lie."""
        about = setup.look(LocalShell())
        version, platform = about["python_version"], wheels.platforms(about["machine"], about["libc"])[0]
        names = wheels.requirements(about["machine"], about["features"])
        folder = self.cache / "wheels" / f"cp{version}-{platform}" / "-".join(names)
        folder.mkdir(parents=True)
        for package in wheels.PACKAGES:
            repacked(package, folder)


@contextlib.contextmanager
def a_host(folder: Path) -> Iterator[Host]:
    """A fresh one with a fresh board; the product finds its configuration and cache in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        with LoopbackBoard(folder / "board") as board:
            host = Host(board, folder)
            patch.setenv("RLPRUNE_CONFIG", str(host.config))
            patch.setenv("RLPRUNE_CACHE", str(host.cache))
            yield host
