"""Balances what the cameras published against what PostgreSQL holds.

Neither side's counters are believed: jobs are matched with rows one by one, by the task id in the reply.
A job without a reply has no task id yet; its device's rows that no camera knows may be its own, so those
are counted device by device.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psycopg
from psycopg import rows

from demo.notebook import Job, Notebook
from shared import tasks

RESULTS: Final = """
    SELECT r.task_id::text, r.item, r.device, r.outcome, r.label, a.site,
           extract(epoch FROM r.received_at - r.observed_at)::float8 AS lag_s
    FROM results r JOIN agents a USING (agent_id)
    WHERE r.device = ANY(%s)
"""
OVERFLOWED: Final = "SELECT count(*) FROM tasks WHERE origin_agent IS NOT NULL AND device = ANY(%s)"
SHADOWS: Final = "SELECT count(*) FROM shadows"
LANES: Final = """
    SELECT site, name, epoch, 'up' AS direction, lane, numbered, cursor, committed
    FROM up_lanes JOIN agents USING (agent_id)
    UNION ALL
    SELECT site, name, epoch, 'down', lane, numbered, acked, acked
    FROM down_lanes JOIN agents USING (agent_id)
    ORDER BY site, name, epoch, direction DESC, lane
"""


class Row(NamedTuple):
    """One row of results."""

    task_id: str
    item: int
    device: str
    outcome: str
    label: str | None
    site: str
    """Of the agent that ran it."""
    lag_s: float
    """From the agent's acceptance of the job to the hub's commit of the row."""


class Lane(NamedTuple):
    """The books of one lane, as the hub keeps them. Of a lane down, what is acknowledged is committed."""

    site: str
    name: str
    epoch: int
    direction: str
    lane: str
    numbered: int
    cursor: int
    committed: int

    @property
    def missing(self) -> int:
        return self.cursor - self.committed

    @property
    def waiting(self) -> int:
        return self.numbered - self.cursor

    def __str__(self) -> str:
        return f"{self.site}/{self.name} {self.direction} {self.lane}"


@dataclass(frozen=True)
class Stored:
    """What PostgreSQL holds of the cameras' jobs."""

    rows: Sequence[Row]
    overflowed: int
    """Tasks that the hub was handed."""
    shadows: int
    """Results that came a second time and were set aside."""
    lanes: Sequence[Lane]


@dataclass
class Balance:
    """Jobs against rows. With `lost` and `duplicates` 0, each job has exactly its one row."""

    lost: int = 0
    """Jobs that should have a row and have none."""
    duplicates: int = 0
    """Rows beyond the one of each job: second ones, and such that no camera can account for."""
    unlike: int = 0
    """Rows that say something else than the reply did."""
    row_of: dict[str, Row] = field(default_factory=dict)
    """The row of each job that was replied to, by the job's key."""


async def read(dsn: str, devices: Collection[str]) -> Stored:
    """Read what PostgreSQL holds, in one snapshot."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        results = await connection.cursor(row_factory=rows.args_row(Row)).execute(RESULTS, [list(devices)])
        found = await results.fetchall()
        lanes = await connection.cursor(row_factory=rows.args_row(Lane)).execute(LANES)
        return Stored(
            found,
            await _count(connection, OVERFLOWED, list(devices)),
            await _count(connection, SHADOWS),
            await lanes.fetchall(),
        )


async def _count(connection: psycopg.AsyncConnection, query: str, *parameters: object) -> int:
    cursor = connection.cursor(row_factory=rows.scalar_row)
    await cursor.execute(query.encode(), parameters)
    return int(await cursor.fetchone() or 0)


def balance(notebook: Notebook, stored: Iterable[Row]) -> Balance:
    """Match each job with its row."""
    result = Balance()
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in stored:
        by_task[row.task_id].append(row)
    waiting: Counter[str] = Counter()
    for job in notebook.jobs.values():
        if job.task_id is None:
            waiting[job.device] += 1
        else:
            _match(job, by_task.pop(job.task_id, []), result)
    # What is left belongs to tasks of which no camera was told: jobs that still wait for their reply may
    # be among them, one task each.
    unknown = Counter(its[0].device for its in by_task.values())
    result.duplicates += sum(len(its) - 1 for its in by_task.values())
    result.duplicates += (unknown - waiting).total()
    result.lost += (waiting - unknown).total()
    return result


def _match(job: Job, its: Sequence[Row], result: Balance) -> None:
    """One job that was replied to, and the rows of its task."""
    expected = 0 if job.state == tasks.State.REJECTED else 1
    own = [row for row in its if row.device == job.device]
    result.lost += max(0, expected - len(own))
    result.duplicates += max(0, len(own) - expected) + len(its) - len(own)
    if expected and own:
        result.row_of[job.key] = own[0]
        result.unlike += own[0].label != job.said
