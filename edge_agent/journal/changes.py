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
    return records.Accepted(_insert(connection, task), task.task_id, False, None)


def lease(
    transaction: Transaction, lane: lanes.Lane, cursor: int, leased: Sequence[records.Task], passed: int
) -> records.Taken | None:
    """Take in tasks of the hub's and move the lane's cursor past `passed` records; None if no room.

    A lease that no journal can hold, for it breaks the rules of a task, is left out: it must not keep
    the rest from running. One that is as old as what is here, or older, changes nothing.
    """
    if not transaction.admit(sum(_size(task) for task in leased)):
        return None
    new: list[records.Task] = []
    renewed: list[records.Renewed] = []
    for task in leased:
        held = reads.find(transaction.connection, [task.task_id]).get(task.task_id)
        try:
            if held is None:
                new.append(_take(transaction.connection, task))
            elif (task.hub_attempt or 0) > (held.hub_attempt or 0):
                now = _renew(transaction.connection, held, task)
                if held.holder is records.Holder.HUB:
                    new.append(now)
                else:
                    renewed.append(records.Renewed(held, now))
        except sqlite3.IntegrityError as error:
            log.error("lease %s is left out: %s", tasks.format_id(task.task_id), error)
    outbox.move_cursor(transaction, lane, cursor, passed)
    return records.Taken(new, renewed)


def checkpoint(transaction: Transaction, reached: records.Checkpoint) -> bool:
    """A task has come further: its rows go up, and it will not run these items again.

    False if it is not to run here any more (the hub's result came first); then nothing is added.
    """
    connection = transaction.connection
    place = {"task_id": reached.task_id, "items_done": reached.items_done}
    if not connection.execute(_SQL["checkpoint"], place).rowcount:
        return False
    connection.execute(_SQL["survived"], {"task_id": reached.task_id})
    if reached.part is not None:
        part = reached.part._asdict() | {"task_id": reached.task_id}
        connection.execute(_SQL["keep_part"], part)
        transaction.bytes_appended += len(reached.part.items)
    transaction.results.extend(reached.rows)
    return True


def finish(
    transaction: Transaction, finished: Iterable[records.Finished], remembered: memory.Memory
) -> list[bytes]:
    """End tasks: their rows and ends go up, their replies wait for the broker, they are here no more.

    The ids of those that were here; one that was not (the hub's result came first) adds nothing. Whoever
    completes a task completes it; any other end is that of one attempt, and none of the newer one that
    the hub has leased us meanwhile.
    """
    ended: list[bytes] = []
    for end in finished:
        attempt = end.attempt
        fence = attempt.attempt if attempt and attempt.state != tasks.State.COMPLETED else None
        if end.given_back:
            place = {"task_id": end.task_id, "attempt": fence}
            here = bool(transaction.connection.execute(_SQL["give_back"], place).rowcount)
        else:
            here = _end(transaction, end.task_id, end.reply, remembered, fence)
        if here:
            transaction.results.extend(end.rows)
            if attempt is not None:
                transaction.attempts.append(attempt)
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


def _take(connection: sqlite3.Connection, task: records.Task) -> records.Task:
    """Insert a leased task, with the checkpoint that the hub has of it."""
    taken = _insert(connection, task)
    if task.items_done:
        place = {"task_id": task.task_id, "items_done": task.items_done}
        connection.execute(_SQL["checkpoint"], place)
    return taken


def _insert(connection: sqlite3.Connection, task: records.Task) -> records.Task:
    """The task, with its place in the order of arrival."""
    fields = msgspec.structs.asdict(task)
    seq = connection.execute(_SQL["insert"], fields).lastrowid
    if task.tags is not None:
        connection.execute(_SQL["tag"], {"task_id": task.task_id, "tags": task.tags})
    if task.stream is not None:
        connection.execute(_SQL["insert_stream"], {"task_id": task.task_id, "stream": task.stream})
    return msgspec.structs.replace(task, seq=seq)


def _renew(connection: sqlite3.Connection, held: records.Task, lease: records.Task) -> records.Task:
    """Put a task that is here under a newer lease; as it is then, with its payload.

    It goes on from whichever checkpoint is further, its own or the hub's. Not so a device's: its reply
    needs the results of all items, and those of others are not here.
    """
    connection.execute(_SQL["renew"], msgspec.structs.asdict(lease))
    if held.origin is records.Origin.HUB and lease.items_done:
        place = {"task_id": held.task_id, "items_done": min(lease.items_done, held.items)}
        connection.execute(_SQL["checkpoint"], place)
    (now,) = reads.find(connection, [held.task_id]).values()
    return msgspec.structs.replace(now, payload=lease.payload)


def _end(
    transaction: Transaction,
    task_id: bytes,
    reply: records.Reply | None,
    remembered: memory.Memory,
    fence: int | None = None,
) -> bool:
    """Delete a task and keep its reply; False if it is not here, or under another attempt than `fence`."""
    connection = transaction.connection
    query = _SQL["end"] if fence is None else _SQL["end_attempt"]
    held = connection.execute(query, {"task_id": task_id, "attempt": fence}).fetchall()
    if not held:
        return False
    ((key, items, is_tagged, names_stream),) = held
    if is_tagged:
        connection.execute(_SQL["drop_tags"], {"task_id": task_id})
    if names_stream:
        connection.execute(_SQL["drop_stream"], {"task_id": task_id})
    if items > 1 and connection.execute(_SQL["drop_checkpoint"], {"task_id": task_id}).rowcount:
        connection.execute(_SQL["drop_parts"], {"task_id": task_id})
    if reply is not None and reply.topic != records.NOWHERE:
        connection.execute(_SQL["reply"], msgspec.structs.asdict(reply))
        transaction.bytes_appended += len(reply.body)
    if key is not None:
        remembered.remember(connection, key, task_id, reply)
    return True


def _size(task: records.Task) -> int:
    return len(task.payload or b"") + TASK_BYTES
