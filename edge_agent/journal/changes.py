"""What happens to tasks: each function is one operation's work inside the writer's transaction.

An operation may be run again after a rollback, so these keep nothing but what is in the database.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edge_agent.journal import memory, outbox, reads, records, sql
from edge_agent.journal.transaction import Transaction
from shared import lanes, tasks

log: Final = logging.getLogger(__name__)

TASK_BYTES: Final = 512
"""What a task takes beside its payload, about."""

_SQL: Final = sql.queries("tasks")


def accept(transaction: Transaction, task: records.Task) -> records.Accepted | None:
    """Take in a device's task; None if there is no room for it.

    If its idempotency key is known, nothing is added, and the answer is the task that had it first.
    """
    connection = transaction.connection
    if task.idempotency_key is not None:
        known = memory.recall(connection, task)
        if known is not None:
            return known
    if not transaction.admit(_size(task)):
        return None
    seq = connection.execute(_SQL["insert"], msgspec.structs.asdict(task)).lastrowid
    return records.Accepted(msgspec.structs.replace(task, seq=seq), task.task_id, False, None)


def lease(
    transaction: Transaction, lane: lanes.Lane, cursor: int, leased: Sequence[records.Task], passed: int
) -> list[records.Task] | None:
    """Take in tasks of the hub's and move the lane's cursor past `passed` records; None if no room.

    A lease that no journal can hold, for it breaks the rules of a task, is left out: it must not keep
    the rest from running.
    """
    if not transaction.admit(sum(_size(task) for task in leased)):
        return None
    taken: list[records.Task] = []
    for task in leased:
        try:
            changed = transaction.connection.execute(_SQL["lease"], msgspec.structs.asdict(task)).rowcount
        except sqlite3.IntegrityError as error:
            log.error("lease %s is left out: %s", tasks.format_id(task.task_id), error)
            continue
        if changed:
            (stored,) = reads.find(transaction.connection, [task.task_id]).values()
            taken.append(msgspec.structs.replace(stored, payload=task.payload))
    outbox.move_cursor(transaction, lane, cursor, passed)
    return taken


def finish(
    transaction: Transaction, finished: Iterable[records.Finished], remembered: memory.Memory
) -> list[bytes]:
    """End tasks: their rows and ends go up, their replies wait for the broker, they are here no more.

    The ids of those that were here; one that was not (the hub's result came first) adds nothing.
    """
    ended: list[bytes] = []
    for end in finished:
        if _end(transaction, end.task_id, end.reply, remembered):
            transaction.results.extend(end.rows)
            if end.attempt is not None:
                transaction.attempts.append(end.attempt)
            ended.append(end.task_id)
    return ended


def take_back_ended(
    transaction: Transaction,
    lane: lanes.Lane,
    cursor: int,
    returned: Sequence[records.Returned],
    passed: int,
    remembered: memory.Memory,
) -> list[bytes]:
    """End handed-over tasks as the hub reports and move the lane's cursor past `passed` records.

    The ids of those that were here; one that has ended here first keeps its first result.
    """
    outbox.move_cursor(transaction, lane, cursor, passed)
    return [end.task_id for end in returned if _end(transaction, end.task_id, end.reply, remembered)]


def hand_over(transaction: Transaction, task_ids: Iterable[bytes]) -> list[bytes]:
    """Give tasks to the hub; the ids of those that were here to give."""
    given = [
        task_id
        for task_id in task_ids
        if transaction.connection.execute(_SQL["hand_over"], {"task_id": task_id}).rowcount
    ]
    outbox.hand_over(transaction, given)
    return given


def reclaim(transaction: Transaction, task_ids: Iterable[bytes]) -> list[records.Task]:
    """Take handed-over tasks back; those that were still to be had."""
    taken = [
        task_id
        for task_id in task_ids
        if transaction.connection.execute(_SQL["reclaim"], {"task_id": task_id}).rowcount
    ]
    return list(reads.find(transaction.connection, taken).values())


def mark_crashed(transaction: Transaction, task_ids: Iterable[bytes]) -> int:
    """These were running when the agent died; returns how many of them are tasks of this journal."""
    return sum(
        transaction.connection.execute(_SQL["mark_crashed"], {"task_id": task_id}).rowcount
        for task_id in task_ids
    )


def replied(transaction: Transaction, task_ids: Iterable[bytes]) -> None:
    """The site's broker has these replies."""
    transaction.connection.executemany(_SQL["replied"], [{"task_id": task_id} for task_id in task_ids])


def _end(
    transaction: Transaction, task_id: bytes, reply: records.Reply | None, remembered: memory.Memory
) -> bool:
    """Delete a task and keep its reply; False if it is not here."""
    connection = transaction.connection
    held = connection.execute(_SQL["end"], {"task_id": task_id}).fetchall()
    if not held:
        return False
    if reply is not None:
        connection.execute(_SQL["reply"], msgspec.structs.asdict(reply))
        transaction.bytes_appended += len(reply.body)
    ((key,),) = held
    if key is not None:
        remembered.remember(connection, key, task_id, reply)
    return True


def _size(task: records.Task) -> int:
    return len(task.payload or b"") + TASK_BYTES
