"""What came up from the agents, applied in the transaction that moves the lane's cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cloud_hub.store import ends, pool


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch of result rows."""

    inserted: int
    shadowed: int
    """Rows whose (task, item) had a result already: compared with it and counted, not stored twice."""
    disagreed: int = 0
    """Shadowed rows with another label or outcome than the recorded one."""


async def results(connection: pool.Connection, agent_id: int, batch: pa.RecordBatch) -> Applied:
    """Record result rows (wire.RESULTS); the first committed row of a (task, item) wins."""
    raise NotImplementedError


async def attempts(connection: pool.Connection, agent_id: int, batch: pa.RecordBatch) -> ends.Outcome:
    """Record how attempts ended (wire.ATTEMPTS), and what that means for their tasks."""
    raise NotImplementedError


async def tasks(
    connection: pool.Connection, agent_id: int, batch: pa.RecordBatch, tags: Sequence[float] | None = None
) -> ends.Outcome:
    """Take over tasks that an agent hands over (wire.TASKS); `queued` says which models got work.

    `tags`: the fair-share tag of each, 0 without.
    """
    raise NotImplementedError
