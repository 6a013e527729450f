"""Ask the board's own tools (`vcgencmd`, `nvpmodel`), found on PATH, with a deadline on each answer."""

from __future__ import annotations

import shutil
import subprocess

DEADLINE_SECONDS = 2.0
_ANSWER_MAX = 65536
_PATIENCE = 3


class Programs:
    """Remembers which tool is not there or does not answer, so that a hanging one costs its deadline once."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._given_up: dict[str, str] = {}

    def ask(self, name: str, *words: str) -> str:
        """What the tool prints. Raises `OSError` if it is not there, does not answer in 2 s, or fails."""
        if name in self._given_up:
            raise OSError(self._given_up[name])
        path = self._paths.get(name) or shutil.which(name)
        if path is None:
            self._given_up[name] = f"{name} is not on PATH"
            raise OSError(self._given_up[name])
        self._paths[name] = path
        try:
            done = subprocess.run(
                [path, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=DEADLINE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self._given_up[name] = f"{name} did not answer within {DEADLINE_SECONDS:g} s"
            raise OSError(self._given_up[name]) from None
        text = done.stdout[:_ANSWER_MAX].decode("utf-8", "replace").replace("\0", "").strip()
        if done.returncode:
            self._failures[name] = self._failures.get(name, 0) + 1
            reason = f"{name} {' '.join(words)} failed ({done.returncode}): {text[:200]}"
            if self._failures[name] >= _PATIENCE:
                self._given_up[name] = reason
            raise OSError(reason)
        return text
