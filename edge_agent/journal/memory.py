"""What is remembered of idempotency keys: the same key again is the same task again.

The key of a task that is here stands with the task. The key of one that has ended is kept with its
reply, as many as there is memory for.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Final, NamedTuple

from edge_agent.journal import reads, records, sql

_SQL: Final = sql.queries("tasks")


class Memory(NamedTuple):
    """How much is kept of ended tasks; the oldest are forgotten first."""

    keys: int
    max_bytes: int
    """Of keys and replies together; the oldest one kept may reach beyond."""

    def remember(
        self, connection: sqlite3.Connection, key: str, task_id: bytes, reply: records.Reply | None
    ) -> None:
        """Keep what became of the task with this key."""
        body = None if reply is None else reply.body
        ((newest, total),) = connection.execute(
            _SQL["remember"],
            {
                "key": key,
                "task_id": task_id,
                "topic": None if reply is None else reply.topic,
                "content_type": None if reply is None else reply.content_type,
                "body": body,
                "bytes": len(key) + len(body or b""),
            },
        ).fetchall()
        forget = 0
        with contextlib.closing(connection.execute(_SQL["remembered"])) as oldest:
            for seq, bytes_so_far in oldest:
                if newest - seq < self.keys and total - bytes_so_far < self.max_bytes:
                    break
                forget = seq
        if forget:
            connection.execute(_SQL["forget"], {"seq": forget})


def recall(connection: sqlite3.Connection, task: records.Task) -> records.Accepted | None:
    """The task that had the idempotency key of `task` first; None if the key is new.

    A stored reply comes back addressed as `task` asks: whoever repeats a job waits where it says now.
    """
    key = {"key": task.idempotency_key}
    for (task_id,) in connection.execute(_SQL["find_by_key"], key).fetchall():
        (held,) = reads.find(connection, [task_id]).values()
        return records.Accepted(held, task_id, repeated=True, reply=None)
    for task_id, topic, content_type, body in connection.execute(_SQL["recall"], key).fetchall():
        if body is None:
            return records.Accepted(None, task_id, repeated=True, reply=None)
        reply = records.Reply(
            task_id=task_id,
            topic=task.response_topic or topic,
            correlation=task.correlation,
            content_type=content_type,
            body=body,
        )
        return records.Accepted(None, task_id, repeated=True, reply=reply)
    return None
