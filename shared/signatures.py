"""Who vouches for a model package: Ed25519 (RFC 8032) over its name, its version and its archive's SHA-256.

    backhaul-model-1
    NAME
    VERSION
    SHA-256, 64 hexadecimal digits

Each line ends with a newline. Public keys and signatures are written as `ed25519:` and base64, a private
key is a file in PEM (PKCS #8). Whoever signs or verifies nothing never loads `cryptography`.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final, NamedTuple

_PREFIX: Final = "ed25519:"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64


class BadKey(ValueError):
    """A key that cannot be read; the message says why."""


class BadSignature(ValueError):
    """A signature that is none of this key for this package."""


class Signed(NamedTuple):
    """A signature, and the public key that it can be verified with."""

    key: str
    signature: str


def message(name: str, version: str, sha256: str) -> bytes:
    """What is signed. Neither a name nor a version can have a newline in it."""
    return f"backhaul-model-1\n{name}\n{version}\n{sha256}\n".encode()


def generate(path: Path) -> str:
    """Write a new private key to `path`, for its owner alone to read; returns the public key.

    Raises FileExistsError rather than write over one.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return _written(key.public_key().public_bytes_raw())


def sign(pem: bytes, name: str, version: str, sha256: str) -> Signed:
    """Sign a package with the private key in `pem`. Raises BadKey."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise BadKey("the private key has a passphrase; take it off with `openssl pkey`") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("it is no private key in PEM; make one with `backhaul models keygen`") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKey("the private key is not of Ed25519; make one with `backhaul models keygen`")
    return Signed(
        _written(key.public_key().public_bytes_raw()), _written(key.sign(message(name, version, sha256)))
    )


def verify(signed: Signed, name: str, version: str, sha256: str) -> None:
    """Raises BadSignature unless the owner of the key signed this package, BadKey if that is no key.

    It says nothing about who that is: compare the key with those that you trust.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = read_key(signed.key)
    signature = _read(signed.signature)
    if signature is None or len(signature) != _SIGNATURE_BYTES:
        raise BadSignature(f"a signature is {_PREFIX} and {_SIGNATURE_BYTES} bytes in base64")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message(name, version, sha256))
    except InvalidSignature:
        raise BadSignature(
            f"{name}@{version} with SHA-256 {sha256} was not signed with {signed.key}"
        ) from None


def read_key(text: str) -> bytes:
    """The bytes of a public key as it is written; raises BadKey."""
    key = _read(text)
    if key is None or len(key) != _KEY_BYTES:
        raise BadKey(f"{text!r} is no public key: it would be {_PREFIX} and {_KEY_BYTES} bytes in base64")
    return key


def _written(raw: bytes) -> str:
    return _PREFIX + base64.b64encode(raw).decode()


def _read(text: str) -> bytes | None:
    if not text.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        return None
