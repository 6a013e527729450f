"""F25: files that OpenSSH itself has written, and lines that should not be there."""

from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest
from device.ssh.board import fingerprint, make_key, require_sshd

from rlprune_edge.device.known_hosts import HostKey, Verdict, forget, host_key, read, remember
from rlprune_edge.errors import UserError


class Keys:
    """Two keys of one type and one of another."""

    def __init__(self, folder: Path) -> None:
        require_sshd()
        self.files = {name: make_key(folder / name, kind) for name, kind in _KINDS.items()}
        self.one, self.other, self.ecdsa = (self.key(name) for name in _KINDS)

    def key(self, name: str) -> HostKey:
        kind, blob = self.files[name].with_suffix(".pub").read_text().split()[:2]
        return host_key(kind, base64.b64decode(blob))


_KINDS = {"one": "ed25519", "other": "ed25519", "ecdsa": "ecdsa"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def _judge(tmp_path: Path, text: str, key: HostKey, *names: str) -> Verdict:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    return read([path]).judge(names or ("pi4",), key)


def test_fingerprints_are_those_of_openssh(keys: Keys) -> None:
    assert keys.one.fingerprint == fingerprint(keys.files["one"])
    assert keys.ecdsa.fingerprint == fingerprint(keys.files["ecdsa"])


@pytest.mark.parametrize(
    ("hosts", "name", "state"),
    [
        ("pi4", "pi4", "known"),
        ("PI4", "pi4", "known"),
        ("pi4,192.168.1.5", "192.168.1.5", "known"),
        ("[pi4]:2222", "[pi4]:2222", "known"),
        ("[pi4]:2222", "pi4", "unknown"),
        ("*.lab", "pi4.lab", "known"),
        ("*.lab,!old.lab", "old.lab", "unknown"),
        ("!old.lab,*.lab", "pi4.lab", "known"),
        ("pi?", "pi4", "known"),
        ("pi?", "pi45", "unknown"),
        ("[*]:2222", "[pi4]:2222", "known"),
        ("pi[4]", "pi4", "unknown"),
        ("pi.lab", "pixlab", "unknown"),
    ],
)
def test_patterns(tmp_path: Path, keys: Keys, hosts: str, name: str, state: str) -> None:
    assert _judge(tmp_path, f"{hosts} {keys.one.line} a comment\n", keys.one, name).state == state


def test_names_that_openssh_hashed_are_found(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"pi4,192.168.1.5 {keys.one.line}\n[pi5]:2222 {keys.other.line}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert all(line.startswith("|1|") for line in path.read_text().splitlines())
    known = read([path])
    assert known.judge(["192.168.1.5"], keys.one).state == "known"
    assert known.judge(["[pi5]:2222"], keys.other).state == "known"
    assert known.judge(["[pi5]:2222"], keys.one).state == "changed"
    assert known.complaints == []


def test_another_key_is_a_change_and_says_what_was_expected_and_where(tmp_path: Path, keys: Keys) -> None:
    verdict = _judge(tmp_path, f"# ours\n\npi4 {keys.one.line}\n", keys.other)
    assert (verdict.state, [entry.key for entry in verdict.entries]) == ("changed", [keys.one])
    assert verdict.entries[0].where == f"{tmp_path / 'known_hosts'}:3"


def test_a_key_of_a_type_that_was_not_known_is_a_change_too(tmp_path: Path, keys: Keys) -> None:
    assert _judge(tmp_path, f"pi4 {keys.one.line}\n", keys.ecdsa).state == "changed"
    known = read([tmp_path / "known_hosts"])
    assert known.kinds(["pi4"]) == ["ssh-ed25519"]


def test_one_line_that_agrees_is_enough_but_a_revoked_key_is_refused(tmp_path: Path, keys: Keys) -> None:
    lines = f"pi4 {keys.other.line}\npi4 {keys.one.line}\n"
    assert _judge(tmp_path, lines, keys.one).state == "known"
    assert _judge(tmp_path, f"{lines}@revoked * {keys.one.line}\n", keys.one).state == "revoked"
    assert _judge(tmp_path, f"@revoked * {keys.one.line}\n{lines}", keys.other).state == "known"


def test_without_its_port_a_name_can_confirm_but_not_accuse(tmp_path: Path, keys: Keys) -> None:
    names = ("[pi4]:2222", "pi4")
    assert _judge(tmp_path, f"pi4 {keys.one.line}\n", keys.one, *names).state == "known"
    assert _judge(tmp_path, f"pi4 {keys.one.line}\n", keys.other, *names).state == "unknown"
    assert _judge(tmp_path, f"pi4 {keys.one.line}\n[pi4]:2222 {keys.other.line}\n", keys.one, *names).state == "changed"


def test_a_certificate_authority_does_not_count_but_is_mentioned(tmp_path: Path, keys: Keys) -> None:
    verdict = _judge(tmp_path, f"@cert-authority *.lab {keys.one.line}\n", keys.one, "pi4.lab")
    assert (verdict.state, len(verdict.authorities)) == ("unknown", 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pi4", "expected 'hosts keytype key'"),
        ("pi4 ssh-ed25519 not-base64!", "not base64"),
        ("pi4 ssh-rsa {key}", "not of the type ssh-rsa"),
        ("@trusted pi4 ssh-ed25519 {key}", "unknown marker"),
        ("|2|abc|def ssh-ed25519 {key}", "unknown way of hashing"),
        ("|1|abc|d*f ssh-ed25519 {key}", "not base64"),
        ("pi4 1024 35 12345678901234567890", "not base64"),
        ("\x1b]0;title\x07 ssh-\x1b[31mrsa AAAA", "not of the type ssh-\ufffd[31mrsa"),
    ],
)
def test_a_bad_line_costs_a_warning_and_nothing_else(tmp_path: Path, keys: Keys, line: str, words: str) -> None:
    text = line.format(key=keys.one.line.split()[1])
    path = tmp_path / "known_hosts"
    path.write_bytes(text.encode() + b"\n\xff\xfe\n" + f"pi4 {keys.other.line}\n".encode())
    known = read([path, tmp_path / "absent"])
    assert known.judge(["pi4"], keys.other).state == "known"
    assert len(known.complaints) == 2
    assert f"{path}:1" in known.complaints[0]
    assert words in known.complaints[0]


def test_a_file_that_cannot_be_read_is_complained_of(tmp_path: Path, keys: Keys) -> None:
    known = read([tmp_path])
    assert known.judge(["pi4"], keys.one).state == "unknown"
    assert "cannot be read" in known.complaints[0]


def test_what_is_remembered_is_hashed_private_and_found_by_openssh(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "config" / "known_hosts"
    remember(path, ["Pi4.lab"], keys.one)
    remember(path, ["[pi5]:2222"], keys.ecdsa)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line[:3] for line in path.read_text().splitlines()] == ["|1|", "|1|"]
    assert "pi4.lab" not in path.read_text().lower()
    for name, key in (("pi4.lab", keys.one), ("[pi5]:2222", keys.ecdsa)):
        done = subprocess.run(["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, text=True, check=True)
        assert key.line in done.stdout
        assert read([path]).judge([name], key).state == "known"
    assert [entry.name for entry in path.parent.iterdir()] == ["known_hosts"]


def test_a_new_decision_replaces_the_old_one_and_leaves_the_rest(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "known_hosts"
    kept = f"@revoked pi4 {keys.ecdsa.line}\n# a note\npi5 {keys.one.line}\n*.lab {keys.one.line}\n"
    path.write_text(f"{kept}pi4 {keys.one.line}\n")
    remember(path, ["pi4"], keys.other)
    assert path.read_text().startswith(kept)
    assert len(path.read_text().splitlines()) == 5
    assert read([path]).judge(["pi4"], keys.one).state == "changed"
    assert forget(path, ["pi4"]) == 1
    assert path.read_text() == kept
    assert forget(path, ["pi4"]) == 0


def test_what_cannot_be_written_is_the_users_business(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        remember(tmp_path / "file" / "known_hosts", ["pi4"], keys.one)
