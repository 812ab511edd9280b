"""Queued tasks, grants, leases and their loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloud_hub.store import ends, pool


@dataclass(frozen=True, slots=True)
class Queued:
    """A queued task, as the scheduler's policy sees it."""

    task_id: bytes
    model: str
    version: str | None
    priority: int
    queue: str
    tag: float
    items: int
    items_done: int
    attempt: int
    origin_agent: int | None
    payload_bytes: int
    waited_s: float
    """Since it was submitted."""
    deadline_s: float | None
    """What is left of it."""


class Grant(NamedTuple):
    """A wish: this task to this agent, for a time."""

    task_id: bytes
    agent_id: int
    ttl_s: float


class Granted(NamedTuple):
    """A lease that was made of a wish."""

    task_id: bytes
    agent_id: int
    attempt: int


class Renewal(NamedTuple):
    """What an agent says of a lease that it holds."""

    task_id: bytes
    attempt: int
    progress: int


async def candidates(
    connection: pool.Connection,
    limit_per_model: int,
    *,
    models: Collection[str] | None = None,
    closed_queues: Collection[str] = (),
) -> list[Queued]:
    """The first queued tasks of each model (or of `models`), in the order in which they should run.

    Costs the same at any depth of the queue. Tasks of `closed_queues` are passed over.
    """
    raise NotImplementedError


async def grant(connection: pool.Connection, grants: Sequence[Grant]) -> list[Granted]:
    """Lease tasks to agents: QUEUED becomes PROCESSING, and a record goes on the agent's lane of leases.

    A task that is no longer queued, or that somebody else is just granting, is left out.
    """
    raise NotImplementedError


async def renew(connection: pool.Connection, agent_id: int, renewals: Sequence[Renewal], ttl_s: float) -> int:
    """Extend the leases whose progress moved; returns how many."""
    raise NotImplementedError


async def expire(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """Take back leases that ran out: their tasks are queued again, or end if that was their last attempt."""
    raise NotImplementedError


async def expire_deadlines(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """End queued tasks whose deadline has passed. Of a running one its agent judges, or the lease's end."""
    raise NotImplementedError


async def outstanding(connection: pool.Connection) -> dict[int, int]:
    """How many leases each agent (id) holds."""
    raise NotImplementedError


async def tags(connection: pool.Connection) -> dict[str, float]:
    """The highest fair-share tag given in each queue, among tasks that have not ended."""
    raise NotImplementedError
