"""Which scheduler may write: the one whose token is the newest."""

from __future__ import annotations

from cloud_hub.store import pool


class Deposed(Exception):
    """Another scheduler has taken the lead since; whoever gets this must stop granting."""


async def take(connection: pool.Connection) -> int:
    """Take the lead: a token higher than all before it."""
    raise NotImplementedError


async def check(connection: pool.Connection, token: int) -> None:
    """Hold the lead until the transaction ends; Deposed if `token` is not the newest."""
    raise NotImplementedError
