"""The daemon as hosts meet it: two at once, hosts that vanish, disks that fill up, agents that are killed."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talk import ENVIRONMENT, LONG, PYTHON, Daemon, Host, agent_command, alive, children, npy, over_pipes, wait_for

from rlprune_agent import sockets
from rlprune_agent.agent import Agent
from rlprune_agent.protocol import Channel, Failure

Make = Callable[[int], bytes]
Start = Callable[..., Daemon]

_JOB = "ab" * 8


def _phase(host: Host, phase: str, job_id: str = _JOB) -> bool:
    """Wait until the job is at that."""
    return bool(wait_for(lambda: host.ask(verb="wait", job_id=job_id, seconds=0.1).header.get("phase") == phase))


def _held_by(host: Host) -> Any:
    return host.ask(verb="status").header["lease"]["holder"]


# ---------------------------------------------------------------- hosts


def test_hello_and_status_need_no_lease(host: Host) -> None:
    hello = host.hello()
    assert hello["runtime"]["onnxruntime"]
    assert (hello["isolation"], hello["agent_sha256"]) == ("user", None)
    assert hello["daemon"]["running"] == 0
    status = host.ask(verb="status").header
    assert status["lease"] == {"holder": None, "waiting": []}
    assert status["store"]["quota"] == 2000 * 10**6
    assert status["disk_free_bytes"] > 0


def test_nothing_is_done_without_the_lease(shared_daemon: Daemon, host: Host) -> None:
    assert host.ask(verb="have", files=[]).header["kind"] == "lease_lost"
    other = shared_daemon.connect("somebody else").held()
    answer = host.ask(verb="have", files=[]).header
    assert (answer["kind"], "somebody else" in answer["message"]) == ("device_locked", True)
    other.ask(verb="lease", action="release")
    other.close()


def test_a_connection_that_drops_leaves_the_job_alone_and_the_result_is_fetched_once(
    shared_daemon: Daemon, host: Host, dense_model: Make
) -> None:
    """F4 on the agent's side: the other half is in tests/device/test_contact.py."""
    host.submit(_JOB, host.job(dense_model(16)))
    host.close()
    again = shared_daemon.connect()
    again.token = host.token
    host.token = None
    assert len(again.result(_JOB).body) > 0
    assert again.ask(verb="ack", job_id=_JOB).header["ok"] is True
    answer = again.ask(verb="wait", job_id=_JOB, seconds=0).header
    assert (answer["ok"], answer["kind"]) == (False, "agent_crashed")
    again.ask(verb="lease", action="release")
    again.close()


def test_a_job_sent_twice_runs_once(shared_daemon: Daemon, host: Host, dense_model: Make) -> None:
    """F33"""
    job = host.job(dense_model(16))
    job_id = "f3" * 8
    assert host.submit(job_id, job)["state"] in ("queued", "running")
    assert host.submit(job_id, job)["ok"] is True
    first, second = host.result(job_id), host.result(job_id)
    assert first.header["result"] == second.header["result"]
    assert first.body == second.body
    assert host.submit(job_id, job)["state"] == "done"
    assert children(shared_daemon.pid) == []
    host.ask(verb="ack", job_id=job_id)
    assert "acknowledged already" in host.submit(job_id, job)["message"]


def test_a_host_that_is_killed_leaves_no_child_after_its_lease(start_daemon: Start, dense_model: Make) -> None:
    """F5"""
    daemon = start_daemon("--lease-seconds", "3")
    bridge = agent_command("stdio", "--home", str(daemon.home))
    host, process = over_pipes(bridge)
    host.hello()  # after it the runtime has been tried, and every child is a job's
    host.submit(_JOB, host.job(dense_model(16), settings=LONG))
    child = daemon.working()
    process.kill()
    process.wait()
    host.close()
    other = daemon.connect("the next")
    assert wait_for(lambda: not alive(child), 10)
    assert other.acquire()["token"] == (host.token or 0) + 1
    assert other.result(_JOB).header["kind"] == "lease_lost"


def test_two_hosts_take_turns_and_a_stale_one_is_told(start_daemon: Start, dense_model: Make) -> None:
    """F32: the first falls silent for longer than its lease, as a laptop that sleeps does."""
    daemon = start_daemon("--lease-seconds", "3")
    host, second = daemon.connect(), daemon.connect("second")
    job = host.job(dense_model(16), settings=LONG)
    host.submit("01" * 8, job)
    first_child = daemon.working()
    refused = second.acquire()
    assert (refused["granted"], refused["position"], refused["holder"]["owner"]) == (False, 1, "a test")
    second.held()  # asks until the first's lease has run out
    second.submit("02" * 8, second.job(dense_model(16)))
    assert wait_for(lambda: not alive(first_child), 5)
    assert second.result("02" * 8).header["ok"] is True
    stale = host.ask(verb="submit", job_id="03" * 8, **job).header
    assert (stale["kind"], "second" in stale["message"]) == ("lease_lost", True)


def test_a_broken_lease_frees_the_device_and_says_whose_it_was(
    shared_daemon: Daemon, host: Host, dense_model: Make
) -> None:
    host.submit("b0" * 8, host.job(dense_model(16), settings=LONG))
    child = shared_daemon.working()
    other = shared_daemon.connect()
    assert other.ask(verb="lease", action="break").header["broken"] == "a test"
    assert wait_for(lambda: not alive(child), 5)
    host.token = None
    other.close()


def test_cancel_ends_the_child_and_the_next_job_runs(shared_daemon: Daemon, host: Host, dense_model: Make) -> None:
    host.submit("ca" * 8, host.job(dense_model(16), settings=LONG))
    child = shared_daemon.working()
    host.submit("cb" * 8, host.job(dense_model(16)))
    host.ask(verb="cancel", job_id="ca" * 8)
    assert wait_for(lambda: not alive(child), 5)
    assert host.result("ca" * 8).header["message"] == "the host cancelled the job"
    assert host.result("cb" * 8).header["ok"] is True


def test_a_request_during_a_wait_is_answered_at_once(host: Host, dense_model: Make) -> None:
    """What Ctrl-C needs: the answer to the wait is still to come when the device is to be given back."""
    host.submit("cd" * 8, host.job(dense_model(16), settings=LONG))
    host.channel.send({"id": 999, "verb": "wait", "job_id": "cd" * 8, "seconds": 60, "token": host.token})
    released = host.ask(verb="lease", action="release", patience=5).header
    assert (released["ok"], released["granted"]) == (True, False)
    assert _held_by(host) is None
    host.token = None


def test_a_queue_that_is_full_says_when_to_come_back(host: Host, dense_model: Make) -> None:
    job = host.job(dense_model(16), settings=LONG)
    answers = [host.submit(f"{number:016x}", job) for number in range(0xFFF0, 0xFFF6)]
    assert [a["ok"] for a in answers] == [True] * 5 + [False]
    assert (answers[-1]["kind"], answers[-1]["retry_after_s"]) == ("busy", 5.0)
    host.ask(verb="lease", action="release")
    assert wait_for(lambda: host.ask(verb="status").header["queue"] == [])
    host.token = None


def test_one_conversation_too_many_is_refused_in_words(start_daemon: Start) -> None:
    daemon = start_daemon()
    hosts = [daemon.connect() for _ in range(16)]
    connection = daemon.socket()
    extra = Host(hosts[0].channel.__class__(connection.fileno(), connection.fileno()), connection.close)
    last_word = extra.answer(10).header
    extra.close()
    assert (last_word["id"], last_word["kind"]) == (None, "busy")
    assert hosts[0].ask(verb="status").header["ok"] is True


# ---------------------------------------------------------------- disks


def test_a_file_that_rots_in_the_store_is_sent_again(shared_daemon: Daemon, host: Host, dense_model: Make) -> None:
    """F29"""
    job = host.job(dense_model(24))
    path = shared_daemon.home / "store" / job["candidate"][:2] / job["candidate"]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    answer = host.do(**job).header
    assert (answer["kind"], answer["missing"]) == ("missing_files", [job["candidate"]])
    assert not path.exists()
    assert host.submit("29" * 8, job)["kind"] == "missing_files"
    assert host.put(data) == job["candidate"]
    assert path.read_bytes() == data


def test_a_full_disk_is_an_operators_matter_and_the_agent_lives(start_daemon: Start) -> None:
    """F9: the announced size does not fit; then the disk runs full although it seemed to."""
    daemon = start_daemon("--quota-mb", "1")
    host = daemon.connect().held()
    data = os.urandom(100_000)
    sha256 = hashlib.sha256(data).hexdigest()
    portion = {"verb": "put", "sha256": sha256, "offset": 0, "crc32": zlib.crc32(data)}
    answer = host.ask(data, **{**portion, "size": 2_000_000}).header
    assert (answer["kind"], "quota" in answer["message"]) == ("disk_full", True)
    limit = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (50_000, limit[1]))
    answer = host.ask(data, **{**portion, "size": len(data)}).header
    assert (answer["kind"], "make room" in answer["message"]) == ("disk_full", True)
    assert list((daemon.home / "store" / "part").iterdir()) == []
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limit)
    assert host.put(data) == sha256


_FAULTS = """
import errno, functools, os
real_open, real_write = os.open, os.write
flag = {flag!r}
def kind():
    try:
        with open(flag) as file: return file.read()
    except FileNotFoundError: return ""
def open_(path, flags, mode=0o777, *, dir_fd=None):
    if flags & (os.O_WRONLY | os.O_RDWR) and not str(path).startswith("/dev/") and kind() == "read-only":
        raise OSError(errno.EROFS, "Read-only file system")
    return real_open(path, flags, mode, dir_fd=dir_fd)
def write(fd, data):
    if len(data) > 2000 and kind() == "flip" and os.path.isfile(os.readlink(f"/proc/self/fd/{{fd}}")):
        os.remove(flag)
        data = bytes([data[0] ^ 1]) + bytes(data[1:])
    return real_write(fd, data)
os.open, os.write = functools.partial(open_), write
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str], None]:
    """Says which fault the disk of the faulty daemon has from now on."""
    return (tmp_path / "fault").write_text


@pytest.fixture
def faulty_daemon(tmp_path: Path, start_daemon: Start) -> Daemon:
    before = _FAULTS.format(flag=str(tmp_path / "fault"))
    return start_daemon(command=agent_command("serve", "--home", str(tmp_path / "home"), before=before))


def test_a_card_that_turns_read_only_is_an_operators_matter_and_the_agent_lives(
    faulty_daemon: Daemon, faulty: Callable[[str], None], tmp_path: Path, dense_model: Make
) -> None:
    """F10"""
    host = faulty_daemon.connect()
    job = host.job(dense_model(16))
    faulty("read-only")
    data = os.urandom(100)
    fields = {"sha256": hashlib.sha256(data).hexdigest(), "size": 100, "offset": 0, "crc32": zlib.crc32(data)}
    for answer in (host.ask(data, verb="put", **fields), host.ask(verb="submit", job_id=_JOB, **job)):
        assert (answer.header["kind"], "Read-only" in answer.header["message"]) == ("disk_full", True)
    assert host.ask(verb="status").header["ok"] is True
    (tmp_path / "fault").unlink()
    assert host.do(**job).header["ok"] is True


def test_a_portion_that_is_spoilt_on_its_way_to_the_disk_is_noticed_and_sent_once_more(
    faulty_daemon: Daemon, faulty: Callable[[str], None]
) -> None:
    """F3"""
    host = faulty_daemon.connect().held()
    data = os.urandom(5000)
    sha256 = hashlib.sha256(data).hexdigest()
    fields = {"verb": "put", "sha256": sha256, "size": 5000, "offset": 0, "crc32": zlib.crc32(data)}
    faulty("flip")
    assert host.ask(data, **fields).header["kind"] == "damaged_upload"
    assert host.ask(verb="have", files=[sha256]).header["missing"] == {sha256: 0}
    assert host.ask(data, **fields).header["whole"] is True


def test_what_a_job_needs_is_not_collected(start_daemon: Start, dense_model: Make) -> None:
    """F41: a quota that holds the job's files and not much more, and uploads that press on it."""
    daemon = start_daemon("--quota-mb", "1")
    host = daemon.connect()
    job = host.job(dense_model(16), settings=LONG)
    host.submit(_JOB, job)
    queued = host.job(dense_model(32))
    host.submit("cc" * 8, queued)
    assert _phase(host, "timing")
    pressing = [host.put(os.urandom(400_000)) for _ in range(5)]
    needed = [job["candidate"], *job["inputs"].values(), queued["candidate"]]
    missing = host.ask(verb="have", files=[*needed, *pressing]).header["missing"]
    assert set(missing) == set(pressing[:-2])


# ---------------------------------------------------------------- agents and children that end


def test_a_killed_daemon_is_started_again_and_tells_what_became_of_the_job(
    start_daemon: Start, dense_model: Make
) -> None:
    """F12"""
    daemon = start_daemon()
    host = daemon.connect()
    job = host.job(dense_model(16), settings=LONG)
    host.submit(_JOB, job)
    assert _phase(host, "timing")
    (child,) = children(daemon.pid)
    daemon.process.kill()
    daemon.process.wait()
    again, bridge = over_pipes(agent_command("stdio", "--home", str(daemon.home), "--idle-seconds", "0"))
    assert again.hello()["daemon"]["uptime_s"] < 10
    assert not alive(child)
    again.token = host.token
    assert again.submit(_JOB, job)["state"] == "done"
    answer = again.result(_JOB).header
    assert (answer["kind"], "restarted" in answer["message"]) == ("agent_crashed", True)
    again.close()
    assert bridge.wait(10) == 0
    assert wait_for(lambda: not (daemon.home / "run" / "agent.sock").exists(), 10), "an idle daemon ends"


def test_a_child_the_kernel_killed_for_memory_is_out_of_memory(
    start_daemon: Start, dense_model: Make, tmp_path: Path
) -> None:
    """F11, the kernel's counter as a test sets it"""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "vmstat").write_text("pswpin 0\noom_kill 3\n")
    daemon = start_daemon("--root", str(root))
    host = daemon.connect()
    for kills, kind in (("4", "oom"), ("4", "agent_crashed")):
        job_id = kills * 7 + kind[:1].replace("o", "0") + os.urandom(4).hex()
        host.submit(job_id, host.job(dense_model(16), settings=LONG))
        assert _phase(host, "timing", job_id)
        (root / "proc" / "vmstat").write_text(f"pswpin 0\noom_kill {kills}\n")
        os.kill(children(daemon.pid)[0], signal.SIGKILL)
        assert host.result(job_id).header["kind"] == kind
    assert host.do(**host.job(dense_model(16))).header["ok"] is True


def test_a_model_that_crashes_the_runtime_cannot_be_used(
    shared_daemon: Daemon, host: Host, endless_model: bytes
) -> None:
    """F22, in the child's own code"""
    zero = host.put(npy(np.zeros(1, np.float32)))
    job = host.job(endless_model, inputs={"x": zero}, expected={"y": zero})
    host.submit("22" * 8, job)
    assert _phase(host, "candidate", "22" * 8)
    os.kill(shared_daemon.working(), signal.SIGSEGV)
    answer = host.result("22" * 8).header
    assert (answer["kind"], answer["phase"]) == ("load_failed", "candidate")


def test_a_runtime_that_kills_the_process_at_import_is_named(start_daemon: Start, tmp_path: Path) -> None:
    """F22, at import"""
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    daemon = start_daemon(env={**ENVIRONMENT, "PYTHONPATH": path})
    hello = daemon.connect().hello()
    assert "runtime" not in hello
    assert "1.21.0" in hello["runtime_error"]
    assert "LSE" in hello["runtime_error"]


def test_a_daemon_told_to_end_ends_in_order(start_daemon: Start, dense_model: Make) -> None:
    daemon = start_daemon()
    host = daemon.connect()
    host.submit(_JOB, host.job(dense_model(16), settings=LONG))
    assert _phase(host, "timing")
    (child,) = children(daemon.pid)
    assert daemon.stop() == 0
    assert not alive(child)
    assert not sockets.home_socket(daemon.home).exists()
    again = start_daemon()
    later = again.connect()
    later.token = host.token
    assert later.result(_JOB).header["message"] == "the agent was told to end"


def test_a_daemon_that_hangs_is_given_up_and_found_well_again(start_daemon: Start) -> None:
    """F20 on the agent's side: what hangs is not killed by us, a service manager's watchdog does that."""
    daemon = start_daemon()
    host = daemon.connect()
    daemon.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED)  # the signal arrives when the kernel comes to it
    with pytest.raises(Failure) as caught:
        host.ask(verb="status", patience=0.5)
    daemon.process.send_signal(signal.SIGCONT)
    assert caught.value.kind == "connection_lost"
    assert daemon.connect().ask(verb="status").header["ok"] is True


def test_the_service_manager_hears_of_start_life_and_end(tmp_path: Path, start_daemon: Start) -> None:
    """F20: the watchdog is fed from the main loop"""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(20)
    environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    daemon = start_daemon(env=environment)
    heard = [manager.recv(100) for _ in range(3)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    assert daemon.connect().hello()["isolation"] == "systemd"
    daemon.process.terminate()
    while heard[-1] == b"WATCHDOG=1":
        heard.append(manager.recv(100))
    assert heard[-1] == b"STOPPING=1"
    manager.close()


# ---------------------------------------------------------------- the bridge and the socket


def test_two_bridges_at_once_start_one_daemon(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = agent_command("stdio", "--home", str(home), "--idle-seconds", "0.5")
    talks = [over_pipes(command, owner=name) for name in ("one", "two")]
    hellos: list[Any] = [None, None]

    def greet(index: int) -> None:
        hellos[index] = talks[index][0].hello()

    threads = [threading.Thread(target=greet, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    one, two = talks[0][0], talks[1][0]
    assert [hello["ok"] for hello in hellos] == [True, True]
    assert one.acquire()["granted"] is True
    assert two.acquire()["holder"]["owner"] == "one"
    assert oct(sockets.home_socket(home).stat().st_mode)[-3:] == "600"
    assert oct(home.stat().st_mode)[-3:] == "700"
    for host, process in talks:
        host.close()
        assert process.wait(10) == 0
    assert wait_for(lambda: not sockets.home_socket(home).exists(), 10)


def test_a_child_that_cannot_be_started_is_no_end_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "gone"))
    agent = Agent(tmp_path / "home", quota_bytes=10**6, alone=True)
    assert "No such file" in (agent.worker.runtime(10) or {})["runtime_error"]
    assert agent.worker.lives
    agent.end()


def test_who_may_talk_to_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    own = os.geteuid()
    os.chmod(tmp_path, 0o700)
    assert sockets.may_talk(own, path) is True
    assert sockets.may_talk(own + 1, path) is False
    os.chmod(tmp_path, 0o750)
    assert sockets.may_talk(4_000_000, path) is False  # nobody of that number, let alone in the group


# ---------------------------------------------------------------- upgrades


def _pyz(folder: Path, text: str) -> tuple[str, bytes]:
    """An agent made of one file."""
    path = folder / "agent.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", text)
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), data


def _packed(folder: Path, version: str) -> tuple[str, bytes]:
    """This agent, packed, with another version number."""
    path = folder / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for source in Path(ENVIRONMENT["PYTHONPATH"], "rlprune_agent").glob("*.py"):
            text = source.read_text()
            if source.name == "__init__.py":
                text = text.replace('__version__ = "', f'__version__ = "{version}+')
            archive.writestr(f"rlprune_agent/{source.name}", text)
        archive.writestr("__main__.py", "from rlprune_agent.__main__ import main\nmain()\n")
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), data


def test_an_upgrade_lies_beside_the_old_agent_and_the_next_start_uses_it(start_daemon: Start, tmp_path: Path) -> None:
    """F27: a newer agent is pushed; the older one stays"""
    home = tmp_path / "home"
    old, new = _packed(tmp_path, "old"), _packed(tmp_path, "new")
    (home / "agents").mkdir(parents=True)
    (home / "agents" / f"agent-{old[0]}.pyz").write_bytes(old[1])
    (home / "current").symlink_to(f"agents/agent-{old[0]}.pyz")
    launcher = [PYTHON, str(home / "current")]
    daemon = start_daemon(command=[*launcher, "serve", "--home", str(home)], env=dict(os.environ))
    host = daemon.connect()
    assert host.hello()["agent_sha256"] == old[0]
    host.put(new[1])
    assert host.ask(verb="upgrade", sha256=new[0]).header["ok"] is True
    assert daemon.process.wait(20) == 0
    again, process = over_pipes([*launcher, "stdio", "--home", str(home), "--idle-seconds", "0"], env=dict(os.environ))
    hello = again.hello()
    assert (hello["agent_sha256"], hello["agent"].startswith("new+")) == (new[0], True)
    assert again.ask(verb="status").header["agents"] == sorted([old[0], new[0]])
    again.close()
    assert process.wait(10) == 0
    assert wait_for(lambda: not sockets.home_socket(home).exists(), 10)


def test_an_agent_that_fails_its_own_test_is_not_switched_to(shared_daemon: Daemon, host: Host, tmp_path: Path) -> None:
    sha256, data = _pyz(tmp_path, "raise SystemExit('this board is too old for me')")
    host.put(data)
    answer = host.ask(verb="upgrade", sha256=sha256).header
    assert (answer["kind"], "too old for me" in answer["message"]) == ("version_mismatch", True)
    assert not (shared_daemon.home / "current").exists()
    assert host.ask(verb="status").header["current"] is None


def test_an_upgrade_interrupted_between_copy_and_switch_leaves_the_old_agent(
    start_daemon: Start, tmp_path: Path
) -> None:
    """F40: kill -9 while the new agent's self-test runs"""
    daemon = start_daemon()
    host = daemon.connect()
    started = tmp_path / "started"
    sha256, data = _pyz(tmp_path, f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n")
    host.put(data)
    host.channel.send({"id": 77, "verb": "upgrade", "sha256": sha256, "token": host.token})
    assert wait_for(started.exists)
    (testing,) = children(daemon.pid)
    daemon.process.kill()
    daemon.process.wait()
    assert wait_for(lambda: not alive(testing), 5)
    assert not (daemon.home / "current").exists()
    again = start_daemon().connect()
    assert again.ask(verb="status").header["agents"] == [sha256]
    assert again.hello()["ok"] is True


def test_an_upgrade_is_refused_while_somebody_else_has_the_device(shared_daemon: Daemon, host: Host) -> None:
    other = shared_daemon.connect("somebody else").held()
    assert host.ask(verb="upgrade", sha256="0" * 64).header["kind"] == "device_locked"
    other.ask(verb="lease", action="release")
    other.close()


def test_the_self_test_says_what_it_found() -> None:
    done = subprocess.run(
        agent_command("--self-test"), capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=60
    )
    assert (done.returncode, '"protocol_max": 1' in done.stdout) == (0, True)


def test_a_host_or_an_agent_of_another_protocol_is_refused_clearly_and_others_go_on(host: Host) -> None:
    """F27"""
    answer = host.ask(verb="hello", protocol_min=7, protocol_max=9).header
    assert (answer["kind"], "protocol 7 to 9" in answer["message"]) == ("version_mismatch", True)
    assert host.hello()["ok"] is True


_NO_THREADS = """
import os, threading
real_start = threading.Thread.start
def start(thread):
    if thread.name == "conversation" and os.path.exists({flag!r}):
        raise RuntimeError("can't start new thread")
    real_start(thread)
threading.Thread.start = start
"""


def test_a_device_without_room_for_another_thread_says_so_and_lives(tmp_path: Path, start_daemon: Start) -> None:
    flag = tmp_path / "full"
    before = _NO_THREADS.format(flag=str(flag))
    daemon = start_daemon(command=agent_command("serve", "--home", str(tmp_path / "home"), before=before))
    first = daemon.connect()
    flag.touch()
    with daemon.socket() as late:
        refused = Channel(late.fileno(), late.fileno()).receive(30)
    assert refused is not None
    assert (refused.header["ok"], refused.header["kind"]) == (False, "busy")
    assert "no room for another thread" in refused.header["message"]
    assert first.ask(verb="status").header["ok"] is True
    flag.unlink()
    assert daemon.connect().hello()["ok"] is True
