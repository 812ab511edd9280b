"""Months of result rows: partitions by the time in the task ids, made ahead and dropped whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from psycopg import sql as composing

from cloud_hub.store import ids, pool, sql
from shared import tasks

_SQL: Final = sql.load("partitions")


class Month(NamedTuple):
    """A calendar month, in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, instant: datetime) -> Self:
        utc = instant.astimezone(UTC)
        return cls(utc.year, utc.month)

    @classmethod
    def named(cls, table: str) -> Self:
        """The month whose partition is called `table`."""
        _results, year, month = table.split("_")
        return cls(int(year), int(month))

    @property
    def table(self) -> str:
        return f"results_{self.year:04}_{self.month:02}"

    @property
    def begin(self) -> datetime:
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    def next(self) -> Month:
        return Month(self.year + 1, 1) if self.month == 12 else Month(self.year, self.month + 1)


async def ensure(connection: pool.Connection, now: datetime, ahead: int = 2) -> list[str]:
    """Make the partitions of this month and the next `ahead`; returns the names of those made."""
    await connection.execute(_SQL["lock"])
    present = await _months(connection)
    made = []
    month = Month.of(now)
    for _ in range(ahead + 1):
        if month not in present:
            for step in ("create", "move", "attach"):
                await connection.execute(_compose(step, month))
            made.append(month.table)
        month = month.next()
    return made


async def drop_before(connection: pool.Connection, instant: datetime) -> list[str]:
    """Drop the months that end at or before `instant`, rows and all; returns their names."""
    await connection.execute(_SQL["lock"])
    past = [month for month in await _months(connection) if month.next().begin <= instant]
    for month in past:
        await connection.execute(_compose("drop", month))
    return [month.table for month in past]


async def _months(connection: pool.Connection) -> list[Month]:
    cursor = await connection.execute(_SQL["months"])
    return [Month.named(table) for (table,) in await cursor.fetchall()]


def _compose(step: str, month: Month) -> composing.Composed:
    """DDL takes no parameters, so names and bounds are composed, quoted, into the block."""
    return composing.SQL(_SQL[step].decode()).format(
        month=composing.Identifier(month.table),
        begin=composing.Literal(tasks.format_id(ids.lowest(month.begin))),
        end=composing.Literal(tasks.format_id(ids.lowest(month.next().begin))),
    )
