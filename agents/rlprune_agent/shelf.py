"""Where an app on a board finds its bundle: put a new one there whole, switch to it, go back. Sent as text, like
bootstrap.py, under the same rules: alone, Python 3.6, parameters and files on standard input, JSON lines as the answer.

    ~/rlprune-bundles/NAME/releases/<digest>-<n>/   bundles, each in a folder named after its SHA256SUMS
    ~/rlprune-bundles/NAME/current                 link to the one in use: what an app opens
    ~/rlprune-bundles/NAME/previous                link to the one before, for `rollback`
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional

SHELF = "rlprune-bundles"
PYTHON = ".local/share/rlprune-edge/venv/bin/python"
"""the agent's own, below the home folder: it has numpy and onnxruntime"""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_DIGEST = re.compile(r"[0-9a-f]{16}\Z")
_LINKS = ("current", "previous")
_GOLDEN_SECONDS = 300

Params = Dict[str, Any]


class Failed(Exception):
    """A step that could not be done; `kind` is `user` where whoever asked has to change something, else `board`."""

    def __init__(self, text: str, kind: str = "board") -> None:
        super().__init__(text)
        self.kind = kind


def tell(**line: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def place(params: Params) -> str:
    """The folder of all bundles of this name."""
    if not _NAME.match(params["name"]):
        raise Failed("{!r} is no name for a bundle on a board".format(params["name"]), "user")
    top = params.get("to") or os.path.join(os.path.expanduser("~"), SHELF)
    return os.path.join(os.path.expanduser(top), params["name"])


@contextlib.contextmanager
def held(folder: str) -> Iterator[None]:
    """Keep others away from the folder meanwhile; the lock ends with this process."""
    fd = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Failed(f"another bundle is being put into {folder} right now", "user") from None
    try:
        yield
    finally:
        os.close(fd)


def linked(folder: str, link: str) -> Optional[str]:
    """The release that a link leads to, `None` where there is none."""
    path = os.path.join(folder, link)
    if not os.path.islink(path):
        if os.path.lexists(path):
            raise Failed(f"{path} is not a link: somebody else's. Choose another name", "user")
        return None
    name = os.path.basename(os.readlink(path))
    return name if os.path.isdir(os.path.join(folder, "releases", name)) else None


def switch(folder: str, link: str, release: str) -> None:
    """Point a link at a release in one step: whoever opens it sees the old or the new, never nothing."""
    fresh = os.path.join(folder, f".{link}-{secrets.token_hex(4)}")
    os.symlink(os.path.join("releases", release), fresh)
    os.replace(fresh, os.path.join(folder, link))


def sync(folder: str) -> None:
    """What was renamed in a folder is to outlive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def state(folder: str) -> Dict[str, Any]:
    """Where the links lead, and what an app is to open."""
    found: Dict[str, Any] = {link: linked(folder, link) for link in _LINKS}
    return dict(found, path=os.path.join(folder, "current"))


def receive(files: List[Dict[str, Any]], folder: str, source: Any) -> None:
    """Store the files that follow the parameters, each checked against its size and sha256."""
    for entry in files:
        parts = entry["name"].split("/")
        if not all(_NAME.match(part) for part in parts):
            raise Failed("not a file of a bundle: {!r}".format(entry["name"]))
        path = os.path.join(folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sha256, left = hashlib.sha256(), entry["size"]
        with open(path, "wb") as file:
            while left:
                part = source.read(min(left, 1 << 20))
                if not part:
                    raise Failed("the file {} broke off".format(entry["name"]))
                file.write(part)
                sha256.update(part)
                left -= len(part)
            file.flush()
            os.fsync(file.fileno())
        if sha256.hexdigest() != entry["sha256"]:
            raise Failed("the file {} arrived damaged".format(entry["name"]))
        tell(say="{} ({} bytes)".format(entry["name"], entry["size"]))


def try_it(folder: str) -> Optional[str]:
    """Have the bundle repeat its first recorded example; what it said, `None` where the board has no Python for it."""
    python = os.path.join(os.path.expanduser("~"), PYTHON)
    if not os.path.exists(python):
        return None
    command = [python, "-B", os.path.join(folder, "predict.py"), "--golden", "0"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_GOLDEN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"the bundle did not answer within {_GOLDEN_SECONDS} s; the old one stays") from None
    words = done.stdout.decode("utf-8", "replace").strip()[-1000:]
    if done.returncode:
        raise Failed("the bundle does not give its recorded answer on this board; the old one stays: " + words)
    return words


def push(params: Params, source: Any) -> Dict[str, Any]:
    """Receive a bundle beside the others, check and try it, and only then switch to it."""
    folder, digest = place(params), params["digest"]
    if not _DIGEST.match(digest):
        raise Failed(f"not a digest: {digest!r}")
    release = f"{digest}-{secrets.token_hex(3)}"  # a new folder, even if the same bundle is in use now
    os.makedirs(os.path.join(folder, "releases"), exist_ok=True)
    with held(folder):
        before = state(folder)["current"]
        partial = os.path.join(folder, "releases", ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a push that broke off
        try:
            os.makedirs(partial)
            receive(params["files"], partial, source)
            said = try_it(partial)
            os.rename(partial, os.path.join(folder, "releases", release))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync(os.path.join(folder, "releases"))
        if before is not None and not before.startswith(digest):  # to go back to the same again would be no use
            switch(folder, "previous", before)
        switch(folder, "current", release)
        sync(folder)
        clear(folder)
        return dict(state(folder), tried=said)


def rollback(params: Params) -> Dict[str, Any]:
    """Switch to the bundle before, which stays to be switched back to."""
    folder = place(params)
    if not os.path.isdir(folder):
        raise Failed(f"there is no bundle at {folder}", "user")
    with held(folder):
        now = state(folder)
        if now["previous"] is None or now["previous"] == now["current"]:
            raise Failed(f"{folder} holds no earlier bundle to go back to", "user")
        switch(folder, "current", now["previous"])
        if now["current"] is not None:
            switch(folder, "previous", now["current"])
        sync(folder)
        return state(folder)


def clear(folder: str) -> None:
    """Delete the releases that no link leads to."""
    kept = [linked(folder, link) for link in _LINKS]
    for name in os.listdir(os.path.join(folder, "releases")):
        if name not in kept:
            shutil.rmtree(os.path.join(folder, "releases", name), ignore_errors=True)


Action = Callable[[Params, Any], Dict[str, Any]]
ACTIONS: Dict[str, Action] = {
    "push": push,
    "rollback": lambda params, _source: rollback(params),
}


def main(source: Any) -> int:
    """Do what the parameters ask for; the exit status."""
    os.umask(0o022)  # the app that opens the bundle may run under another login
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # see bootstrap.py
    params = json.loads(source.readline().decode("utf-8"))
    try:
        tell(done=ACTIONS[params["action"]](params, source))
        return 0
    except Failed as error:
        tell(failed=str(error), kind=error.kind)
    except OSError as error:
        tell(failed="{}: {}".format(error.filename or params["action"], error.strerror), kind="board")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
