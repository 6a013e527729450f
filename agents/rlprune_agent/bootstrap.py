"""What a board is asked before it has an agent: look, install, remove. Sent as text and run by `python3 -I -c`.

It runs alone, imports nothing of its neighbours, and its syntax is Python 3.6, because the sentence about too old a
Python has to come from that Python. Its input is one line of JSON, the parameters, and then the files they announce; it
answers with lines of JSON: {"say": ...} while it works, {"done": ...} or {"failed": ..., "kind": ...} at the end.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PYTHON_LEAST = (3, 8)
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.8")
BASE = ".local/share/rlprune-edge"
SYSTEM_HOME = "/var/lib/rlprune-edge"
SYSTEM_USER = "rlprune"
UNIT = "rlprune-edge-agent.service"
USER_UNITS = ".config/systemd/user"
SYSTEM_UNITS = "/etc/systemd/system"
MARK = "setup.lock"
"""the file that says that a folder is the agent's home and all of it ours; whoever works there holds a lock on it"""
LINGERS = "lingers"
"""the file that says that it was us who had the login's services outlive its sessions"""
# onnxruntime 1.31 and later send usage data to their maker, and keep an id of the device in the user's cache folder,
# unless they are told not to before they are imported. A board that measures has nothing to say to anybody else.
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
LAUNCHER = """#!/bin/sh
home=$(dirname "$(dirname "$(readlink -f "$0")")")
export {}={}
exec "$home/venv/bin/python" "$home/current" "$@"
""".format(*NO_TELEMETRY)


Params = Dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,200}\Z")
_ABOUT_PYTHON = (
    "import importlib.util as u, json, struct, sys; print(json.dumps({'version': '%d.%d' % sys.version_info[:2], "
    "'bits': struct.calcsize('P') * 8, 'venv': u.find_spec('venv') is not None, "
    "'ensurepip': u.find_spec('ensurepip') is not None}))"
)
_ABOUT_PACKAGES = (
    "import json, numpy, onnxruntime; "
    "print(json.dumps({'onnxruntime': onnxruntime.__version__, 'numpy': numpy.__version__}))"
)


class Failed(Exception):
    """A step that could not be done; `kind` is `user` where whoever asked has to change something, else `board`."""

    def __init__(self, text: str, kind: str = "board") -> None:
        super().__init__(text)
        self.kind = kind


def tell(**line: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def run(command: List[str], seconds: float, **settings: Any) -> Tuple[int, str]:
    """Exit status and the end of what a program said; it and all it started are killed after `seconds`."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **settings,
        )
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 124, f"{os.path.basename(command[0])} did not finish within {seconds:.0f} s"
    return process.returncode, output.decode("utf-8", "replace").strip()[-3000:]


def read(path: str) -> Optional[str]:
    """The text of a small file, `None` where there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 16).replace("\0", " ").strip()
    except OSError:
        return None


def base(params: Params) -> str:
    """The agent's home as everything refers to it."""
    return SYSTEM_HOME if params.get("system") else os.path.join(os.path.expanduser("~"), BASE)


# ---------------------------------------------------------------------------------------------------- looking


def pythons() -> Tuple[Optional[str], Dict[str, Any]]:
    """The first Python that is new enough, and what it says of itself; `(None, ...)` about `python3` if none is."""
    first: Dict[str, Any] = {}
    for name in PYTHONS:
        path = shutil.which(name)
        if path is None:
            continue
        status, text = run([path, "-I", "-c", _ABOUT_PYTHON], 30)
        if status:
            continue
        about = json.loads(text.splitlines()[-1])
        if tuple(int(part) for part in about["version"].split(".")) >= PYTHON_LEAST:
            return path, about
        first = first or about
    return None, first


def packages(home: str) -> Tuple[Dict[str, str], str]:
    """Versions of onnxruntime and numpy that can be imported in the venv at `home`, and why not where they cannot."""
    python = os.path.join(home, "venv", "bin", "python")
    if not os.path.exists(python):
        return {}, "there is no virtual environment"
    status, text = run([python, "-I", "-c", _ABOUT_PACKAGES], 120)
    if status == 0:
        return json.loads(text.splitlines()[-1]), ""
    if status == -signal.SIGILL:
        return (
            {},
            "importing onnxruntime kills the process (SIGILL): this build needs instructions this processor lacks",
        )
    return {}, text[-500:]


def current(home: str) -> Optional[str]:
    """sha256 in the name of the agent that is in use."""
    try:
        match = re.search(r"agent-([0-9a-f]{64})\.pyz\Z", os.readlink(os.path.join(home, "current")))
    except OSError:
        return None
    return match.group(1) if match else None


def features() -> List[str]:
    """What the processor can do, as the kernel writes it."""
    match = re.search(r"^(?:Features|flags)\s*:\s*(.+)$", read("/proc/cpuinfo") or "", re.MULTILINE)
    return sorted(set(match.group(1).split())) if match else []


def swaps() -> List[str]:
    """`zram`, `file` or `partition`, for each swap area."""
    lines = [line.split() for line in (read("/proc/swaps") or "").splitlines()[1:]]
    return ["zram" if "zram" in words[0] else words[1] for words in lines if len(words) > 1]


def synchronized() -> Optional[bool]:
    """Is the wall clock set from the network? `None` where nobody knows."""
    status, text = run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"], 10)
    return {"yes": True, "no": False}.get(text) if status == 0 else None


def free_bytes(path: str) -> int:
    """Room at `path`, or at the nearest folder above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def as_system() -> bool:
    """Is there anything of a system service here? Its user and its folder count: a set-up may have broken off."""
    try:
        pwd.getpwnam(SYSTEM_USER)
        return True
    except KeyError:
        return os.path.exists(os.path.join(SYSTEM_UNITS, UNIT)) or os.path.isdir(SYSTEM_HOME)


def look(params: Params) -> Dict[str, Any]:
    """All that setup and the doctor want to know; changes nothing."""
    home = base({})
    python, about = pythons()
    where = SYSTEM_HOME if as_system() else home
    found, broken = packages(home) if where == home else ({}, "")
    user_unit = os.path.join(os.path.expanduser("~"), USER_UNITS, UNIT)
    throttled = run(["vcgencmd", "get_throttled"], 10) if shutil.which("vcgencmd") else (127, "")
    governors = {read(path) or "" for path in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    return {
        "machine": platform.machine(),
        "bits": about.get("bits", struct.calcsize("P") * 8),
        "python": python,
        "python_version": about.get("version", ".".join(str(n) for n in sys.version_info[:2])),
        "venv": bool(about.get("venv")),
        "ensurepip": bool(about.get("ensurepip")),
        "libc": (os.confstr("CS_GNU_LIBC_VERSION") or "") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "",
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "root": os.getuid() == 0,
        "sudo": os.getuid() == 0 or run(["sudo", "-n", "true"], 10)[0] == 0,
        "systemd_system": os.path.isdir("/run/systemd/system"),
        "systemd_user": run(["systemctl", "--user", "show-environment"], 10)[0] == 0,
        "free_bytes": free_bytes(params.get("home") or os.path.realpath(base(params) if home == where else where)),
        "features": features(),
        "model": read("/proc/device-tree/model"),
        "l4t": (read("/etc/nv_tegra_release") or "").splitlines()[:1],
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "governors": sorted(governors),
        "throttled": throttled[1] if throttled[0] == 0 else None,
        "vcio": os.access("/dev/vcio", os.R_OK | os.W_OK) if os.path.exists("/dev/vcio") else None,
        "pressure": os.path.exists("/proc/pressure/cpu"),
        "cgroup_memory": "memory" in (read("/sys/fs/cgroup/cgroup.controllers") or "").split()
        or os.path.isdir("/sys/fs/cgroup/memory"),
        "swaps": swaps(),
        "clock_synchronized": synchronized(),
        "rtc": bool(glob.glob("/sys/class/rtc/rtc*")),
        "packages": found,
        "packages_broken": broken,
        "agent": current(home),
        "unit": "system" if where == SYSTEM_HOME else "user" if os.path.exists(user_unit) else None,
        "home": os.path.realpath(home),
        "home_exists": os.path.isdir(home),
    }


# ------------------------------------------------------------------------------------------------- installing


def make_home(params: Params) -> str:
    """The agent's home, private to its user and marked as ours; on another disk where that was asked for."""
    home = base(params)
    wanted = params.get("home")
    if wanted and os.path.realpath(home) != os.path.realpath(wanted):
        place = place_in(os.path.realpath(wanted))
        if not os.path.lexists(home):
            os.makedirs(os.path.dirname(home), exist_ok=True)
            os.makedirs(place, mode=0o700, exist_ok=True)
            os.symlink(place, home)
        elif os.path.realpath(home) != place:
            raise Failed(f"{home} is there already; remove it before it is set up in {wanted}", "user")
    if os.path.islink(home) and not ours_alone(home):
        target = os.path.realpath(home)
        raise Failed(
            f"{home} leads to {target}, which holds something else; remove the link and set it up anew", "user"
        )
    os.makedirs(home, mode=0o700, exist_ok=True)
    os.chmod(os.path.realpath(home), 0o700)
    with open(os.path.join(home, MARK), "a"):
        pass
    for name in ("agents", "bin"):
        os.makedirs(os.path.join(home, name), mode=0o700, exist_ok=True)
    return home


def place_in(wanted: str) -> str:
    """The folder to be the home where `wanted` was asked for: a new one, because all of it goes when we are removed."""
    if not os.path.lexists(wanted) or os.path.exists(os.path.join(wanted, MARK)):
        return wanted
    place = os.path.join(wanted, "rlprune-edge")
    if not ours_alone(place):
        raise Failed(f"{place} holds something else already; choose another folder with --home", "user")
    return place


def ours_alone(folder: str) -> bool:
    """May all of the folder be deleted one day? It is marked as ours, or there is nothing in it yet."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return True
    return MARK in names or not names


@contextlib.contextmanager
def held(home: str) -> Iterator[None]:
    """Keep other set-ups away from the home meanwhile, if there is one."""
    if not os.path.isdir(home):
        yield
        return
    # Closed when this process ends, whatever ends it; the programs that it runs do not inherit it.
    fd = os.open(os.path.join(home, MARK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Failed(f"another set-up is going on in {home}; wait until it is done and try again", "user") from None
    try:
        yield
    finally:
        os.close(fd)


def receive(params: Params, folder: str, source: Any) -> List[str]:
    """Store the files that follow the parameters, each checked against its size and hash; their paths."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    paths = []
    for entry in params["files"]:
        if not _NAME.match(entry["name"]):
            raise Failed("not a file name: {!r}".format(entry["name"]))
        path = os.path.join(folder, entry["name"])
        sha256, left = hashlib.sha256(), entry["size"]
        with open(path + ".part", "wb") as file:
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
        os.replace(path + ".part", path)
        paths.append(path)
    return paths


def checked(command: List[str], seconds: float, what: str) -> str:
    """Run a program that has to succeed; what it said."""
    status, text = run(command, seconds)
    if status:
        said = "\n".join(line for line in text.splitlines() if not line.startswith("WARNING: Retrying"))
        last = said[-1500:]
        whole = last if last == said else last.partition("\n")[2] or last  # from the beginning of a line
        raise Failed(f"{what} failed (status {status}): {whole}")
    return text


def install_packages(params: Params, source: Any) -> Dict[str, Any]:
    """Make the virtual environment anew, beside the old one, and put it in its place once it works.

    With files (wheels) nothing but Python is needed: they are unpacked, which is all that installing these two means.
    Without, pip fetches them from wherever it is configured to. No packages at all: an environment for the bridge.
    """
    home = make_home(params)
    with held(home):
        return {"packages": renew(params, home, source)}


def renew(params: Params, home: str, source: Any) -> Dict[str, str]:
    """The new environment in the old one's place, and the versions of what is in it."""
    fresh, old = os.path.join(home, "venv.new"), os.path.join(home, "venv.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if params["packages"] and not params["files"]:
            fetch(params, fresh)
        else:
            unpack(params, fresh, os.path.join(home, "wheels"), source)
        return swap(home, fresh, old, bool(params["packages"]))
    finally:
        for name in ("wheels", "venv.new", "venv.old"):
            shutil.rmtree(os.path.join(home, name), ignore_errors=True)


def fetch(params: Params, venv: str) -> None:
    """A virtual environment with the packages, from the board's own network."""
    tell(say="making a virtual environment")
    checked([params["python"], "-m", "venv", venv], 300, "making a virtual environment")
    python = os.path.join(venv, "bin", "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--no-input", "-q", "install"]
    version = [int(n) for n in re.findall(r"\d+", run([python, "-c", "import pip; print(pip.__version__)"], 60)[1])[:2]]
    if version < [20, 3]:  # that of JetPack 5: it does not know the names that wheels have today
        tell(say="bringing pip up to date")
        checked([*pip, "--upgrade", "pip"], 300, "bringing pip up to date")
    tell(say="installing " + ", ".join(params["packages"]))
    checked(pip + ["--no-deps", "--only-binary=:all:"] + params["packages"], 1200, "installing onnxruntime and numpy")


def unpack(params: Params, venv: str, folder: str, source: Any) -> None:
    """A virtual environment with the wheels that follow the parameters."""
    checked([params["python"], "-m", "venv", "--without-pip", venv], 300, "making a virtual environment")
    ask = [os.path.join(venv, "bin", "python"), "-I", "-c", "import sysconfig; print(sysconfig.get_paths()['platlib'])"]
    place = checked(ask, 60, "asking Python where packages go")
    for path in receive(params, folder, source):
        tell(say="unpacking " + os.path.basename(path))
        with zipfile.ZipFile(path) as archive:
            archive.extractall(place)


def swap(home: str, fresh: str, old: str, wanted: bool) -> Dict[str, str]:
    """Put the new environment in the old one's place, and back if its packages cannot be imported."""
    place = os.path.join(home, "venv")
    if os.path.lexists(place):
        os.rename(place, old)
    os.rename(fresh, place)
    if not wanted:
        return {}
    tell(say="importing onnxruntime")
    found, broken = packages(home)
    if not found:
        os.rename(place, fresh)
        if os.path.lexists(old):
            os.rename(old, place)
        raise Failed("onnxruntime was installed but cannot be imported: " + broken)
    return found


def install_agent(params: Params, source: Any) -> Dict[str, Any]:
    """Put the agent beside older ones, try it, and only then make it the current one."""
    home = make_home(params)
    with held(home):
        return {"changed": switch(params, home, source)}


def switch(params: Params, home: str, source: Any) -> bool:
    """Make the agent that follows the current one; was it another before?"""
    (path,) = receive(params, os.path.join(home, "agents"), source)
    checked([os.path.join(home, "venv", "bin", "python"), path, "--self-test"], 60, "the agent's self-test")
    launcher, link = os.path.join(home, "bin", "rlprune-edge-agent"), os.path.join(home, "current")
    before = current(home)
    with open(launcher + ".new", "w") as file:
        file.write(LAUNCHER)
    os.chmod(launcher + ".new", 0o700)
    os.replace(launcher + ".new", launcher)
    if os.path.lexists(link + ".new"):
        os.unlink(link + ".new")
    os.symlink(os.path.join("agents", os.path.basename(path)), link + ".new")
    os.replace(link + ".new", link)
    return before != current(home)


def install_user_service(params: Params) -> Dict[str, Any]:
    """The unit of the login's own service manager; started now, and at boot if lingering can be had."""
    folder = os.path.join(os.path.expanduser("~"), USER_UNITS)
    changed = write_unit(os.path.join(folder, UNIT), params["unit"])
    systemctl = ["systemctl", "--user"]
    checked([*systemctl, "daemon-reload"], 30, "systemctl --user daemon-reload")
    end_daemon(base(params))  # one that the bridge started
    action = "restart" if changed or params["restart"] else "start"
    checked([*systemctl, "enable", UNIT], 30, "enabling the service")
    checked([*systemctl, action, UNIT], 60, "starting the service")
    return {"linger": linger(base(params))}


def linger(home: str) -> bool:
    """Have the login's services outlive its sessions, and remember it if that was not so before; is it so?"""
    if os.path.exists(os.path.join("/var/lib/systemd/linger", pwd.getpwuid(os.getuid()).pw_name)):
        return True
    if run(["loginctl", "enable-linger"], 20)[0]:
        return False
    with open(os.path.join(home, LINGERS), "w"):
        return True


def drop_user_service(params: Params) -> Dict[str, Any]:
    """Stop the agent that the login runs, as a service or for a bridge, and undo what made it one."""
    home, unit = base(params), os.path.join(os.path.expanduser("~"), USER_UNITS, UNIT)
    if os.path.lexists(unit):
        run(["systemctl", "--user", "disable", "--now", UNIT], 60)
        os.unlink(unit)
        run(["systemctl", "--user", "daemon-reload"], 30)
    if os.path.exists(os.path.join(home, LINGERS)):
        run(["loginctl", "disable-linger"], 20)
        os.unlink(os.path.join(home, LINGERS))
    return {"ended": end_daemon(home)}


def prepare_system(params: Params) -> Dict[str, Any]:
    """As root: a user for the agent alone, its folder, and the login as a member of its group."""
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        useradd = ["useradd", "--system", "--user-group", "--home-dir", SYSTEM_HOME, "--shell", "/usr/sbin/nologin"]
        checked([*useradd, SYSTEM_USER], 60, "adding the user " + SYSTEM_USER)
    if params["login"] != "root":
        checked(["usermod", "--append", "--groups", SYSTEM_USER, params["login"]], 60, "adding you to its group")
    if run(["getent", "group", "video"], 20)[0] == 0:  # /dev/vcio, where the Raspberry Pi's firmware answers
        checked(["usermod", "--append", "--groups", "video", SYSTEM_USER], 60, "adding it to the group video")
    os.makedirs(SYSTEM_HOME, mode=0o700, exist_ok=True)
    os.chmod(SYSTEM_HOME, 0o700)
    user = pwd.getpwnam(SYSTEM_USER)
    os.chown(SYSTEM_HOME, user.pw_uid, user.pw_gid)
    return {}


def install_system_service(params: Params) -> Dict[str, Any]:
    """As root: the unit, and its additions for this kind of board; started now and at boot."""
    place = os.path.join(SYSTEM_UNITS, UNIT)
    changed = write_unit(place, params["unit"])
    shutil.rmtree(place + ".d", ignore_errors=True)
    for name, text in params["additions"].items():
        if not _NAME.match(name):
            raise Failed(f"not a file name: {name!r}")
        changed = write_unit(os.path.join(place + ".d", name), text) or changed
    checked(["systemctl", "daemon-reload"], 60, "systemctl daemon-reload")
    action = "restart" if changed or params["restart"] else "start"
    checked(["systemctl", "enable", UNIT], 60, "enabling the service")
    checked(["systemctl", action, UNIT], 60, "starting the service")
    return {}


def write_unit(path: str, text: str) -> bool:
    """Write a file of systemd's; was it another before?"""
    if read(path) == text.strip():
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.chmod(path + ".new", 0o644)
    os.replace(path + ".new", path)
    return True


def restart_daemon(params: Params) -> Dict[str, Any]:
    """End the daemon that a bridge started; the next bridge starts the agent that is current then."""
    return {"ended": end_daemon(base(params))}


def end_daemon(home: str) -> bool:
    """Tell the daemon that listens at `home` to end, and wait for it; was there one of ours?"""
    connection = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    try:
        os.chdir(os.path.join(home, "run"))  # the path of a socket has a limit that a home's may pass
        connection.settimeout(5)
        connection.connect("agent.sock")
        who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return False
    finally:
        os.chdir(before)
        connection.close()
    pid, uid, _ = struct.unpack("3i", who)
    if uid != os.getuid() or pid <= 1:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if not os.path.exists(f"/proc/{pid}"):
                return True
            time.sleep(0.05)
    return True


# --------------------------------------------------------------------------------------------------- removing


def remove() -> Dict[str, Any]:
    """Stop the agent and delete all that setup made in the login's home."""
    home = base({})
    target = os.path.realpath(home)
    there = os.path.isdir(target)
    if os.path.islink(home) and not ours_alone(target):
        raise Failed(f"{home} leads to {target}, which holds something else; delete what is ours there by hand", "user")
    with held(target):
        drop_user_service({})
        shutil.rmtree(target, ignore_errors=True)
    if os.path.islink(home):
        os.unlink(home)
    if os.path.lexists(home):
        raise Failed(f"{home} cannot be deleted entirely")
    user_home = os.path.expanduser("~")
    for path in (os.path.join(user_home, BASE), os.path.join(user_home, USER_UNITS, UNIT)):
        prune_folders(os.path.dirname(path), user_home)
    return {"removed": there}


def prune_folders(path: str, top: str) -> None:
    """Delete the folder and those above it that are empty, but not `top`."""
    while path != top and path.startswith(top):
        try:
            os.rmdir(path)
        except OSError:  # not empty, or not there: not ours
            return
        path = os.path.dirname(path)


def remove_system() -> Dict[str, Any]:
    """As root: stop the service; delete its unit, its user and its folders."""
    unit = os.path.join(SYSTEM_UNITS, UNIT)
    run(["systemctl", "disable", "--now", UNIT], 60)
    shutil.rmtree(unit + ".d", ignore_errors=True)
    if os.path.exists(unit):
        os.unlink(unit)
    run(["systemctl", "daemon-reload"], 60)
    with held(SYSTEM_HOME):
        for folder in (SYSTEM_HOME, "/var/cache/rlprune-edge"):
            shutil.rmtree(folder, ignore_errors=True)
    run(["userdel", SYSTEM_USER], 60)
    run(["groupdel", SYSTEM_USER], 60)  # it outlives its user while the login is a member
    return {}


# ----------------------------------------------------------------------------------------------------- asking

Action = Callable[[Params, Any], Dict[str, Any]]
ACTIONS: Dict[str, Action] = {
    "look": lambda params, _source: look(params),
    "found": lambda params, _source: {"packages": packages(base(params))[0]},
    "packages": install_packages,
    "agent": install_agent,
    "user-service": lambda params, _source: install_user_service(params),
    "prepare-system": lambda params, _source: prepare_system(params),
    "system-service": lambda params, _source: install_system_service(params),
    "restart": lambda params, _source: restart_daemon(params),
    "drop-user-service": lambda params, _source: drop_user_service(params),
    "remove": lambda _params, _source: remove(),
    "remove-system": lambda _params, _source: remove_system(),
}


def main(source: Any) -> int:
    """Do what the parameters ask for; the exit status."""
    os.umask(0o077)
    os.chdir("/")  # `python -m venv` and the like look into the current folder first: whose things lie there?
    os.environ[NO_TELEMETRY[0]] = NO_TELEMETRY[1]
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
