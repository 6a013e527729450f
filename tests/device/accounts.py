"""An account on this machine, set up as one on a board is; onnxruntime and numpy are stand-ins."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from rlprune_agent import bootstrap
from rlprune_edge.device import setup, wheels
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.device.setup import Wanted
from rlprune_edge.device.shell import LocalShell

GOOD = "__version__ = '1.99.0'\n"
LINUX = load_profile("linux")


def wheel(folder: Path, package: str, source: str) -> Path:
    """The smallest wheel that pip accepts."""
    path = folder / f"{package}-1.99.0-py3-none-any.whl"
    info = f"{package}-1.99.0.dist-info"
    files = {
        f"{package}/__init__.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.99.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return path


class Account:
    """A home folder of its own on this machine, and a cache of ours."""

    def __init__(self, folder: Path) -> None:
        self.home, self.cache, self.index = (folder / name for name in ("home", "cache", "index"))
        for each in (self.home, self.index):
            each.mkdir()
        self.environment = {"HOME": str(self.home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        self.shell = LocalShell(self.environment)
        self.base = self.home / bootstrap.BASE
        self.said: list[str] = []

    def offers(self, onnxruntime: str = GOOD) -> None:
        """What pip finds, as the board is configured to, and what has been fetched for it here."""
        (self.home / ".config" / "pip").mkdir(parents=True, exist_ok=True)
        settings = f"[global]\nno-index = true\nfind-links = {self.index}\n"
        (self.home / ".config" / "pip" / "pip.conf").write_text(settings)
        for name, source in (("onnxruntime", onnxruntime), ("numpy", GOOD)):
            wheel(self.index, name, source)
        board = setup.look(self.shell)
        names = wheels.platforms(board["machine"], board["libc"])
        folder = "-".join(wheels.requirements(board["machine"], board["features"]))
        fetched = self.cache / "wheels" / f"cp{board['python_version']}-{names[0]}" / folder
        fetched.mkdir(parents=True, exist_ok=True)
        for path in self.index.iterdir():
            (fetched / path.name).write_bytes(path.read_bytes())

    def setup(self, wanted: Wanted) -> setup.Installed:
        self.said.clear()
        return setup.setup(self.shell, LINUX, wanted, cache_dir=self.cache, tell=self.said.append)

    def launcher(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.base / "bin" / "rlprune-edge-agent"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
