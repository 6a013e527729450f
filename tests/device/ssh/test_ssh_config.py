"""The way to a board is the one that `ssh` itself would take."""

from __future__ import annotations

import getpass
import logging
import subprocess
from pathlib import Path

import pytest
from device.ssh.board import make_key, require_sshd

from rlprune_edge.device.ssh import _read_config, names_of
from rlprune_edge.device.ssh_config import Hop, Settings, SshTarget, resolve
from rlprune_edge.errors import UserError


@pytest.fixture(autouse=True)
def _openssh() -> None:
    require_sshd()


def _config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config"
    path.write_text(text)
    return path


def _no_fallback(path: Path, host: str) -> Settings:
    raise AssertionError(f"OpenSSH is here, yet {path} was read for {host}")


def _way(tmp_path: Path, text: str, destination: str = "board", **more: object) -> list[Hop]:
    target = SshTarget(destination, config=_config(tmp_path, text), **more)
    return resolve(target, fallback=_no_fallback)


def test_alias_include_and_everything_else_come_from_openssh(tmp_path: Path) -> None:
    (tmp_path / "more").write_text(
        "Host board\n  HostName 10.0.0.7\n  HostKeyAlias The-Board\n  IdentitiesOnly yes\n"
        f"  IdentityFile {tmp_path}/%h-key\n  IdentityFile ~/second\n  IdentityAgent {tmp_path}/agent\n"
        "  UserKnownHostsFile ~/ours /etc/theirs\n  GlobalKnownHostsFile none\n"
    )
    text = f"Include {tmp_path}/more\nMatch originalhost board\n  User pi\n  Port 2222\n"
    (hop,) = _way(tmp_path, text)
    done = subprocess.run(["ssh", "-G", "-F", tmp_path / "config", "board"], capture_output=True, text=True, check=True)
    theirs = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (hop.host, hop.user, str(hop.port)) == (theirs["hostname"], theirs["user"], theirs["port"])
    assert (hop.host, hop.user, hop.port) == ("10.0.0.7", "pi", 2222)
    assert hop.identities == (tmp_path / "10.0.0.7-key", Path.home() / "second")
    assert (hop.identities_only, hop.agent, hop.names) == (True, f"{tmp_path}/agent", ("the-board",))
    assert [path.name for path in hop.known_hosts] == ["ours", "theirs"]
    assert names_of(SshTarget("board", config=tmp_path / "config")) == ("the-board",)


def test_what_is_typed_comes_before_the_configuration(tmp_path: Path) -> None:
    identity = make_key(tmp_path / "key")
    text = "Host board\n  User pi\n  Port 2222\n  IdentityFile ~/other\n"
    (hop,) = _way(tmp_path, text, "me@board", port=2200, identity=identity)
    assert (hop.user, hop.host, hop.port) == ("me", "board", 2200)
    assert (hop.identities, hop.identities_only) == ((identity,), True)
    (hop,) = _way(tmp_path, text, "ssh://you@board:2300")
    assert (hop.user, hop.host, hop.port) == ("you", "board", 2300)
    assert hop.names == ("[board]:2300", "board")
    assert str(hop) == "you@board, port 2300"


def test_the_agent_is_the_one_of_the_environment_unless_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/one")
    monkeypatch.setenv("OTHER_SOCK", "/two")
    assert _way(tmp_path, "")[0].agent == "/one"
    assert _way(tmp_path, "IdentityAgent none\n")[0].agent is None
    assert _way(tmp_path, "IdentityAgent $OTHER_SOCK\n")[0].agent == "/two"
    monkeypatch.delenv("SSH_AUTH_SOCK")
    assert _way(tmp_path, "IdentityAgent SSH_AUTH_SOCK\n")[0].agent is None


def test_every_jump_is_resolved_in_turn(tmp_path: Path) -> None:
    text = (
        "Host board\n  ProxyJump me@gate:2200,inner\n  HostName 10.0.0.7\n"
        "Host inner\n  HostName 10.0.0.1\n  User admin\n  ProxyJump nowhere\n"
        "Host gate\n  HostName gate.example.org\n"
    )
    way = _way(tmp_path, text)
    assert [(hop.user, hop.host, hop.port) for hop in way[:2]] == [
        ("me", "gate.example.org", 2200),
        ("admin", "10.0.0.1", 22),
    ]
    assert way[2].host == "10.0.0.7"
    # On its own, a single jump goes the way that is configured for it.
    way = _way(tmp_path, "Host board\n  ProxyJump a\nHost a\n  ProxyJump ssh://b:99\nHost b\n  ProxyJump [::1]:98\n")
    assert [(hop.host, hop.port) for hop in way] == [("::1", 98), ("b", 99), ("a", 22), ("board", 22)]


@pytest.mark.parametrize(
    ("text", "destination", "words"),
    [
        ("Host board\n  ProxyCommand nc %h %p\n", "board", "ProxyCommand, which is not supported; write 'ProxyJump"),
        ("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", "a", "in a circle: a -> b -> a"),
        ("Host board\n  Bananas yes\n", "board", "Bad configuration option"),
        ("", "-oProxyCommand=true", "is not a host"),
        ("", "board; true", "is not a host"),
        ("", "", "is not a host"),
        ("", "bo\x1bard", "is not a host"),
    ],
)
def test_what_cannot_be_followed_is_said(tmp_path: Path, text: str, destination: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        _way(tmp_path, text, destination)
    assert words.lower() in str(caught.value).lower()


def test_a_key_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no key file"):
        _way(tmp_path, "", identity=tmp_path / "absent")


def test_without_openssh_the_file_is_read_and_include_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "more").write_text("Host board\n  Port 99\n")
    text = (
        f"Include {tmp_path}/more\n"
        "Host board\n  HostName 10.0.0.7\n  User pi\n  ProxyJump gate\n  IdentityFile ~/a\n  IdentityFile ~/b\n"
    )
    target = SshTarget("board", config=_config(tmp_path, text))
    with caplog.at_level(logging.WARNING):
        gate, board = resolve(target, fallback=_read_config, openssh=None)
    assert (gate.host, gate.user) == ("gate", getpass.getuser())
    assert (board.host, board.user, board.port) == ("10.0.0.7", "pi", 22)
    assert board.identities == (Path.home() / "a", Path.home() / "b")
    assert "Include is not used; install openssh-client" in caplog.text
    plain = resolve(SshTarget("ssh://me@board:2222", config=tmp_path / "absent"), fallback=_read_config, openssh=None)
    assert [(hop.user, hop.host, hop.port) for hop in plain] == [("me", "board", 2222)]
    assert plain[0].known_hosts[0] == Path.home() / ".ssh" / "known_hosts"


def test_a_configuration_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlprune_edge.device.ssh_config._RESOLVE_SECONDS", 0.2)
    with pytest.raises(UserError, match="slow 'Match exec'"):
        _way(tmp_path, 'Match exec "sleep 2"\n  User pi\n')
