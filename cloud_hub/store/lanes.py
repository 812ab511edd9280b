"""The hub's side of the lanes: cursors of what came up, records that wait to go down, both ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from cloud_hub.store import outgoing, pool, sql
from shared import lanes, wire

LEASES: Final = outgoing.LEASES
RESULTS: Final = outgoing.RESULTS
COMMANDS: Final = outgoing.COMMANDS
"""The down lanes; the hub opens one generation of each."""

_SQL: Final = sql.load("lanes")


class Cursor(NamedTuple):
    """What the hub has of an up lane."""

    cursor: int
    committed: int


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The books of one agent's lanes."""

    up: dict[lanes.Lane, lanes.Ledger]
    down: dict[lanes.Lane, lanes.Ledger]


async def lock(connection: pool.Connection, agent_id: int, lane: lanes.Lane) -> Cursor:
    """The cursor of an up lane, held until the transaction ends so that no other batch passes it."""
    place = {"agent_id": agent_id, "lane": str(lane)}
    row = await (await connection.execute(_SQL["lock"], place)).fetchone()
    if row is None:
        await connection.execute(_SQL["open"], place)
        row = await (await connection.execute(_SQL["lock"], place)).fetchone()
        assert row is not None
    return Cursor(*row)


async def advance(
    connection: pool.Connection, agent_id: int, lane: lanes.Lane, *, last: int, added: int, numbered: int
) -> None:
    """Move an up lane's cursor to `last`, in the transaction that applied the batch.

    `added`: how many records of it were committed (0 for one in quarantine); `numbered`: the header's.
    """
    await connection.execute(
        _SQL["advance"],
        {"agent_id": agent_id, "lane": str(lane), "last": last, "added": added, "numbered": numbered},
    )


async def quarantine(
    connection: pool.Connection,
    agent_id: int,
    lane: lanes.Lane,
    header: wire.Header | None,
    payload: bytes,
    error: str,
) -> None:
    """Set a batch aside that cannot be applied, whole and with the reason."""
    await connection.execute(
        _SQL["quarantine"],
        {
            "agent_id": agent_id,
            "lane": str(lane),
            "header": None if header is None else msgspec.json.encode(header).decode(),
            "payload": payload,
            "error": error.replace("\0", ""),
        },
    )


async def report(connection: pool.Connection, agent_id: int, numbered: Mapping[lanes.Lane, int]) -> None:
    """What an agent says it has numbered on its up lanes: the ledger counts records still on their way."""
    await connection.execute(
        _SQL["report"],
        {
            "agent_id": agent_id,
            "lanes": [str(lane) for lane in numbered],
            "numbered": list(numbered.values()),
        },
    )


async def ledgers(connection: pool.Connection, agent_ids: Sequence[int] | None = None) -> dict[int, Ledgers]:
    """The books of these agents' lanes, or of all agents'; an agent without lanes is not in it."""
    wanted = None if agent_ids is None else list(agent_ids)
    cursor = await connection.execute(_SQL["ledgers"], {"agent_ids": wanted})
    books: dict[int, Ledgers] = {}
    for direction, agent_id, lane, *numbers in await cursor.fetchall():
        book = books.setdefault(agent_id, Ledgers({}, {}))
        side = book.up if direction == "up" else book.down
        side[lanes.Lane.parse(lane)] = lanes.Ledger(*numbers)
    return books


async def down_lanes(connection: pool.Connection, agent_id: int) -> dict[lanes.Lane, tuple[int, int]]:
    """(numbered, acked) of each down lane of an agent: what its Senders begin with."""
    cursor = await connection.execute(_SQL["down_lanes"], {"agent_id": agent_id})
    return {lanes.Lane.parse(lane): (numbered, acked) for lane, numbered, acked in await cursor.fetchall()}


async def read(
    connection: pool.Connection,
    agent_id: int,
    lane: lanes.Lane,
    after: int,
    max_rows: int = wire.MAX_BATCH_ROWS,
    max_bytes: int = wire.MAX_BATCH_BYTES,
) -> wire.Batch | None:
    """The next records of a down lane after the number `after`; None if there are none.

    Whole chunks of one kind; a single chunk above the limits comes alone.
    """
    return await outgoing.read(connection, agent_id, lane, after, max_rows, max_bytes)


async def acknowledged(connection: pool.Connection, agent_id: int, lane: lanes.Lane, cursor: int) -> None:
    """Forget the records of a down lane up to `cursor`."""
    await connection.execute(_SQL["acknowledge"], {"agent_id": agent_id, "lane": str(lane), "cursor": cursor})


async def renumber(connection: pool.Connection, agent_id: int, lane: lanes.Lane, cursor: int) -> None:
    """Go on after `cursor`, which the agent has committed and this database never numbered.

    The database was put back to an older state (shared.lanes.JournalRegressed): what waits is numbered
    anew, after the agent's cursor. Does nothing if the cursor is within what was numbered.
    """
    await connection.execute(_SQL["renumber"], {"agent_id": agent_id, "lane": str(lane), "cursor": cursor})


async def command(
    connection: pool.Connection,
    agent_ids: Sequence[int],
    command: str,
    *,
    task_id: bytes | None = None,
    body: str | None = None,
) -> frozenset[int]:
    """Put a command on the lanes of these agents; `body` is as the command wants it, mostly JSON."""
    columns = {"command": command} | ({} if body is None else {"body": body})
    return await outgoing.append(
        connection,
        [
            outgoing.Record(agent_id, COMMANDS, wire.COMMANDS, task_id=task_id, body=columns)
            for agent_id in agent_ids
        ],
    )
