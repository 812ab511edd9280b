"""The picture of the fleet that dashboards watch and metrics are taken from.

However many look, it is taken about once a second and shared. Counting tasks takes longer the more there
are, so that it is done only as often as keeps it a small share of the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel, Field

from cloud_hub.api import context, fleet_view, queue_view, rollout_view, rollouts, task_view
from cloud_hub.store import agents, lanes, pool, schedule
from cloud_hub.store import rollouts as rollout_store
from cloud_hub.store import tasks as task_store
from shared import tasks

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
AGENTS_PER_S: Final = 200
"""The pictures of a larger fleet are taken less often, so that their bytes a second are bounded."""
HISTORY: Final = 120
"""Values of throughput that are kept, of each agent and of the fleet."""
COUNT_SHARE: Final = 0.05
"""The part of the time that may go into counting tasks, and as much into looking at rollouts."""
RECENT: Final = 12
FAILURES: Final = 8
QUEUES: Final = 50
"""Queues that a picture shows."""
ROLLOUTS: Final = 5
"""Rollouts that have ended, the last of which a picture shows beside those that have not."""
MOST_ROLLOUTS: Final = 50


class Counts(BaseModel):
    """How many tasks there are."""

    at: datetime = Field(description="When they were counted")
    states: dict[tasks.State, int] = Field(
        description="By state", examples=[{"QUEUED": 17, "PROCESSING": 6, "COMPLETED": 40211}]
    )
    queued: dict[str, int] = Field(
        description="Of the queued, by MODEL/QUEUE", examples=[{"surface-defects/default": 17}]
    )


class Picture(BaseModel):
    """The fleet at one moment, as the event `fleet` carries it."""

    at: datetime = Field(description="When it was taken")
    totals: fleet_view.Totals = Field(description="The fleet in numbers")
    tasks: Counts = Field(description="The hub's tasks in numbers")
    queues: list[queue_view.Queue] = Field(description="The busiest queues, by name; read with the counts")
    queue_count: int = Field(description="How many queues there are")
    sites: list[fleet_view.Site] = Field(description="Sites and agents")
    rollouts: list[rollout_view.Rollout] = Field(description="Those under way, then those that ended last")
    throughput: dict[str, list[float]] = Field(
        description="Items per second lately, oldest first, by SITE/NAME; of all agents under `*`"
    )
    every_s: float = Field(description="Seconds between two pictures, and two values of throughput")


class Lists(BaseModel):
    """The newest tasks and dead letters, as the event `tasks` carries them."""

    recent: list[task_view.Task] = Field(description="The newest tasks")
    failures: list[task_view.Task] = Field(description="The newest dead letters")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture and its lists, and both as JSON, ready for every client."""

    taken: float
    """Monotonic, s."""
    picture: Picture
    rollouts: Mapping[rollout_store.State, int]
    """How many there are."""
    picture_json: bytes
    lists_json: bytes


async def read_agents(hub: context.Hub, connection: pool.Connection) -> list[fleet_view.Agent]:
    """All agents as the store knows them, with what this hub heard of them since."""
    rows = await agents.fleet(connection)
    books = await lanes.ledgers(connection, [row.agent_id for row in rows])
    leases = await schedule.outstanding(connection)
    return [view(hub, row, books.get(row.agent_id), leases.get(row.agent_id, 0)) for row in rows]


def view(hub: context.Hub, row: agents.Agent, books: lanes.Ledgers | None, leases: int) -> fleet_view.Agent:
    """One agent, the fresher of what the store and this hub know of it."""
    heard_s = max(0.0, (datetime.now(UTC) - row.last_seen).total_seconds())
    telemetry = row.telemetry
    if fresher := hub.heard_s(row.place, row.epoch):
        heard_s = min(heard_s, fresher[0])
        telemetry = fresher[1] or telemetry
    return fleet_view.agent(
        row,
        books,
        leases=leases,
        heard_s=heard_s,
        telemetry=telemetry,
        silent_after_s=hub.settings.silent_after_s,
    )


class Snapshots:
    """Takes pictures of the fleet for all who look at it."""

    def __init__(self, hub: context.Hub) -> None:
        self._hub = hub
        self._taking: asyncio.Task[Snapshot] | None = None
        self._latest: Snapshot | None = None
        self._counts: Counts | None = None
        self._queues: list[queue_view.Queue] = []
        self._count_again = 0.0
        self._rollouts: list[rollout_view.Rollout] = []
        self._look_again = 0.0
        self._history: dict[str, deque[float]] = {}

    @property
    def latest(self) -> Snapshot | None:
        """The last one taken, however old."""
        return self._latest

    async def get(self) -> Snapshot:
        """The current picture. Raises pool.UNAVAILABLE while PostgreSQL is away."""
        latest = self._latest
        if latest is not None and time.monotonic() - latest.taken < 0.9 * latest.picture.every_s:
            return latest
        if self._taking is None:
            self._taking = asyncio.create_task(self._take(), name="picture of the fleet")
            self._taking.add_done_callback(self._taken)
        # One is taken for all who ask meanwhile, and who goes away does not break it off for the others.
        return await asyncio.shield(self._taking)

    def _taken(self, taking: asyncio.Task[Snapshot]) -> None:
        self._taking = None
        if not taking.cancelled() and taking.exception() is None:
            self._latest = taking.result()

    async def run(self) -> None:
        """Take pictures until cancelled, so that there is a history when somebody comes to look."""
        every_s = EVERY_S
        while True:
            try:
                every_s = (await self.get()).picture.every_s
            except pool.UNAVAILABLE as error:
                log.debug("no picture of the fleet: %s", error)
            await asyncio.sleep(every_s)

    async def count(self, connection: pool.Connection) -> Counts:
        """How many tasks there are; counted again when that was long enough ago for what it cost."""
        began = time.monotonic()
        if self._counts is None or began >= self._count_again:
            counted = await task_store.counts(connection)
            queued: Counter[str] = Counter()
            for (model, queue, _), count in counted.queued.items():
                queued[f"{model}/{queue}"] += count
            self._counts = Counts(at=datetime.now(UTC), states=counted.states, queued=dict(queued))
            self._queues = await queue_view.read(self._hub, connection)
            ended = time.monotonic()
            self._count_again = ended + (ended - began) / COUNT_SHARE
        return self._counts

    async def _look(self, connection: pool.Connection) -> list[rollout_view.Rollout]:
        """The rollouts under way and the latest others; looked at again when that was long enough ago."""
        began = time.monotonic()
        if began >= self._look_again:
            found = await rollout_store.every(connection, limit=MOST_ROLLOUTS)
            under_way = sum(one.ended_at is None for one in found)
            standings = await rollouts.look(self._hub, connection, found[: under_way + ROLLOUTS])
            self._rollouts = [rollout_view.rollout(one) for one in standings]
            ended = time.monotonic()
            self._look_again = ended + (ended - began) / COUNT_SHARE
        return self._rollouts

    async def _take(self) -> Snapshot:
        async with self._hub.connection() as connection:
            found = await read_agents(self._hub, connection)
            counts = await self.count(connection)
            rolling = await self._look(connection)
            rolled = await rollout_store.counts(connection)
            recent = await task_store.list_page(connection, task_store.Filter(), limit=RECENT)
            failures = await task_store.list_page(
                connection, task_store.Filter(state=tasks.State.TERMINATED), limit=FAILURES
            )
        totals = fleet_view.totals(found)
        self._note(found, totals)
        picture = Picture.model_construct(
            at=datetime.now(UTC),
            totals=totals,
            tasks=counts,
            queues=_busiest(self._queues),
            queue_count=len(self._queues),
            sites=fleet_view.sites(found),
            rollouts=rolling,
            throughput={name: list(values) for name, values in self._history.items()},
            every_s=max(EVERY_S, totals.agents / AGENTS_PER_S),
        )
        lists = Lists.model_construct(
            recent=[task_view.task(row) for row in recent.tasks],
            failures=[task_view.task(row) for row in failures.tasks],
        )
        return Snapshot(
            time.monotonic(),
            picture,
            rolled,
            picture.model_dump_json().encode(),
            lists.model_dump_json().encode(),
        )

    def _note(self, found: Sequence[fleet_view.Agent], totals: fleet_view.Totals) -> None:
        """Add one value to each history, and forget agents that are gone."""
        values = {"*": totals.items_per_s}
        for one in found:
            running = one.telemetry.items_per_s if one.telemetry and one.online else 0.0
            values[f"{one.site}/{one.name}"] = running
        self._history = {name: self._history.get(name, deque(maxlen=HISTORY)) for name in values}
        for name, value in values.items():
            self._history[name].append(round(value, 2))


def _busiest(found: Sequence[queue_view.Queue]) -> list[queue_view.Queue]:
    busiest = sorted(found, key=lambda one: (-one.queued - one.running, one.name))[:QUEUES]
    return sorted(busiest, key=lambda one: one.name)
