"""What is asked of the journal: each function is one read, on whichever connection it is given."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent.journal import outbox, records, sql
from shared import lanes

if TYPE_CHECKING:
    import pyarrow as pa

    from shared import wire

_TASKS: Final = sql.queries("tasks")
_LANES: Final = sql.queries("lanes")

_FIRST: Final = (-10, float("-inf"), 0)
"""A place in the order (rank, tag, seq) before any task's."""


def waiting(
    connection: sqlite3.Connection, limit: int, after: records.Task | None, holder: records.Holder
) -> list[records.Task]:
    """Up to `limit` tasks in the order in which they run: highest priority, then tag, then arrival."""
    rank, tag, seq = _FIRST if after is None else (-after.priority, after.tag, after.seq)
    parameters = {"holder": holder, "rank": rank, "tag": tag, "seq": seq, "limit": limit}
    return _tasks(connection.execute(_TASKS["waiting"], parameters))


def oldest(connection: sqlite3.Connection, models: Iterable[str], limit: int) -> list[records.Task]:
    """Up to `limit` tasks of these models that are to run here, in the order of their arrival."""
    parameters = {"models": msgspec.json.encode(list(models)).decode(), "limit": limit}
    return _tasks(connection.execute(_TASKS["oldest"], parameters))


def find(connection: sqlite3.Connection, task_ids: Iterable[bytes]) -> dict[bytes, records.Task]:
    """Those of the tasks that are here, by id, without payloads."""
    return {
        task.task_id: task
        for task_id in task_ids
        for task in _tasks(connection.execute(_TASKS["find"], {"task_id": task_id}))
    }


def payloads(connection: sqlite3.Connection, task_ids: Iterable[bytes]) -> dict[bytes, bytes]:
    """The payloads of those of the tasks that are here."""
    found: dict[bytes, bytes] = {}
    for task_id in task_ids:
        for (payload,) in connection.execute(_TASKS["payload"], {"task_id": task_id}).fetchall():
            found[task_id] = payload
    return found


def parts(connection: sqlite3.Connection, task_id: bytes) -> list[records.Part]:
    """What the reply to a task will say of its items that are done, in their order."""
    return [records.Part(*row) for row in connection.execute(_TASKS["parts"], {"task_id": task_id})]


def unreplied(connection: sqlite3.Connection, limit: int, after: bytes) -> list[records.Reply]:
    """Replies that wait for the broker, by task id, so the oldest tasks' first."""
    return [
        records.Reply(task_id=task_id, topic=topic, correlation=correlation, content_type=kind, body=body)
        for task_id, topic, correlation, kind, body in connection.execute(
            _TASKS["unreplied"], {"after": after, "limit": limit}
        )
    ]


def counts(connection: sqlite3.Connection) -> records.Counts:
    """How much of everything there is."""
    held = {records.Holder.EDGE: 0, records.Holder.HUB: 0}
    items: dict[tuple[str, int], int] = {}
    for holder, model, priority, tasks_, items_ in connection.execute(_TASKS["count"]):
        held[records.Holder(holder)] += tasks_
        if holder == records.Holder.EDGE:
            items[model, priority] = items_
    for holder, model, priority, done in connection.execute(_TASKS["count_done"]):
        if holder == records.Holder.EDGE:
            items[model, priority] -= done
    (leased,) = connection.execute(_TASKS["count_leased"]).fetchone()
    (unreplied_,) = connection.execute(_TASKS["count_unreplied"]).fetchone()
    (to_sync,) = connection.execute(_LANES["to_sync"]).fetchone()
    return records.Counts(
        waiting=held[records.Holder.EDGE],
        waiting_items=items,
        leased_items=leased,
        handed_over=held[records.Holder.HUB],
        unreplied=unreplied_,
        to_sync=to_sync,
    )


def numbers(connection: sqlite3.Connection) -> dict[lanes.Lane, records.Numbers]:
    """Every up lane, all generations that are not drained and dropped."""
    return {
        lanes.Lane(name, generation): records.Numbers(numbered, acked)
        for name, generation, numbered, acked in connection.execute(_LANES["all"])
    }


def cursors(connection: sqlite3.Connection) -> dict[lanes.Lane, records.Cursor]:
    """Every down lane from which something was received in this epoch."""
    return {
        lanes.Lane.parse(lane): records.Cursor(cursor, committed)
        for lane, cursor, committed in connection.execute(_LANES["cursors"])
    }


def identity(connection: sqlite3.Connection) -> tuple[int, str, str] | None:
    """Epoch, site and name; None in a journal that was just made."""
    found: tuple[int, str, str] | None = connection.execute(_LANES["identity"]).fetchone()
    return found


def batch(
    connection: sqlite3.Connection,
    lane: lanes.Lane,
    after: int,
    max_rows: int,
    max_bytes: int,
    now_us: int,
) -> wire.Batch | None:
    """The records of a lane after number `after`; see `Journal.read`."""
    if lane.name == outbox.TASKS:
        return _handed_over(connection, lane, after, max_rows, max_bytes, now_us)
    return _packed(connection, lane, after, max_rows, max_bytes)


def _packed(
    connection: sqlite3.Connection, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int
) -> wire.Batch | None:
    """Whole chunks of one kind, the first from its middle if `after` lies in it."""
    from edge_agent.journal import chunks  # loads pyarrow
    from shared import wire

    batches: list[pa.RecordBatch] = []
    of = ""
    begin = end = after + 1  # the numbers of the first record, and of the one after the last
    size = 0
    with _from(connection, "chunks", lane, after) as chunks_:
        for first, last, kind, version, body in chunks_:
            if not batches:
                of = kind
                begin = end = max(first, begin)
            elif kind != of or first != end or last - begin >= max_rows or size + len(body) > max_bytes:
                break
            batches.append(chunks.unpack(kind, version, body).slice(end - first))
            end = last + 1
            size += len(body)
    return wire.Batch(lanes.Span(begin, end - 1), wire.KINDS[of], batches) if batches else None


def _handed_over(
    connection: sqlite3.Connection, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int, now_us: int
) -> wire.Batch | None:
    """Handed-over tasks with what they need to run elsewhere."""
    from edge_agent.journal import chunks  # loads pyarrow
    from shared import wire

    rows: list[records.HandedOver] = []
    size = 0
    with _from(connection, "handed_over", lane, after) as tasks:
        for row in map(records.HandedOver._make, tasks):
            size += len(row.payload or b"")
            if rows and (len(rows) >= max_rows or size > max_bytes or row.number != rows[-1].number + 1):
                break
            rows.append(row)
    if not rows:
        return None
    span = lanes.Span(rows[0].number, rows[-1].number)
    return wire.Batch(span, wire.TASKS, [chunks.handed_over(rows, now_us)])


def _from(
    connection: sqlite3.Connection, query: str, lane: lanes.Lane, after: int
) -> contextlib.closing[sqlite3.Cursor]:
    """A query of a lane from a number on, to be left early: an open cursor would hold its snapshot."""
    parameters = {"name": lane.name, "generation": lane.generation, "after": after}
    return contextlib.closing(connection.execute(_LANES[query], parameters))


def _tasks(rows: sqlite3.Cursor) -> list[records.Task]:
    """Tasks from rows whose columns have the names of their fields."""
    names = [column[0] for column in rows.description]
    return [msgspec.convert(dict(zip(names, row, strict=True)), records.Task) for row in rows]
