"""The schema, version by version: migrations/NNNN_name.sql, each applied once, in order."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cloud_hub.store import partitions, pool, sql

_SQL: Final = sql.load("migrate")
_DIRECTORY: Final = Path(__file__).parent / "migrations"


class NewerSchema(Exception):
    """The database was migrated by a newer program than this one."""


class Migration(NamedTuple):
    """One step from a version of the schema to the next."""

    version: int
    name: str
    script: bytes


def migrations() -> list[Migration]:
    """All steps that this program knows, in order."""
    steps = []
    for path in sorted(_DIRECTORY.glob("*.sql")):
        number, _, name = path.stem.partition("_")
        steps.append(Migration(int(number), name, path.read_bytes()))
    return steps


async def migrate(dsn: str) -> int:
    """Bring the database to the newest version and make these months' partitions; returns the version.

    Several programs may do this at once: one does, the others wait and find it done.
    Raises NewerSchema if the database is ahead of this program.
    """
    connection = await pool.connect(dsn)
    async with connection:
        await connection.execute("SET lock_timeout = 0; SET statement_timeout = 0")
        await connection.execute(_SQL["lock"])
        await connection.commit()
        steps = migrations()
        present = await version(connection)
        newest = steps[-1].version
        if present > newest:
            raise NewerSchema(
                f"the database has version {present} of the schema and this program knows {newest}: "
                "run the newer program, or restore the database from before its migration"
            )
        await connection.execute(_SQL["create"])
        for step in steps:
            if step.version > present:
                await connection.execute(step.script)
                await connection.execute(_SQL["record"], {"version": step.version, "name": step.name})
                await connection.commit()
        await partitions.ensure(connection, datetime.now(UTC))
        await connection.commit()
        return newest


async def version(connection: pool.Connection) -> int:
    """The version of the database's schema, 0 for an empty database."""
    cursor = await connection.execute(_SQL["exists"])
    if await cursor.fetchone() == (False,):
        return 0
    row = await (await connection.execute(_SQL["version"])).fetchone()
    assert row is not None
    return int(row[0])
