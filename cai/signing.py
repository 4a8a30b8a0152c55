"""Signatures over the manifest of a run or a dataset, which holds the sha256 of every other file.

    DIR/manifest.json.sig   {"file", "kind", "public_key", "sha256", "signature"}, both keys and signatures in base64

Ed25519 (RFC 8032), over the bytes of manifest.json, so that `openssl pkeyutl -verify -rawin` checks it too. The public
key stands in the file only to tell whose signature it is and whether the file is whole: whoever changes the data can
make a key and sign it, so a signature proves something to those who have the public key from elsewhere.
"""

import base64
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cai.errors import BadInput
from cai.files import write_atomically
from cai.seal import SIGNATURE, Json

_KIND = "cai signature, Ed25519 over the bytes of manifest.json"
_MAKE = "openssl genpkey -algorithm ed25519 -out cai.key makes one."
_PUBLIC = "openssl pkey -in cai.key -pubout -out cai.pub makes it of the private one."
# More than any file with one key.
_MOST_BYTES = 100_000


class PrivateKey:
    """A key to sign with. It is never shown."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature file holds."""

    public_key: bytes
    sha256: str
    signature: bytes


def read_private_key(place: str, name: str) -> PrivateKey:
    """The private key in a PEM or OpenSSH file. `place` is what the error names.

    Raises BadInput if the file is none, is encrypted, holds another kind of key, or may be read by everyone.
    """
    data = _read(place, name, "an Ed25519 private key", _MAKE)
    if b"PRIVATE KEY-----" not in data:
        found = "a public key" if _is_public(data) else "no key"
        raise BadInput(place, found, "an Ed25519 private key, as PEM or OpenSSH writes it", _MAKE)
    if stat.S_IMODE(os.stat(name).st_mode) & stat.S_IROTH:
        raise BadInput(place, "a private key that everyone may read", "one for its owner alone", f"chmod 600 {name}")
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        key: Any = load(data, None)
    except TypeError:
        raise _encrypted(place) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        if "encrypted" in str(error).lower() or "password" in str(error).lower():
            raise _encrypted(place) from None
        # What the library says might quote the file.
        raise BadInput(place, "a private key that cannot be read", "an Ed25519 private key", _MAKE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(place, "a private key of another kind", "an Ed25519 private key", _MAKE)
    return PrivateKey(key)


def _encrypted(place: str) -> BadInput:
    remedy = "Take one without a password, in a place that only its owner can read."
    return BadInput(place, "a private key with a password", "one without", remedy)


def read_public_key(place: str, name: str) -> bytes:
    """The 32 bytes of the public key in a PEM or OpenSSH file. Raises BadInput if it holds none."""
    data = _read(place, name, "an Ed25519 public key", _PUBLIC)
    if b"PRIVATE KEY-----" in data:
        raise BadInput(place, "a private key", "the public one that belongs to it", _PUBLIC)
    if not _is_public(data):
        raise BadInput(place, "no key", "an Ed25519 public key, as PEM or OpenSSH writes it", _PUBLIC)
    pem = b"PUBLIC KEY-----" in data
    load = serialization.load_pem_public_key if pem else serialization.load_ssh_public_key
    try:
        key: Any = load(data.strip() if not pem else data)
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(place, "a public key that cannot be read", "an Ed25519 public key", _PUBLIC) from None
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(place, "a public key of another kind", "an Ed25519 public key", _PUBLIC)
    return key.public_bytes_raw()


def _is_public(data: bytes) -> bool:
    return b"PUBLIC KEY-----" in data or data.split(b" ", 1)[0].startswith((b"ssh-", b"ecdsa-", b"sk-"))


def _read(place: str, name: str, expected: str, remedy: str) -> bytes:
    try:
        with open(name, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise BadInput(place, found, expected, remedy) from None
    if len(data) > _MOST_BYTES:
        raise BadInput(place, "a file too long for a key", expected, remedy)
    return data


def sign(folder: Path, key: PrivateKey) -> Path:
    """Sign the manifest of a run or a dataset; returns the file of the signature. Raises CannotWrite."""
    data = (folder / "manifest.json").read_bytes()
    made: Json = {
        "kind": _KIND,
        "file": "manifest.json",
        "sha256": hashlib.sha256(data).hexdigest(),
        "public_key": _base64(key.public()),
        "signature": _base64(key.sign(data)),
    }
    write_atomically(folder / SIGNATURE, _text(made))
    return folder / SIGNATURE


def read_signature(data: bytes) -> Signature | None:
    """A signature file that is, byte by byte, as `sign` writes it; None if it is not."""
    try:
        told: Any = json.loads(data)
        found = Signature(
            base64.b64decode(told["public_key"], validate=True), told["sha256"],
            base64.b64decode(told["signature"], validate=True),
        )  # fmt: skip
        again = {
            "kind": _KIND, "file": "manifest.json", "sha256": found.sha256,
            "public_key": _base64(found.public_key), "signature": _base64(found.signature),
        }  # fmt: skip
        return found if _text(again) == data and len(found.public_key) == 32 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_signed(data: bytes, signature: Signature, public_key: bytes) -> bool:
    """Whether the signature over `data` was made with the private key that belongs to the public one."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature.signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public_key: bytes) -> str:
    """A short name of a public key: the beginning of the sha256 of its 32 bytes."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _text(value: Json) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")
