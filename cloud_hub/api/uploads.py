"""A model package on its way in: checked as its bytes pass, and stored piece by piece."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import psycopg
from fastapi import Request

from cloud_hub.api import context, problems
from cloud_hub.store import blobs, models, pool
from shared import inspection, manifests, packages, signatures

log = logging.getLogger(__name__)

PATIENCE_S: Final = 60.0
"""A push of which nothing comes for so long makes room for another."""
_TRIES: Final = 3


class Claims(NamedTuple):
    """What is said of a package beside its bytes."""

    name: str
    version: str
    signed: signatures.Signed | None
    sha256: str | None


async def receive(hub: context.Hub, request: Request, claims: Claims) -> bool:
    """Take the package in the body of `request`; False if the hub had it already.

    Raises Problem; then, as after a lost connection, nothing stays that is not swept away.
    """
    limit = hub.settings.max_model_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    async with pool.statement(hub.database) as connection:
        draft = await blobs.begin(connection)
    is_used = False
    try:
        found = await _store(hub, draft, request, limit)
        _check(found, claims)
        is_new, is_used = await _commit(hub, draft, claims, found)
        return is_new
    except (packages.BadArchive, manifests.BadPackage) as error:
        raise problems.Problem(problems.BAD_PACKAGE, str(error)) from None
    except (signatures.BadKey, signatures.BadSignature) as error:
        raise problems.Problem(problems.BAD_PACKAGE, str(error), where="backhaul-signature") from None
    except models.Taken as taken:
        raise refused(taken.present) from None
    except blobs.GivenUp:
        raise problems.Problem(
            problems.UNAVAILABLE,
            "the package came so slowly that it was given up; push it again",
            retry_after_s=problems.UNAVAILABLE_RETRY_S,
        ) from None
    finally:
        if not is_used:
            await _give_up(hub, draft)


async def _store(hub: context.Hub, draft: int, request: Request, limit: int) -> inspection.Found:
    """Store the body in the draft, a piece at a time, and say what it was."""
    looking = inspection.Inspection(packages.Limits(max_bytes=limit))
    number = 0
    async for piece in _pieces(request, limit):
        await asyncio.to_thread(looking.take, piece)
        async with pool.statement(hub.database) as connection:
            await blobs.append(connection, draft, number, piece)
        number += 1
    return looking.finish()


def _check(found: inspection.Found, claims: Claims) -> None:
    """Raises BadArchive, BadKey or BadSignature unless the package is what was said."""
    name, version, sha256 = found.manifest.name, found.manifest.version, found.packed.sha256
    if claims.sha256 not in (None, sha256):
        raise packages.BadArchive(f"its SHA-256 is {sha256}, not {claims.sha256} as was said; send it again")
    if (name, version) != (claims.name, claims.version):
        raise packages.BadArchive(
            f"its manifest says {name}@{version}, and the address {claims.name}@{claims.version}"
        )
    if claims.signed is not None:
        signatures.verify(claims.signed, name, version, sha256)


async def _pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces as the store wants them. Raises Problem if it is too large, or stops coming."""
    held = bytearray()
    size = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(PATIENCE_S):
                data = await anext(stream, None)
        except TimeoutError:
            raise problems.Problem(
                problems.TOO_SLOW, f"nothing came for {PATIENCE_S:.0f} s; push the package again"
            ) from None
        if data is None:
            break
        size += len(data)
        if size > limit:
            raise _too_large(limit)
        held += data
        while len(held) >= blobs.CHUNK_BYTES:
            yield bytes(held[: blobs.CHUNK_BYTES])
            del held[: blobs.CHUNK_BYTES]
    if held:
        yield bytes(held)


async def _commit(hub: context.Hub, draft: int, claims: Claims, found: inspection.Found) -> tuple[bool, bool]:
    """Whether the version is new, and whether the draft became its content. Raises models.Taken."""
    sha256, size, _ = found.packed
    for attempt in itertools.count(1):
        try:
            async with hub.connection() as connection:
                is_used = await blobs.complete(connection, draft, sha256, size)
                is_new = await models.add(
                    connection, claims.name, claims.version, sha256, found.text, claims.signed
                )
                return is_new, is_used
        except psycopg.errors.UniqueViolation:  # another push of the same content was quicker
            if attempt == _TRIES:
                raise
    raise AssertionError("nobody counts to the end")


async def _give_up(hub: context.Hub, draft: int) -> None:
    try:
        async with pool.statement(hub.database) as connection:
            await blobs.give_up(connection, draft)
    except pool.UNAVAILABLE as error:
        log.warning("a draft of a model package is left to be swept away: %s", error)


def claims(name: str, version: str, request: Request) -> Claims:
    """What the address and the headers say. Raises Problem."""
    if encoding := request.headers.get("content-encoding"):
        raise problems.Problem(
            problems.UNSUPPORTED,
            f"the body comes in content encoding {encoding!r}; send it as it is",
            where="content-encoding",
        )
    key, signature = (request.headers.get(f"backhaul-{what}") for what in ("key", "signature"))
    if (key is None) != (signature is None):
        raise problems.Problem(
            problems.INVALID,
            "the headers Backhaul-Key and Backhaul-Signature go together: send both, or neither",
            where="backhaul-signature" if signature is None else "backhaul-key",
        )
    signed = signatures.Signed(key, signature) if key is not None and signature is not None else None
    return Claims(name, version, signed, _digest(request.headers.get("content-digest")))


def refused(present: models.Version) -> problems.Problem:
    """What is said to one who pushes other content under a version that is there."""
    return problems.Problem(
        problems.VERSION_TAKEN,
        f"{present.name}@{present.version} was pushed with SHA-256 {present.sha256} and stays that; "
        f"change `version` in {manifests.MANIFEST} and push it under the new one",
        where="version",
    )


def _digest(header: str | None) -> str | None:
    """The SHA-256 in a `Content-Digest` (RFC 9530), `sha-256=:BASE64:`; other algorithms are passed over."""
    for member in (header or "").split(","):
        algorithm, _, value = member.strip().partition("=")
        if algorithm.lower() != "sha-256":
            continue
        try:
            raw = base64.b64decode(value.strip(":"), validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 32 or not (value.startswith(":") and value.endswith(":")):
            raise problems.Problem(
                problems.INVALID,
                "the digest would read sha-256=:BASE64:, with the 32 bytes in base64",
                where="content-digest",
            )
        return raw.hex()
    return None


def _too_large(limit: int) -> problems.Problem:
    return problems.Problem(
        problems.TOO_LARGE,
        f"the package has more than the {limit:,} bytes that are taken here; api.max_model_bytes in hub.toml "
        "says so",
    )
