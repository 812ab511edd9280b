"""Signatures of model packages."""

from __future__ import annotations

import base64
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import signatures

DIGEST = "ab" * 32

# RFC 8032, section 7.1, test 1: its secret key as PKCS #8, and its public key.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PEM = b"-----BEGIN PRIVATE KEY-----\n%b\n-----END PRIVATE KEY-----\n" % base64.b64encode(
    bytes.fromhex("302e020100300506032b657004220420") + SECRET
)


@pytest.fixture
def pem(tmp_path: Path) -> bytes:
    signatures.generate(tmp_path / "key.pem")
    return (tmp_path / "key.pem").read_bytes()


def test_a_signature_is_of_one_package(pem: bytes) -> None:
    """It holds for this name, this version and these bytes, and for nothing else."""
    signed = signatures.sign(pem, "defects", "1.0", DIGEST)
    signatures.verify(signed, "defects", "1.0", DIGEST)
    for name, version, sha256 in (
        ("defects2", "1.0", DIGEST),
        ("defects", "1.1", DIGEST),
        ("defects", "1.0", "cd" * 32),
    ):
        with pytest.raises(signatures.BadSignature, match="was not signed with ed25519:"):
            signatures.verify(signed, name, version, sha256)


def test_a_signature_is_of_one_key(pem: bytes, tmp_path: Path) -> None:
    """Another's key does not verify it."""
    signed = signatures.sign(pem, "defects", "1.0", DIGEST)
    other = signatures.generate(tmp_path / "other.pem")
    with pytest.raises(signatures.BadSignature):
        signatures.verify(signed._replace(key=other), "defects", "1.0", DIGEST)


def test_keys_and_signatures_are_those_of_the_standard() -> None:
    """The key of RFC 8032 gives its public key, and Ed25519 being deterministic always this signature."""
    signed = signatures.sign(PEM, "m", "1", DIGEST)
    assert signed.key == "ed25519:" + base64.b64encode(PUBLIC).decode()
    assert signatures.message("m", "1", DIGEST) == b"backhaul-model-1\nm\n1\n" + DIGEST.encode() + b"\n"
    assert signed == signatures.sign(PEM, "m", "1", DIGEST)
    signatures.verify(signed, "m", "1", DIGEST)


def test_a_private_key_is_its_owners_and_never_written_over(tmp_path: Path) -> None:
    """keygen's file can be read by its owner alone, and a key that is there stays."""
    path = tmp_path / "key.pem"
    signatures.generate(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        signatures.generate(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [b"", b"hello", PEM[:60], PEM.replace(b"MC4C", b"MC5C")])
def test_what_is_no_key_is_refused(bad: bytes) -> None:
    """A file that is none is named as such, with what to do."""
    with pytest.raises(signatures.BadKey, match="keygen"):
        signatures.sign(bad, "m", "1", DIGEST)


def test_keys_of_other_kinds_are_refused() -> None:
    """An RSA key or one with a passphrase is named for what it is."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, phrase: bytes | None) -> bytes:
        cipher = serialization.BestAvailableEncryption(phrase) if phrase else serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)

    with pytest.raises(signatures.BadKey, match="not of Ed25519"):
        signatures.sign(pem(ec.generate_private_key(ec.SECP256R1()), None), "m", "1", DIGEST)
    with pytest.raises(signatures.BadKey, match="passphrase"):
        signatures.sign(pem(ed25519.Ed25519PrivateKey.generate(), b"secret"), "m", "1", DIGEST)


@given(st.text(max_size=100) | st.text(max_size=100).map(lambda text: f"ed25519:{text}"))
def test_texts_that_are_no_keys_or_signatures_are_refused(text: str) -> None:
    """Whatever stands where a key or a signature should: the error is one of the two."""
    signed = signatures.sign(PEM, "m", "1", DIGEST)
    with pytest.raises(signatures.BadKey):
        signatures.verify(signed._replace(key=text), "m", "1", DIGEST)
    with pytest.raises(signatures.BadSignature):
        signatures.verify(signed._replace(signature=text), "m", "1", DIGEST)


@pytest.mark.parametrize("module", ["shared.signatures", "edge_agent.agent", "cloud_hub.api.app"])
def test_who_signs_nothing_loads_no_cryptography(module: str) -> None:
    """It is loaded when a signature is made or verified, and not before."""
    script = f"import sys, {module}; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
