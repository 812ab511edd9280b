"""Models: which versions there are, of what content, and who vouches for each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg

from cloud_hub.store import pool, sql
from shared import signatures

_SQL: Final = sql.load("models")


class Taken(Exception):
    """The version is there with other content, which is never changed."""

    def __init__(self, present: Version) -> None:
        super().__init__(f"{present.name}@{present.version} is there with other content")
        self.present = present


class Targeted(Exception):
    """Agents are to serve this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a model."""

    name: str
    version: str
    sha256: str
    """Of its package's archive."""
    size: int
    """Bytes of that."""
    signed: signatures.Signed | None
    pushed_at: datetime
    manifest: str | None
    """None: it was not asked for."""


async def every(connection: pool.Connection, name: str | None = None) -> list[Version]:
    """All versions of all models, or of one; by name, the version pushed last first, without manifests."""
    cursor = await connection.execute(_SQL["list"], {"name": name})
    return [_version(row) for row in await cursor.fetchall()]


async def find(connection: pool.Connection, name: str, version: str) -> Version | None:
    cursor = await connection.execute(_SQL["find"], {"name": name, "version": version})
    row = await cursor.fetchone()
    return None if row is None else _version(row)


async def add(
    connection: pool.Connection,
    name: str,
    version: str,
    sha256: str,
    manifest: str,
    signed: signatures.Signed | None,
) -> bool:
    """Add a version of a content that is complete; False if it was there with the same content.

    Then a new signature takes the place of the former one, and no signature leaves that. Raises Taken.
    """
    key, signature = signed or (None, None)
    words = {"name": name, "version": version, "key": key, "signature": signature}
    present = None
    while present is None:  # or it was there, and was removed before it could be looked at
        added = await connection.execute(_SQL["add"], {**words, "sha256": sha256, "manifest": manifest})
        if added.rowcount:
            return True
        present = await find(connection, name, version)
    if present.sha256 != sha256:
        raise Taken(present)
    if signed is not None and signed != present.signed:
        await connection.execute(_SQL["sign"], words)
    return False


async def remove(connection: pool.Connection, name: str, version: str) -> bool:
    """Forget a version; False if there is none. Its content is swept away later. Raises Targeted."""
    try:
        gone = await connection.execute(_SQL["remove"], {"name": name, "version": version})
    except psycopg.errors.ForeignKeyViolation:
        raise Targeted from None
    return gone.rowcount > 0


def _version(row: tuple[Any, ...]) -> Version:
    name, version, sha256, size, key, signature, pushed_at, manifest = row
    return Version(
        name=name,
        version=version,
        sha256=sha256,
        size=size,
        signed=None if key is None else signatures.Signed(key, signature),
        pushed_at=pushed_at,
        manifest=manifest,
    )
