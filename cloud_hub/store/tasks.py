"""Tasks of the hub: submitted, looked up, listed, cancelled, asked to run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cloud_hub.store import ends, pool
from shared import jobs, tasks, topics


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that is to become a task."""

    job: jobs.Job
    task_id: bytes = field(default_factory=tasks.new_id)
    tag: float = 0.0
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submission became."""

    task_id: bytes
    repeated: bool
    """Its idempotency key was seen before: `task_id` is the task of that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of a task by one agent."""

    attempt: int
    agent: topics.Agent
    agent_id: int
    state: tasks.State
    """PROCESSING while it holds the lease; QUEUED if it was put back or lost."""
    reason: str | None
    error: str | None
    items_done: int
    run_us: int | None
    granted_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as the hub knows it."""

    task_id: bytes
    state: tasks.State
    reason: tasks.Reason | None
    error: str | None
    model: str
    version: str | None
    priority: int
    queue: str
    tag: float
    device: str | None
    content_type: str
    payload_bytes: int
    items: int
    items_done: int
    attempt: int
    failures: int
    """Attempts that failed or were lost; at `max_attempts` the task is TERMINATED(exhausted)."""
    max_attempts: int
    timeout_ms: int | None
    deadline_at: datetime | None
    not_before: datetime | None
    """While it waits after a failed attempt."""
    idempotency_key: str | None
    traceparent: str | None
    origin: topics.Agent | None
    """The agent that handed it over; None if it was submitted to the hub."""
    agent: topics.Agent | None
    """The agent that holds its lease."""
    observed_at: datetime
    submitted_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which tasks; None: any."""

    state: tasks.State | None = None
    reason: tasks.Reason | None = None
    model: str | None = None
    queue: str | None = None
    device: str | None = None
    site: str | None = None
    """Of the origin."""


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first."""

    tasks: list[Task]
    next: bytes | None
    """Ask again with this as `before`; None: there are no more."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks there are, by state; and of the queued, by model and queue."""

    states: dict[tasks.State, int]
    queued: dict[tuple[str, str], int]


async def submit(connection: pool.Connection, submissions: Sequence[Submission]) -> list[Submitted]:
    """Queue tasks, all in one go; in the order of `submissions`. Durable once the caller has committed."""
    raise NotImplementedError


async def get(connection: pool.Connection, task_id: bytes) -> Task | None:
    raise NotImplementedError


async def attempts(connection: pool.Connection, task_id: bytes) -> list[Attempt]:
    """The attempts at a task, oldest first; 0 is its origin's own."""
    raise NotImplementedError


async def payload(connection: pool.Connection, task_id: bytes) -> bytes | None:
    """What the task runs on; None if there is no such task or it is completed."""
    raise NotImplementedError


async def list_page(
    connection: pool.Connection, wanted: Filter, *, before: bytes | None = None, limit: int = 100
) -> Page:
    """Tasks, newest first, older than `before`."""
    raise NotImplementedError


async def cancel(connection: pool.Connection, task_ids: Sequence[bytes]) -> ends.Outcome:
    """End tasks that are queued or processing; those that are not are left out of `ended`."""
    raise NotImplementedError


async def requeue(connection: pool.Connection, task_ids: Sequence[bytes]) -> list[bytes]:
    """Ask dead letters to run again; returns those that will.

    Failures are forgotten, the deadline too; rows of the failed run give way to those that will come.
    """
    raise NotImplementedError


async def counts(connection: pool.Connection) -> Counts:
    raise NotImplementedError
