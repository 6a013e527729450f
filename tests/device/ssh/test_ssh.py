"""Logging in to a real sshd: whose key is known, with which keys of ours, through which hosts; and commands there."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from device.ssh.board import LinkFault, LoopbackBoard, fingerprint, make_key, ssh_agent, wait_for
from device.ssh.conftest import QUICK

from rlprune_edge.device import known_hosts
from rlprune_edge.device.ssh import Deadlines, SshSession, SshTarget, names_of, offered_host_key
from rlprune_edge.device.ssh_channel import OUTPUT_MAX
from rlprune_edge.errors import DeviceError, UserError


@pytest.fixture
def session(board: LoopbackBoard) -> Iterator[SshSession]:
    with SshSession.connect(board.target(), known_hosts=board.known_hosts()) as session:
        yield session


def _refused(target: SshTarget, known_hosts: Path, deadlines: Deadlines = QUICK, batch: bool = True) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        SshSession.connect(target, known_hosts=known_hosts, deadlines=deadlines, batch=batch)
    return caught.value


def _logins(board: LoopbackBoard) -> int:
    return board.log().count("Accepted publickey")


# -- commands


def test_a_command_gets_its_input_and_gives_back_all_it_said(board: LoopbackBoard, session: SshSession) -> None:
    done = session.run("pwd; cat; echo trouble >&2; exit 3", stdin=b"given\n", seconds=20)
    assert (done.status, done.stdout, done.stderr) == (3, f"{board.home}\ngiven\n".encode(), b"trouble\n")


def test_a_large_input_arrives_whole_while_output_comes_back(session: SshSession) -> None:
    data = bytes(range(256)) * 16_000
    done = session.run("tee /dev/stderr | sha256sum", stdin=data, seconds=60)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert (done.cut, done.stderr) == (True, data[-OUTPUT_MAX:])


def test_input_that_nobody_reads_does_no_harm(session: SshSession) -> None:
    done = session.run("echo early; exit 0", stdin=bytes(8_000_000), seconds=20)
    assert (done.status, done.stdout) == (0, b"early\n")


def test_lines_are_told_as_they_come_and_cannot_drive_the_terminal(session: SshSession) -> None:
    lines: list[str] = []
    done = session.run("printf 'half'; printf ' \\033[2Jdone\\r100%%\\n\\nlast'", seconds=20, on_output=lines.append)
    assert lines == ["half \ufffd[2Jdone", "100%", "last"]
    assert done.status == 0


def test_a_command_has_a_deadline(session: SshSession) -> None:
    with pytest.raises(DeviceError, match="did not finish within 0 s") as caught:
        session.run("sleep 60", seconds=0.2)
    assert caught.value.kind == "connection_lost"
    assert session.run("echo still here", seconds=20).stdout == b"still here\n"


def test_a_killed_command_and_one_that_leaves_something_behind(session: SshSession) -> None:
    assert session.run("kill -9 $$", seconds=20).status in (-1, 137)  # 137 where the login shell waits and tells
    left = session.run("sleep 30 & echo $!", seconds=20)
    assert left.status == 0
    assert session.run("xargs kill", stdin=left.stdout, seconds=20).status == 0


def test_no_agent_is_forwarded_and_no_thread_stays_behind(
    board: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    with ssh_agent(tmp_path, board.identity) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        config = board.config(f"IdentityAgent {agent}\nForwardAgent yes\n")
        target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
        with SshSession.connect(target, known_hosts=board.known_hosts()) as session:
            assert session.run('echo "[$SSH_AUTH_SOCK]"', seconds=20).stdout == b"[]\n"
            assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
    with pytest.raises(DeviceError, match="was closed"):
        session.run("true", seconds=1)


# -- host keys


def test_an_unknown_host_is_refused_with_what_to_type(board: LoopbackBoard, tmp_path: Path) -> None:
    """F24"""
    before = _logins(board)
    error = _refused(board.target(), tmp_path / "absent")
    assert error.kind == "host_key_unknown"
    assert fingerprint(board.host_key()) in str(error)
    assert f"rlprune-edge device add NAME --host ssh://{board.user}@{board.host}:{board.port}" in str(error)
    assert _logins(board) == before


def test_the_offered_key_is_shown_remembered_and_then_known(board: LoopbackBoard, tmp_path: Path) -> None:
    before = _logins(board)
    ours = tmp_path / "config" / "known_hosts"
    key = offered_host_key(board.target())
    assert (key.kind, key.fingerprint) == ("ssh-ed25519", fingerprint(board.host_key()))
    assert _logins(board) == before
    known_hosts.remember(ours, names_of(board.target())[:1], key)
    with SshSession.connect(board.target(), known_hosts=ours) as session:
        assert session.run("echo in", seconds=20).stdout == b"in\n"
    known_hosts.forget(ours, names_of(board.target()))
    assert _refused(board.target(), ours).kind == "host_key_unknown"


def test_a_wrong_host_key_stops_everything(board: LoopbackBoard, link: LinkFault, tmp_path: Path) -> None:
    """F23: another machine answers. It gets a handshake, and not one byte of a login or a job."""
    right = fingerprint(make_key(tmp_path / "right"))
    ours = tmp_path / "known_hosts"
    ours.write_text(f"[{board.host}]:{link.port} {(tmp_path / 'right.pub').read_text()}")
    before = board.log()
    error = _refused(board.target(port=link.port), ours)
    assert error.kind == "host_key_mismatch"
    assert right in str(error)
    assert fingerprint(board.host_key()) in str(error)
    assert f"{ours}:1" in str(error)
    assert link.connections == 1
    wait_for(lambda: "preauth" in board.log()[len(before) :], "the server seeing the end")
    # The server has not even been told who wanted to come in: it names the user from the first request on.
    assert f"user {board.user}" not in board.log()[len(before) :]
    assert "Accepted" not in board.log()[len(before) :]


def test_a_host_is_asked_for_the_key_it_is_known_by(tmp_path: Path) -> None:
    with LoopbackBoard(tmp_path / "b", host_keys=("ed25519", "ecdsa", "rsa")) as board:
        everything = board.known_hosts().read_text().splitlines()
        for line, kind in zip(everything, ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"), strict=True):
            assert line.split()[1] == kind
            ours = tmp_path / kind
            ours.write_text(line + "\n")
            with SshSession.connect(board.target(), known_hosts=ours) as session:
                assert session.run("echo in", seconds=20).stdout == b"in\n"


@pytest.mark.parametrize("form", ["hashed", "wildcard", "alias"])
def test_the_users_own_file_counts_in_every_form(board: LoopbackBoard, tmp_path: Path, form: str) -> None:
    theirs, name = tmp_path / "known_hosts", f"[{board.host}]:{board.port}"
    key = " ".join(board.host_key().with_suffix(".pub").read_text().split()[:2])
    junk = "@cert-authority *.example.org " + key + "\nnot a line\n@revoked elsewhere " + key + "\n"
    if form == "hashed":
        known_hosts.remember(theirs, [name], known_hosts.HostKey("ssh-ed25519", "", key))
        theirs.write_text(junk + theirs.read_text())
    else:
        theirs.write_text(junk + ("[127.0.0.*]:*" if form == "wildcard" else "my-board") + f" {key}\n")
    config = board.config(f"UserKnownHostsFile {theirs}\n" + ("HostKeyAlias my-board\n" if form == "alias" else ""))
    target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
    with SshSession.connect(target, known_hosts=tmp_path / "absent") as session:
        assert session.run("echo in", seconds=20).stdout == b"in\n"


def test_a_bad_line_is_warned_of(board: LoopbackBoard, caplog: pytest.LogCaptureFixture) -> None:
    ours = board.known_hosts()
    ours.write_text("not a line\n" + ours.read_text())
    with caplog.at_level(logging.WARNING), SshSession.connect(board.target(), known_hosts=ours):
        assert f"{ours}:1 is not a line of a known_hosts file" in caplog.text


def test_a_revoked_key_is_refused_although_it_is_known(board: LoopbackBoard, tmp_path: Path) -> None:
    ours = board.known_hosts(tmp_path / "known_hosts")
    ours.write_text(ours.read_text() + "@revoked * " + ours.read_text().split(" ", 1)[1])
    error = _refused(board.target(), ours)
    assert error.kind == "host_key_mismatch"
    assert f"@revoked in {ours}:2" in str(error)


def test_a_certificate_authority_is_said_to_be_unsupported(board: LoopbackBoard, tmp_path: Path) -> None:
    ours = board.known_hosts(tmp_path / "known_hosts")
    ours.write_text("@cert-authority " + ours.read_text())
    error = _refused(board.target(), ours)
    assert error.kind == "host_key_unknown"
    assert f"{ours}:1 trusts a certificate authority for it, which is not supported" in str(error)


# -- keys of ours


def test_too_many_keys_are_named_and_one_key_is_enough(tmp_path: Path) -> None:
    """F26: the right key is the seventh of the agent's, and the server allows three."""
    with LoopbackBoard(tmp_path / "b", settings=["MaxAuthTries 3"]) as board:
        wrong = [make_key(tmp_path / f"wrong{i}") for i in range(6)]
        with ssh_agent(tmp_path, *wrong, board.identity) as agent:
            config = board.config(f"IdentityAgent {agent}\n")
            target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
            config.write_text(config.read_text().replace(str(board.identity), str(tmp_path / "absent")))
            error = _refused(target, board.known_hosts())
            assert error.kind == "auth_failed"
            assert "hung up after 3 keys" in str(error)
            assert all(
                f"wrong{i} of the ssh-agent (ssh-ed25519 {fingerprint(wrong[i])})" in str(error) for i in range(3)
            )
            assert "IdentitiesOnly yes" in str(error)
            one = SshTarget(target.destination, board.port, board.identity, config)
            with SshSession.connect(one, known_hosts=board.known_hosts()) as session:
                assert session.run("echo in", seconds=20).stdout == b"in\n"


def test_the_agents_key_is_chosen_by_its_public_half(tmp_path: Path) -> None:
    with LoopbackBoard(tmp_path / "b", settings=["MaxAuthTries 2"]) as board:
        wrong = [make_key(tmp_path / f"wrong{i}") for i in range(3)]
        public = tmp_path / "only-public"
        public.with_name("only-public.pub").write_text(board.identity.with_name("id_ed25519.pub").read_text())
        with ssh_agent(tmp_path, *wrong, board.identity) as agent:
            config = board.config(f"IdentityAgent {agent}\nIdentityFile {public}\nIdentitiesOnly yes\n")
            config.write_text(config.read_text().replace(f"IdentityFile {board.identity}\n", ""))
            target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
            with SshSession.connect(target, known_hosts=board.known_hosts()) as session:
                assert session.run("echo in", seconds=20).stdout == b"in\n"


def test_refused_keys_are_named_and_nothing_is_asked_for(
    board: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("getpass.getpass", ask)
    stranger = make_key(tmp_path / "stranger", "ecdsa")
    locked = make_key(tmp_path / "locked", passphrase="secret")
    broken = tmp_path / "broken"
    broken.write_text("no key\n")
    config = board.config(
        f"IdentityAgent {tmp_path}/no-agent\n"
        + "".join(f"IdentityFile {path}\n" for path in (stranger, locked, broken, tmp_path / "absent"))
    )
    config.write_text(config.read_text().replace(f"IdentityFile {board.identity}\n", ""))
    target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
    text = str(_refused(target, board.known_hosts()))
    assert f"accepts none of the keys: tried {stranger} (ecdsa-sha2-nistp256 {fingerprint(stranger)})" in text
    assert f"{locked} (has a passphrase; type: ssh-add {locked})" in text
    assert f"{broken} (cannot be read as a private key" in text
    assert f"the ssh-agent ({tmp_path}/no-agent does not answer" in text
    assert "absent" not in text
    assert f"ssh-copy-id -p {board.port} {board.user}@{board.host}" in text
    assert "It accepts: publickey." in text


def test_an_agent_that_hangs_is_passed_over_and_one_that_refuses_is_named(board: LoopbackBoard, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        config = board.config(f"IdentityAgent {tmp_path}/silent.sock\n")
        target = SshTarget(f"{board.user}@{board.host}", board.port, config=config)
        with SshSession.connect(target, known_hosts=board.known_hosts(), deadlines=Deadlines(auth=2)) as session:
            assert session.run("echo in", seconds=20).stdout == b"in\n"
    with ssh_agent(tmp_path / "s", board.identity, confirm=True) as agent:
        config = board.config(f"IdentityAgent {agent}\n")
        error = _refused(SshTarget(f"{board.user}@{board.host}", board.port, config=config), board.known_hosts())
    assert (error.kind, "the ssh-agent did not sign with id_ed25519" in str(error)) == ("auth_failed", True)


def test_a_passphrase_is_asked_for_where_somebody_is_there(
    board: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret")
    asked: list[str] = []
    answers = iter(["wrong", "secret"])

    def ask(prompt: str = "") -> str:
        asked.append(prompt)
        return next(answers)

    monkeypatch.setattr("getpass.getpass", ask)
    board.authorize(board.identity, locked)
    target = board.target(identity=locked)
    assert "the passphrase does not open it" in str(_refused(target, board.known_hosts(), batch=False))
    with SshSession.connect(target, known_hosts=board.known_hosts(), batch=False) as session:
        assert session.run("echo in", seconds=20).stdout == b"in\n"
    assert asked == [f"Passphrase for {locked}: "] * 2


def test_a_server_that_wants_passwords_is_named_as_that(tmp_path: Path) -> None:
    settings = ["AuthenticationMethods password", "PasswordAuthentication yes"]
    with LoopbackBoard(tmp_path / "b", settings=settings) as board:
        error = _refused(board.target(), board.known_hosts())
    assert error.kind == "auth_failed"
    assert "accepts no keys, only: password" in str(error)


# -- servers that are not what they should be


@pytest.mark.parametrize(
    "settings", [["Ciphers aes128-cbc,3des-cbc"], ["MACs hmac-sha1,hmac-md5", "Ciphers aes128-ctr"]]
)
def test_weak_encryption_is_refused(tmp_path: Path, settings: list[str]) -> None:
    with LoopbackBoard(tmp_path / "b", settings=settings) as board:
        error = _refused(board.target(), board.known_hosts())
    assert error.kind == "version_mismatch"
    assert "no encryption that is still safe" in str(error)


def test_a_port_nobody_listens_on_and_a_name_nobody_has(board: LoopbackBoard, link: LinkFault) -> None:
    link.shut()
    closed = _refused(board.target(port=link.port), board.known_hosts())
    assert (closed.kind, "is it still starting?" in str(closed)) == ("connection_lost", True)
    nameless = _refused(SshTarget("no-such-board.invalid", config=board.empty_config()), board.known_hosts())
    assert (nameless.kind, "no machine is called" in str(nameless)) == ("connection_lost", True)


def test_a_machine_that_does_not_answer(board: LoopbackBoard) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # the system takes two or so for it, and drops the rest
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        target = board.target(port=full.getsockname()[1])
        error = _refused(target, board.known_hosts(), Deadlines(connect=0.3))
        for one in waiting:
            one.close()
    assert (error.kind, "does not answer" in str(error)) == ("connection_lost", True)


@pytest.mark.parametrize(
    ("greeting", "words"), [(b"", "no SSH handshake"), (b"HTTP/1.1 400 \x1b[2JBad\r\n", "Is it an SSH server?")]
)
def test_something_else_that_listens_there(board: LoopbackBoard, greeting: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)
                while connection.recv(1000):
                    pass

        answering = threading.Thread(target=answer)
        answering.start()
        quick = Deadlines(banner=0.3)
        error = _refused(board.target(port=listener.getsockname()[1]), board.known_hosts(), quick)
        answering.join()
    assert error.kind == "connection_lost"
    assert words in str(error)
    assert "\x1b" not in str(error)


def test_the_deadlines_are_those_of_the_design() -> None:
    assert Deadlines() == Deadlines(connect=10, banner=15, auth=15, channel=10, silence=15, pulse=5)


# -- through other hosts


def _through(board: LoopbackBoard, gate: LoopbackBoard, known: str) -> SshTarget:
    (board.folder / "all-known").write_text(known)
    config = board.config(
        f"Host target\n  HostName {board.host}\n  Port {board.port}\n  ProxyJump {gate.user}@gate\n"
        f"Host gate\n  HostName {gate.host}\n  Port {gate.port}\n  IdentityFile {gate.identity}\n"
        f"Host *\n  UserKnownHostsFile {board.folder / 'all-known'}\n"
    )
    return SshTarget(f"{board.user}@target", config=config)


def test_a_board_behind_another_host_is_reached_with_both_keys_checked(
    board: LoopbackBoard, own_board: LoopbackBoard, tmp_path: Path
) -> None:
    """F43: ProxyJump and alias, as `ssh` takes them; each host has keys of its own and wants another key of ours."""
    known = {b: b.known_hosts(tmp_path / str(b.port)).read_text() for b in (board, own_board)}
    target = _through(board, own_board, known[board] + known[own_board])
    with SshSession.connect(target, known_hosts=None) as session:
        assert session.run("pwd", seconds=20).stdout == f"{board.home}\n".encode()
        assert session.run("cat | wc -c", stdin=bytes(3_000_000), seconds=60).stdout.split() == [b"3000000"]
    assert offered_host_key(target).fingerprint == fingerprint(board.host_key())

    before = _logins(board)
    error = _refused(_through(board, own_board, known[board]), tmp_path / "absent")
    assert (error.kind, f"port {own_board.port}" in str(error)) == ("host_key_unknown", True)
    error = _refused(_through(board, own_board, known[own_board]), tmp_path / "absent")
    assert (error.kind, f"port {board.port}" in str(error)) == ("host_key_unknown", True)
    assert _logins(board) == before


def test_a_host_that_lets_nothing_through_and_one_that_leads_nowhere(board: LoopbackBoard, tmp_path: Path) -> None:
    with LoopbackBoard(tmp_path / "gate", settings=["AllowTcpForwarding no"]) as gate:
        error = _refused(_through(board, gate, gate.known_hosts().read_text()), tmp_path / "absent")
        assert (error.kind, "AllowTcpForwarding" in str(error)) == ("auth_failed", True)
    with LoopbackBoard(tmp_path / "open-gate") as gate:
        target = _through(board, gate, gate.known_hosts().read_text())
        assert target.config is not None
        target.config.write_text(target.config.read_text().replace(f"Port {board.port}\n", "Port 1\n"))
        error = _refused(target, tmp_path / "absent")
        assert (error.kind, "cannot reach" in str(error)) == ("connection_lost", True)


def test_a_key_file_that_is_absent_is_the_users_error(board: LoopbackBoard, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no key file"):
        SshSession.connect(board.target(identity=tmp_path / "absent"), known_hosts=board.known_hosts())
