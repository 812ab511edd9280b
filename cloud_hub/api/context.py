"""What the API works with: its collaborators, its settings, and the limits on what it holds at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Protocol, TypeAlias

import prometheus_client
from fastapi import Depends, Request

from cloud_hub import events, queues, settings
from cloud_hub.api import bodies, problems, submissions
from cloud_hub.rollouts import active
from cloud_hub.scheduler import snapshot
from cloud_hub.store import ends, pool
from shared import signals, topics


class Settings(settings.Api, frozen=True, kw_only=True):
    """What the API takes and how much of it at a time, and who counts as silent."""

    silent_after_s: float = 10.0
    """An agent whose presence says online, and that was not heard for so long, is shown as silent."""


class Member(Protocol):
    """What this hub heard of an agent lately, fresher than what the store was told."""

    @property
    def epoch(self) -> int: ...
    @property
    def heard(self) -> float:
        """When it last said anything (s, monotonic)."""

    @property
    def telemetry(self) -> signals.Telemetry | None: ...


class Live(Protocol):
    """The fleet as this hub hears it now."""

    def find(self, agent: topics.Agent) -> Member | None: ...


class Deaf:
    """For an API without a gateway beside it: all it knows of the agents is in the store."""

    def find(self, agent: topics.Agent) -> Member | None:
        return None


class Gate:
    """A bound on how many clients do one thing at a time."""

    def __init__(self, limit: int, doing: str) -> None:
        self._limit = limit
        self._doing = doing
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count one more until the block is left. Raises Problem BUSY at the limit."""
        if self.inside >= self._limit:
            raise problems.Problem(
                problems.BUSY,
                f"{self.inside} clients are {self._doing} now, which is the limit; try again",
                retry_after_s=2.0,
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The collaborators of the API, wired by whoever builds it."""

    database: pool.Pool
    submitter: submissions.Submitter
    events: events.Events
    live: Live
    settings: Settings
    tell: Callable[[ends.Outcome], None]
    """Is told what a request changed, after the commit."""
    queues: queues.Queues
    """The queues' settings; who changes them has them read again."""
    rollouts: active.Active
    """The rollouts for which results count; who changes one has them read again."""
    rules: snapshot.Rules
    """By which the scheduler decides: what explanations go by."""
    drained: Callable[[topics.Agent, bool], None]
    """Is told of an agent that is to get no more of the hub's tasks (True), or gets them again."""
    broker: Callable[[], bool | None]
    """Whether the broker is connected; None: there is none."""
    redis: Callable[[], bool | None]
    """Whether Redis is there; None: none is used."""
    registry: prometheus_client.CollectorRegistry

    @cached_property
    def bodies(self) -> bodies.Bodies:
        return bodies.Bodies(self.settings.max_bodies_bytes)

    @cached_property
    def waits(self) -> Gate:
        return Gate(self.settings.max_waits, "waiting for a task")

    @cached_property
    def exports(self) -> Gate:
        return Gate(self.settings.max_exports, "reading results as a stream")

    @cached_property
    def pushes(self) -> Gate:
        return Gate(self.settings.max_pushes, "pushing a model package")

    @cached_property
    def fetches(self) -> Gate:
        return Gate(self.settings.max_fetches, "fetching a model package")

    @cached_property
    def watchers(self) -> Gate:
        return Gate(self.settings.max_watchers, "watching events")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[pool.Connection]:
        """A connection to PostgreSQL and a transaction on it, committed when the block is left."""
        async with self.lend() as connection, connection.transaction():
            yield connection

    def lend(self) -> AbstractAsyncContextManager[pool.Connection]:
        """A connection to PostgreSQL for one who ends its transactions himself."""
        return self.database.connection(timeout=self.settings.database_wait_s)

    def heard_s(self, agent: topics.Agent, epoch: int) -> tuple[float, signals.Telemetry | None] | None:
        """How long ago (s) this hub heard of that epoch of an agent, and what; None if it never did."""
        member = self.live.find(agent)
        if member is None or member.epoch != epoch:
            return None
        return max(0.0, time.monotonic() - member.heard), member.telemetry


def of(request: Request) -> Hub:
    """The hub behind the app that got this request."""
    hub = request.app.state.hub
    assert isinstance(hub, Hub)
    return hub


async def _dependency(request: Request) -> Hub:
    return of(request)  # in the loop: FastAPI would call a plain function in a thread


Dependency: TypeAlias = Annotated[Hub, Depends(_dependency)]
