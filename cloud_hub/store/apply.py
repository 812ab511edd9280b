"""What came up from the agents, applied in the transaction that moves the lane's cursor."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pyarrow as pa

from cloud_hub.store import arrays, copy, ends, pool, sql, tallies, verdicts
from shared import wire
from shared.tasks import DEFAULT_QUEUE, State

_SQL: Final = sql.load("apply")


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch of result rows."""

    inserted: int
    shadowed: int
    """Rows whose (task, item) had a result already: compared with it and counted, not stored twice."""
    disagreed: int = 0
    """Shadowed rows with another label or outcome than the recorded one."""


async def results(
    connection: pool.Connection,
    agent_id: int,
    batch: pa.RecordBatch,
    watched: Mapping[str, tallies.Watch] | None = None,
) -> Applied:
    """Record result rows (wire.RESULTS); the first committed row of a (task, item) wins.

    A clash is rare, so the rows go straight into the table; only when one clashes the batch goes by
    a staging table, row by row. `watched`: models that are being rolled out, for which those rows count.
    """
    rows = copy.with_constant(batch, "agent_id", agent_id, pa.int32())
    await connection.execute("SAVEPOINT straight")
    try:
        await copy.copy_in(connection, "results", rows)
    except psycopg.errors.UniqueViolation:
        await connection.execute("ROLLBACK TO SAVEPOINT straight")
        recorded, applied = await _staged_results(connection, rows)
    else:
        await connection.execute("RELEASE SAVEPOINT straight")
        recorded, applied = rows, Applied(inserted=rows.num_rows, shadowed=0)
    if watched:
        await tallies.count(connection, agent_id, recorded, watched)
    return applied


async def _staged_results(
    connection: pool.Connection, rows: pa.RecordBatch
) -> tuple[pa.RecordBatch, Applied]:
    """Record those rows that are the first of their key, and set the others beside what is there.

    Returns the recorded ones too.
    """
    await connection.execute(_SQL["stage_results"])
    positions = pa.array(range(rows.num_rows), pa.int32())
    await copy.copy_in(connection, "staged_results", rows.append_column("position", positions))
    inserted = await (await connection.execute(_SQL["insert_staged"])).fetchall()
    recorded = rows.take(pa.array([position for (position,) in inserted], pa.int32()))
    row = await (await connection.execute(_SQL["shadow_staged"])).fetchone()
    assert row is not None
    shadowed, disagreed = row
    return recorded, Applied(recorded.num_rows, shadowed, disagreed)


async def attempts(connection: pool.Connection, agent_id: int, batch: pa.RecordBatch) -> ends.Outcome:
    """Record how attempts ended (wire.ATTEMPTS), and what that means for their tasks.

    WireError if one of them ended in no way that an attempt can.
    """
    reports = [_report(row) for row in copy.mend(batch).to_pylist()]
    buried = await _bury(connection, agent_id, reports)
    standings = await ends.lock(connection, sorted({report.task_id for report in reports} - buried))
    changes: dict[bytes, verdicts.Change] = {}
    credible = [report for report in reports if report.task_id in buried]
    for report in reports:
        standing = standings.get(report.task_id)
        if standing is None or not verdicts.credible(standing, agent_id, report):
            continue
        credible.append(report)
        change = verdicts.judge(standing, agent_id, report, random.random())
        if change is not None and (report.task_id not in changes or change.state is State.COMPLETED):
            changes[report.task_id] = change
    await ends.record(connection, agent_id, credible)
    return await ends.settle(connection, list(changes.values()), by=agent_id)


def _report(row: dict[str, Any]) -> verdicts.Report:
    state = row.pop("state")
    if state not in verdicts.REPORTED:
        raise wire.WireError(f"an attempt cannot end as {state!r}, only as {', '.join(verdicts.REPORTED)}")
    return verdicts.Report(state=State(state), **row)


async def _bury(connection: pool.Connection, agent_id: int, reports: Sequence[verdicts.Report]) -> set[bytes]:
    """Leave a tombstone for each task that its origin ended and the hub does not know yet.

    Returns the ids of those that were not known: there is nothing else to do about them.
    """
    own = {
        report.task_id: report
        for report in reports
        if report.attempt == verdicts.OWN_ATTEMPT and report.state is not State.QUEUED
    }
    if not own:
        return set()
    closing = [verdicts.closing(report) for report in own.values()]
    cursor = await connection.execute(
        _SQL["tombstones"],
        {
            "agent_id": agent_id,
            "queue": DEFAULT_QUEUE,
            "task_ids": arrays.ids(own),
            "states": arrays.texts(state.value for state, _ in closing),
            "reasons": arrays.texts(reason and reason.value for _, reason in closing),
            "errors": arrays.texts(report.error for report in own.values()),
            "items_done": arrays.numbers(report.items_done for report in own.values()),
        },
    )
    return {task_id for (task_id,) in await cursor.fetchall()}


async def tasks(connection: pool.Connection, agent_id: int, batch: pa.RecordBatch) -> ends.Outcome:
    """Take over tasks that an agent hands over (wire.TASKS); `queued` says which models got work."""
    await connection.execute(_SQL["stage_tasks"])
    await copy.copy_in(connection, "staged_tasks", batch)
    await connection.execute(_SQL["make_classes"], {"agent_id": agent_id})
    cursor = await connection.execute(_SQL["insert_tasks"], {"agent_id": agent_id})
    return ends.Outcome(queued=dict(await cursor.fetchall()))
