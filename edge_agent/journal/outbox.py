"""The up lanes: numbers for what leaves, and what may be deleted. Runs in the writer's thread."""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent.journal import sql
from edge_agent.journal.transaction import Transaction
from shared import lanes

if TYPE_CHECKING:
    from edge_agent.journal import chunks

TASKS: Final = "tasks"
"""The lane of handed-over tasks."""
RESULTS: Final = "results"
"""The lane of result rows and of attempts' ends."""

JOIN_CHUNKS: Final = 256
"""After so many chunks on a lane, those of them that are still there are joined."""
SMALL_ROWS: Final = 64
SMALL_BYTES: Final = 16 << 10
"""A chunk of as many records or bytes is not worth joining with others."""

_SQL: Final = sql.queries("lanes")


class _Place(NamedTuple):
    """Where appended records stand."""

    row: int
    lane: lanes.Lane
    numbered: int
    last: int
    """The place of the last of them in `outgoing`."""


class _Stored(NamedTuple):
    """A chunk in `outgoing`."""

    first: int
    last: int
    kind: str
    schema_version: int
    body: bytes | None
    """None if it is large."""

    def sort(self) -> tuple[str, int, bool]:
        """What chunks have in common that can be joined."""
        return self.kind, self.schema_version, self.body is None


class Outbox:
    """Appends to the live lanes, and keeps a backlog of small chunks from growing large.

    A chunk of one record takes ten times the space that the record takes among others. With the hub
    there, chunks are gone soon; with the hub away, joining them lets the disk last ten times as long.
    """

    def __init__(self) -> None:
        self._unjoined: Counter[int] = Counter()

    def flush(self, transaction: Transaction) -> None:
        """Append what the operations of a group have gathered: rows first, then ends of attempts."""
        if not transaction.results and not transaction.attempts:
            return
        from edge_agent.journal import chunks  # loads pyarrow: with the first record, not with the agent

        packed: list[chunks.Chunk] = []
        if transaction.results:
            packed += chunks.pack_results(transaction.results)
        if transaction.attempts:
            packed += chunks.pack_attempts(transaction.attempts)
        place = _number(transaction, RESULTS, sum(chunk.size for chunk in packed))
        first = place.last - sum(chunk.size for chunk in packed) + 1
        for chunk in packed:
            _append(transaction.connection, place.row, first, chunk)
            transaction.bytes_appended += len(chunk.body)
            first += chunk.size
        self._unjoined[place.row] += sum(_is_small(chunk) for chunk in packed)
        if self._unjoined[place.row] >= JOIN_CHUNKS:
            del self._unjoined[place.row]
            _join(transaction.connection, place.row)


def hand_over(transaction: Transaction, task_ids: Sequence[bytes]) -> None:
    """Append tasks by reference, one a chunk: their payloads are read when they are sent."""
    if not task_ids:
        return
    place = _number(transaction, TASKS, len(task_ids))
    numbered = enumerate(task_ids, place.last - len(task_ids) + 1)
    transaction.connection.executemany(
        _SQL["append_task"],
        [{"lane": place.row, "number": number, "task_id": task_id} for number, task_id in numbered],
    )


def acknowledged(transaction: Transaction, lane: lanes.Lane, cursor: int) -> None:
    """The hub has committed all up to `cursor`: delete it, and the lane too if it has served its time."""
    connection = transaction.connection
    moved = connection.execute(
        _SQL["acknowledge"], {"name": lane.name, "generation": lane.generation, "cursor": cursor}
    ).fetchall()
    for row, shift in moved:  # none, if the lane is gone or the cursor was known
        connection.execute(_SQL["delete_acknowledged"], {"lane": row, "place": cursor + shift})
        connection.execute(_SQL["drop_drained"], {"lane": row})


def open_generation(transaction: Transaction, name: str) -> lanes.Lane:
    """The lane for live records: a fresh generation if the live one has a backlog, else the live one."""
    live = transaction.connection.execute(_SQL["live"], {"name": name}).fetchone()
    generation, backlog = live or (0, None)
    if backlog != 0:
        generation += 1
        transaction.connection.execute(_SQL["open"], {"name": name, "generation": generation})
    return lanes.Lane(name, generation)


def begin_epoch(transaction: Transaction, epoch: int, site: str, name: str) -> None:
    """The journal is this agent's: what is left of each lane begins at 1, and nothing was received yet."""
    connection = transaction.connection
    connection.execute(_SQL["identify"], {"epoch": epoch, "site": site, "name": name})
    connection.execute(_SQL["renumber"])
    connection.execute(_SQL["reset_cursors"])


def move_cursor(transaction: Transaction, lane: lanes.Lane, cursor: int, new: int) -> None:
    """A down lane was passed up to `cursor`, `new` records of it committed in this transaction."""
    transaction.connection.execute(_SQL["move_cursor"], {"lane": str(lane), "cursor": cursor, "records": new})


def _number(transaction: Transaction, name: str, size: int) -> _Place:
    """Numbers for `size` records on the live lane of a name."""
    parameters = {"name": name, "records": size}
    ((row, generation, numbered, last),) = transaction.connection.execute(
        _SQL["number"], parameters
    ).fetchall()
    lane = lanes.Lane(name, generation)
    transaction.appended[lane] = numbered
    return _Place(row, lane, numbered, last)


def _append(connection: sqlite3.Connection, row: int, first: int, chunk: chunks.Chunk) -> None:
    connection.execute(
        _SQL["append"],
        {
            "lane": row,
            "first": first,
            "last": first + chunk.size - 1,
            "kind": chunk.kind,
            "schema_version": chunk.schema_version,
            "body": chunk.body,
        },
    )


def _join(connection: sqlite3.Connection, row: int) -> None:
    """Join the newest chunks of a lane where small ones of a kind follow each other.

    Numbers stay as they are, and the receiver may have a cursor inside a joined chunk: readers give out
    a chunk from any of its records on.
    """
    from edge_agent.journal import chunks

    parameters = {"lane": row, "limit": JOIN_CHUNKS, "rows": SMALL_ROWS, "bytes": SMALL_BYTES}
    newest = connection.execute(_SQL["newest_chunks"], parameters).fetchall()
    stored = [_Stored(*chunk) for chunk in reversed(newest)]
    for (kind, version, large), run in itertools.groupby(stored, _Stored.sort):
        together = list(run)
        if large or version != chunks.SCHEMA_VERSION or len(together) < 2:
            continue
        first, last = together[0].first, together[-1].last
        connection.execute(_SQL["delete_chunks"], {"lane": row, "first": first, "last": last})
        for chunk in chunks.join(kind, (member.body for member in together if member.body is not None)):
            _append(connection, row, first, chunk)
            first += chunk.size


def _is_small(chunk: chunks.Chunk) -> bool:
    return chunk.size < SMALL_ROWS and len(chunk.body) < SMALL_BYTES
