"""Any sequence of what agents, schedulers and people may do leaves the store in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_hub.store import agents, apply, migrate, pool, schedule, tasks
from shared import tasks as words
from shared import topics
from shared.tasks import State
from tests.integration import stores

PLACES = [topics.Agent("lyon", "one"), topics.Agent("lyon", "two"), topics.Agent("paris", "one")]

LEASES_AND_RUNNING_TASKS = b"""
    SELECT count(*) FROM tasks t FULL JOIN leases l USING (task_id)
    WHERE (t.state IS NOT DISTINCT FROM 'PROCESSING') <> (l.task_id IS NOT NULL) OR t.attempt <> l.attempt
"""
PAYLOADS_AND_OPEN_TASKS = b"""
    SELECT count(*) FROM tasks t FULL JOIN payloads p USING (task_id)
    WHERE (p.task_id IS NOT NULL) <> (t.state <> 'COMPLETED') AND t.payload_bytes > 0
"""
NUMBERS_AND_RECORDS = b"""
    SELECT count(*) FROM (
        SELECT d.numbered, coalesce(sum(o.last - o.first + 1), 0) AS waiting, d.acked
        FROM down_lanes d LEFT JOIN outgoing o USING (agent_id, lane)
        GROUP BY d.agent_id, d.lane
    ) AS lane
    WHERE waiting NOT IN (0, numbered - acked)
"""
ORIGINS_NOT_TOLD = b"""
    SELECT count(*) FROM tasks t
    WHERE t.origin_agent IS NOT NULL AND t.finished_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM outgoing o WHERE o.task_id = t.task_id AND o.lane = 'results.1')
        AND NOT EXISTS (
            SELECT FROM attempts a JOIN agents g USING (agent_id) JOIN agents h ON h.agent_id = t.origin_agent
            WHERE a.task_id = t.task_id AND g.site = h.site AND g.name = h.name
        )
"""


class World:
    """One store, one transaction that is never committed, and what was done in it."""

    def __init__(self, connection: pool.Connection) -> None:
        self.connection = connection
        self.epochs = dict.fromkeys(PLACES, 1)
        self.agent_ids: dict[topics.Agent, int] = {}
        self.task_ids: list[bytes] = []
        self.holders: dict[tuple[bytes, int], topics.Agent] = {}

    def task(self, number: int) -> bytes:
        return self.task_ids[number % len(self.task_ids)] if self.task_ids else words.new_id()

    async def appear(self, place: topics.Agent, _: int) -> None:
        """An agent says that it is there."""
        seen = await agents.seen(self.connection, place, self.epochs[place])
        self.agent_ids[place] = seen.agent_id

    async def start_afresh(self, place: topics.Agent, _: int) -> None:
        """An agent comes back with an empty journal."""
        self.epochs[place] += 1
        await self.appear(place, 0)

    async def submit(self, _: topics.Agent, number: int) -> None:
        task = stores.submission(items=1 + number % 3, max_attempts=1 + number % 3)
        await tasks.submit(self.connection, [task])
        self.task_ids.append(task.task_id)

    async def hand_over(self, place: topics.Agent, number: int) -> None:
        """A new task, or one that is known, comes from an agent; some without payload."""
        task_id = words.new_id() if number % 3 else self.task(number)
        record = stores.handed_over(task_id, None if number % 7 == 6 else b"x", max_attempts=1 + number % 2)
        await apply.tasks(self.connection, self.agent_ids[place], record)
        self.task_ids.append(task_id)

    async def grant(self, place: topics.Agent, number: int) -> None:
        """A scheduler grants two tasks; half of the leases are lost at once."""
        await self.connection.execute("UPDATE tasks SET not_before = NULL")
        wanted = [self.task(number), self.task(number + 1)]
        ttl_s = -1.0 if number % 2 else 60.0
        for granted in await stores.grant(self.connection, wanted, self.agent_ids[place], ttl_s):
            self.holders[granted.task_id, granted.attempt] = place

    async def report(self, place: topics.Agent, number: int) -> None:
        """The current attempt at a task, or one before, is reported, by whoever really made it.

        Of an attempt that nobody made `place` has something to say.
        """
        task_id = self.task(number // 16)
        task = await tasks.get(self.connection, task_id)
        attempt = (task.attempt if task else 0) - (number % 4 if number % 3 == 0 else 0)
        reporter = self.agent_ids[self.holders.get((task_id, attempt), place)]
        state = (State.COMPLETED, State.FAILED, State.QUEUED, State.TERMINATED)[number // 4 % 4]
        await apply.results(self.connection, reporter, stores.rows(task_id))
        word = stores.report(task_id, attempt, state, retriable=number % 5 > 1, items_done=number % 4)
        await apply.attempts(self.connection, reporter, word)

    async def report_own(self, place: topics.Agent, number: int) -> None:
        """An agent took a task back, maybe one that is still on its way, and ended it itself."""
        task_id = words.new_id() if number % 5 == 4 else self.task(number)
        state = (State.COMPLETED, State.FAILED, State.TERMINATED)[number % 3]
        await apply.attempts(self.connection, self.agent_ids[place], stores.report(task_id, 0, state))
        self.task_ids.append(task_id)

    async def look(self, _: topics.Agent, __: int) -> None:
        await schedule.expire(self.connection)
        await schedule.expire_deadlines(self.connection)

    async def cancel(self, _: topics.Agent, number: int) -> None:
        await tasks.cancel(self.connection, [self.task(number), self.task(number + 1)])

    async def requeue(self, _: topics.Agent, number: int) -> None:
        await tasks.requeue(self.connection, [self.task(number), self.task(number + 2)])

    async def in_order(self) -> None:
        """What must hold at any time; the constraints do, or a step has failed."""
        for rule in (
            LEASES_AND_RUNNING_TASKS,
            PAYLOADS_AND_OPEN_TASKS,
            NUMBERS_AND_RECORDS,
            ORIGINS_NOT_TOLD,
        ):
            assert await stores.scalar(self.connection, rule) == 0, rule.decode()


Step = Callable[[World, topics.Agent, int], Coroutine[None, None, None]]

STEPS: list[Step] = [
    World.start_afresh,
    World.submit,
    World.hand_over,
    World.grant,
    World.grant,
    World.report,
    World.report,
    World.report_own,
    World.look,
    World.cancel,
    World.requeue,
]

steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from(PLACES), st.integers(0, 127)), min_size=5, max_size=25
)


@asynccontextmanager
async def world(connection: pool.Connection) -> AsyncIterator[World]:
    """A world that leaves no trace."""
    fresh = World(connection)
    for place in PLACES:
        await fresh.appear(place, 0)
    try:
        yield fresh
    finally:
        await connection.rollback()


def test_whatever_happens_the_store_stays_in_order(database: str) -> None:
    """A lease for each running task and no other, a payload while it may run, no gap, every origin told."""
    with asyncio.Runner() as runner:
        runner.run(migrate.migrate(database))
        connection = runner.run(pool.connect(database))

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(steps)
        def walk(path: list[tuple[Step, topics.Agent, int]]) -> None:
            async def go() -> None:
                async with world(connection) as here:
                    for step, place, number in path:
                        await step(here, place, number)
                    await here.in_order()

            runner.run(go())

        try:
            walk()
        finally:
            runner.run(connection.close())
