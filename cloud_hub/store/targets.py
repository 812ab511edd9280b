"""Targets: which version of a model the agents with some labels are to serve."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from cloud_hub.store import pool, sql
from shared import signatures

_SQL: Final = sql.load("targets")


class UnknownVersion(LookupError):
    """There is no such version of this model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A version of a model, for the agents that a selector fits, and what an agent needs to fetch it."""

    model: str
    selector: str
    """As `selectors.normal` writes it; empty: all agents."""
    version: str
    changed_at: datetime
    sha256: str
    size: int
    signed: signatures.Signed | None


async def every(connection: pool.Connection, model: str | None = None) -> list[Target]:
    """All targets, or those of one model; by model and selector."""
    cursor = await connection.execute(_SQL["list"], {"model": model})
    return [
        Target(
            model=name,
            selector=selector,
            version=version,
            changed_at=changed_at,
            sha256=sha256,
            size=size,
            signed=None if key is None else signatures.Signed(key, signature),
        )
        for name, selector, version, changed_at, sha256, size, key, signature in await cursor.fetchall()
    ]


async def put(connection: pool.Connection, model: str, selector: str, version: str) -> None:
    """Have the agents that `selector` fits serve this version. Raises UnknownVersion."""
    try:
        await connection.execute(_SQL["put"], {"model": model, "selector": selector, "version": version})
    except psycopg.errors.ForeignKeyViolation:
        raise UnknownVersion(f"{model}@{version}") from None


async def remove(connection: pool.Connection, model: str, selector: str) -> bool:
    """Withdraw a target; False if there is none."""
    gone = await connection.execute(_SQL["remove"], {"model": model, "selector": selector})
    return gone.rowcount > 0
