"""The hub's side of the lanes: cursors of what came up, records that wait to go down, both ledgers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa

from cloud_hub.store import pool
from shared import lanes, wire

LEASES: Final = lanes.Lane("leases")
RESULTS: Final = lanes.Lane("results")
COMMANDS: Final = lanes.Lane("commands")
"""The down lanes; the hub opens one generation of each."""


class Cursor(NamedTuple):
    """What the hub has of an up lane."""

    cursor: int
    committed: int


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The books of one agent's lanes."""

    up: dict[lanes.Lane, lanes.Ledger]
    down: dict[lanes.Lane, lanes.Ledger]


@dataclass(frozen=True, slots=True)
class Batch:
    """Contiguous records of one kind, ready to be sent down."""

    span: lanes.Span
    kind: wire.Kind
    batches: list[pa.RecordBatch]


async def lock(connection: pool.Connection, agent_id: int, lane: lanes.Lane) -> Cursor:
    """The cursor of an up lane, held until the transaction ends so that no other batch passes it."""
    raise NotImplementedError


async def advance(
    connection: pool.Connection, agent_id: int, lane: lanes.Lane, *, last: int, added: int, numbered: int
) -> None:
    """Move an up lane's cursor to `last`, in the transaction that applied the batch.

    `added`: how many records of it were committed (0 for one in quarantine); `numbered`: the header's.
    """
    raise NotImplementedError


async def quarantine(
    connection: pool.Connection,
    agent_id: int,
    lane: lanes.Lane,
    header: wire.Header | None,
    payload: bytes,
    error: str,
) -> None:
    """Set a batch aside that cannot be applied, whole and with the reason."""
    raise NotImplementedError


async def report(connection: pool.Connection, agent_id: int, numbered: Mapping[lanes.Lane, int]) -> None:
    """What an agent says it has numbered on its up lanes: the ledger counts records still on their way."""
    raise NotImplementedError


async def ledgers(connection: pool.Connection, agent_ids: list[int] | None = None) -> dict[int, Ledgers]:
    """The books of these agents' lanes, or of all agents'."""
    raise NotImplementedError


async def down_lanes(connection: pool.Connection, agent_id: int) -> dict[lanes.Lane, tuple[int, int]]:
    """(numbered, acked) of each down lane of an agent: what its Senders begin with."""
    raise NotImplementedError


async def read(
    connection: pool.Connection,
    agent_id: int,
    lane: lanes.Lane,
    after: int,
    max_rows: int = wire.MAX_BATCH_ROWS,
    max_bytes: int = wire.MAX_BATCH_BYTES,
) -> Batch | None:
    """The next records of a down lane after the number `after`; None if there are none.

    Whole chunks of one kind; a single chunk above the limits comes alone.
    """
    raise NotImplementedError


async def acknowledged(connection: pool.Connection, agent_id: int, lane: lanes.Lane, cursor: int) -> None:
    """Forget the records of a down lane up to `cursor`."""
    raise NotImplementedError
