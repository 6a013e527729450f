"""A bundle says who made it, and neither a change nor another's signature passes for his."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle.test_bundle_verify import as_a_stranger, seal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from rlprune_edge.bundle.signature import load_public_key, load_signer, sign_in_place
from rlprune_edge.bundle.verify import BundleError, checked_sums, verify
from rlprune_edge.cli import app
from rlprune_edge.errors import UserError

SIGNATURE = "signature.json"


def key_files(folder: Path, name: str = "key", passphrase: bytes | None = None) -> tuple[Path, Path]:
    """A private key and its public one, as ssh-keygen writes them."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / name, folder / f"{name}.pub"
    locked = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    form = serialization.PrivateFormat.OpenSSH
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_files(tmp_path)


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path]) -> Path:
    sign_in_place(bundle, load_signer(keys[0]), checked_sums(bundle))
    return bundle


def test_a_signed_bundle_names_its_maker(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    listed = subprocess.run(["ssh-keygen", "-lf", keys[1]], capture_output=True, text=True, check=True).stdout.split()
    assert any(f"by {listed[1]}, a key that you trust" in line for line in verify(signed, [keys[1]]))
    assert any(f"by {listed[1]}, a key that was not compared with yours" in line for line in verify(signed))
    other = key_files(tmp_path, "other")[1]
    assert verify(signed, [other, keys[1]]) == verify(signed, [keys[1]])
    with pytest.raises(BundleError, match=r"signature\.json was made with the key SHA256:\S+, which is not one that"):
        verify(signed, [other])


def test_what_is_signed_while_it_is_written_is_the_same(
    write: Callable[..., Path], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    made = write(tmp_path / "made", sign=load_signer(keys[0]).sign)
    written = (made / SIGNATURE).read_bytes()
    sign_in_place(made, load_signer(keys[0]), checked_sums(made))
    assert (made / SIGNATURE).read_bytes() == written  # Ed25519 draws no random numbers
    verify(made, [keys[1]])


def test_no_byte_of_the_signature_or_of_what_it_signs_may_change(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE
    whole = path.read_bytes()
    fields = json.loads(whole)
    for name in ("public_key", "signature"):
        value = fields[name]
        for place in range(len(value)):
            other = "A" if value[place] != "A" else "B"
            path.write_text(json.dumps({**fields, name: value[:place] + other + value[place + 1 :]}, indent=1) + "\n")
            with pytest.raises(BundleError, match="signature"):
                verify(signed)
    for other_form in (json.dumps(fields).encode(), whole + b"\n", whole.replace(b"{", b'{ "x": 1,'), whole[:-1]):
        path.write_bytes(other_form)
        with pytest.raises(BundleError, match="not in the one form"):
            verify(signed)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BundleError, match="signature"):
            verify(signed)
    path.write_bytes(whole)
    seal_but_signature(signed)
    with pytest.raises(BundleError, match=r"signature\.json is not a signature of this bundle"):
        verify(signed, [keys[1]])


def seal_but_signature(bundle: Path) -> None:
    """Forge a figure and make all sums right again; the signature stays as it was."""
    kept = (bundle / SIGNATURE).read_bytes()
    (bundle / SIGNATURE).unlink()
    seal(bundle, lambda raw: raw["metrics"]["compressed"].update(metric=99.9))
    (bundle / SIGNATURE).write_bytes(kept)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2, "algorithm": "ed25519", "public_key": "", "signature": ""}',
        b'{"format": 1, "algorithm": "ed25519", "public_key": "AAAA", "signature": "AAAA"}',
        b'{"format": 1, "algorithm": "ed25519", "public_key": 7, "signature": null}',
        b"\xff",
    ],
)
def test_another_form_is_refused_in_a_sentence(signed: Path, content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError, match=r"signature\.json is not a signature that this version reads"):
        verify(signed)


def test_without_a_signature_trust_is_refused(bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(BundleError, match=r"signature\.json is missing .* nobody has signed this bundle"):
        verify(bundle, [keys[1]])


def test_without_cryptography_it_is_said_and_trust_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    done = as_a_stranger(signed)
    assert done.returncode == 0, done.stderr
    assert "ok signature.json: not checked, since the package cryptography is not there" in done.stdout
    done = as_a_stranger(signed, "--trust", str(keys[1]))
    assert done.returncode == 2
    assert "a signature is checked with the package cryptography" in done.stderr


def test_keys_of_every_form_and_what_is_none(tmp_path: Path) -> None:
    private, public = key_files(tmp_path, "locked", b"open sesame")
    with pytest.raises(UserError, match="protected by a passphrase, and none was given"):
        load_signer(private)
    with pytest.raises(UserError, match="no private key that can be read"):
        load_signer(private, lambda: "wrong")
    signer = load_signer(private, lambda: "open sesame")
    pem, pem_public = tmp_path / "pem", tmp_path / "pem.pub"
    pem.write_bytes(
        signer.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    pem_public.write_bytes(
        signer.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert load_signer(pem).sign(b"x") == signer.sign(b"x")
    assert load_public_key(pem_public) == load_public_key(public)
    with pytest.raises(UserError, match=rf"is a private key: give the public one .*{private}\.pub"):
        load_public_key(private)
    with pytest.raises(UserError, match="no public key that can be read"):
        load_public_key(Path(__file__))
    with pytest.raises(UserError, match=r"cannot read the key .*: No such file"):
        load_signer(tmp_path / "gone")
    strange = tmp_path / "rsa"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    strange.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    with pytest.raises(UserError, match="a key of another kind; bundles are signed with Ed25519"):
        load_signer(strange)


def test_the_commands(bundle: Path, keys: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["bundle", "sign", str(bundle), "--key", str(keys[0])])
    assert done.exit_code == 0, done
    words = done.stdout.splitlines()[-1].removeprefix("to check it: rlprune-edge ").split()
    assert "a key that you trust" in CliRunner().invoke(app, words).stdout
    (bundle / "predict.py").write_text("pass")
    refused = CliRunner().invoke(app, ["bundle", "sign", str(bundle), "--key", str(keys[0])]).exception
    assert "predict.py" in str(refused), "what is not whole is not signed"
