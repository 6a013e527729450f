"""Who made a bundle: an Ed25519 signature (RFC 8032) over SHA256SUMS, which holds the sha256 of every other file.

Keys are those of `ssh-keygen -t ed25519`, or PEM files as OpenSSL writes them. signature.json, format 1: `algorithm`
("ed25519"), `public_key` (32 bytes) and `signature` (64 bytes), both in base64. What is signed begins with `CONTEXT`,
so that no signature made for another purpose fits a bundle.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rlprune_edge import whole_file
from rlprune_edge.bundle.manifest import SIGNATURE, BundleError
from rlprune_edge.errors import UserError

CONTEXT = b"rlprune-edge bundle\n"
FORMAT = 1
_ALGORITHM = "ed25519"
_BYTES_MAX = 10_000
_MAKE_ONE = "ssh-keygen -t ed25519 -f signing-key"


@dataclass(frozen=True)
class Signer:
    """A private key, ready to sign."""

    key: Ed25519PrivateKey

    def sign(self, sums: bytes) -> bytes:
        """The content of signature.json for a bundle with this SHA256SUMS."""
        return _content(_raw(self.key.public_key()), self.key.sign(CONTEXT + sums))

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return fingerprint(self.key.public_key())


def load_signer(path: Path, ask: Callable[[], str | None] = lambda: None) -> Signer:
    """The signer of a private key file; `ask` is asked for the passphrase of a protected one. Raises UserError."""
    data = _read(path)
    openssh = b"OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        try:
            key = load(data, password=None)
        except TypeError:  # it is protected
            words = ask()
            if not words:
                raise UserError(f"{path} is protected by a passphrase, and none was given") from None
            key = load(data, password=words.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is no private key that can be read: {error}. Make one: {_MAKE_ONE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is a key of another kind; bundles are signed with Ed25519. Make one: {_MAKE_ONE}")
    return Signer(key)


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a file. Raises UserError."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UserError(f"{path} is a private key: give the public one that belongs to it ({path}.pub)")
    load = serialization.load_pem_public_key if data.startswith(b"-----") else serialization.load_ssh_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is no public key that can be read: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is a key of another kind; bundles are signed with Ed25519")
    return key


def sign_in_place(folder: Path, signer: Signer, sums: bytes) -> None:
    """Write signature.json into a bundle whose SHA256SUMS is `sums`; an older one is replaced."""
    try:
        with whole_file.replacing(folder / SIGNATURE, beside=folder) as part:
            part.write_bytes(signer.sign(sums))
    except OSError as error:
        raise UserError(f"the signature could not be written at {folder / SIGNATURE}: {error.strerror}") from error


def check(data: bytes, sums: bytes, trusted: Iterable[Ed25519PublicKey]) -> str:
    """The fingerprint of the key that signed `sums`. Raises BundleError where the signature is not this bundle's.

    With `trusted` keys it must be one of them.
    """
    key, signature = _parse(data)
    try:
        key.verify(signature, CONTEXT + sums)
    except InvalidSignature:
        raise BundleError(f"{SIGNATURE} is not a signature of this bundle: one of the two was changed") from None
    known = {_raw(other) for other in trusted}
    if known and _raw(key) not in known:
        raise BundleError(f"{SIGNATURE} was made with the key {fingerprint(key)}, which is not one that you trust")
    return fingerprint(key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA256 of the key in OpenSSH's form, as `ssh-keygen -l` prints it."""
    blob = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1]
    digest = hashlib.sha256(base64.b64decode(blob)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _parse(data: bytes) -> tuple[Ed25519PublicKey, bytes]:
    try:
        found = json.loads(data.decode("utf-8"))
        public, signature = (base64.b64decode(found[name], validate=True) for name in ("public_key", "signature"))
        if found["format"] != FORMAT or found["algorithm"] != _ALGORITHM:
            raise ValueError(f"format {found['format']!r}, algorithm {found['algorithm']!r}")
        if _content(public, signature) != data:  # base64 has several texts for the same bytes, and JSON has more
            raise ValueError("it is not in the one form that it may have")
        return Ed25519PublicKey.from_public_bytes(public), signature
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BundleError(f"{SIGNATURE} is not a signature that this version reads ({error})") from None


def _content(public: bytes, signature: bytes) -> bytes:
    """The one valid content of signature.json for a key and a signature."""
    made = {
        "format": FORMAT,
        "algorithm": _ALGORITHM,
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return (json.dumps(made, indent=1) + "\n").encode()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_BYTES_MAX)
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {error.strerror}") from error
