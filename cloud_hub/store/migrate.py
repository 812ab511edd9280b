"""The schema, version by version: migrations/NNNN_name.sql, each applied once, in order."""

from __future__ import annotations

from cloud_hub.store import pool


class NewerSchema(Exception):
    """The database was migrated by a newer program than this one."""


async def migrate(dsn: str) -> int:
    """Bring the database to the newest version and make the partitions of these months; returns the version.

    Several programs may do this at once.
    """
    raise NotImplementedError


async def version(connection: pool.Connection) -> int:
    """The version of the database's schema, 0 for an empty database."""
    raise NotImplementedError
