"""The conductor: what the policy decides is done, once, by the hub that leads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from cloud_hub import fleet, hot, leader, settings
from cloud_hub.rollouts import active, conductor, policy, standing
from cloud_hub.store import agents, apply, blobs, leadership, models, pool, rollouts, tallies, targets
from demo import servers
from shared import signals, tasks, topics
from shared.rollouts import gates, stages
from tests.integration import played, stores
from tests.integration.played import running, until

PRESSES = [topics.Agent("lyon", name) for name in ("one", "two", "three")]
PATIENCE_S = 15.0


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    """A store with two versions of a model, the older of which everybody is to serve, and three agents."""
    async with stores.fresh(database, max_size=20) as opened:
        async with opened.connection() as connection:
            for version in ("1", "2"):
                draft = await blobs.begin(connection)
                await blobs.complete(connection, draft, version * 64, 0)
                await models.add(connection, "faces", version, version * 64, "", None)
            await targets.put(connection, "faces", "", "1")
            for place in PRESSES:
                await say(connection, place)
        yield opened


async def say(connection: pool.Connection, place: topics.Agent, **word: Any) -> int:
    """A heartbeat of an agent, with a word about a rollout if there is one."""
    ring = "internal" if place == PRESSES[0] else "plant"
    told = signals.Telemetry(epoch=1, sequence=1, capacity=1, labels={"ring": ring})
    if word:
        told.trials = [signals.TrialReport(**({"state": "ready"} | word))]
    seen = await agents.seen(connection, place, 1)
    await agents.save_telemetry(connection, {seen.agent_id: told})
    return seen.agent_id


async def start(connections: pool.Pool, text: str = "internal,100%", **said: Any) -> rollouts.Rollout:
    fields: dict[str, Any] = {
        "model": "faces",
        "version": "2",
        "selector": "",
        "stages": stages.parse_all(text),
        "gates": (gates.parse("errors<=10%"),),
        "min_results": 10,
        "soak_s": 0.0,
        "patience_s": None,
        "on_fail": policy.OnFail.ROLL_BACK,
        **said,
    }
    async with connections.connection() as connection:
        rollout_id = await rollouts.start(connection, rollouts.Plan(**fields))
    return await find(connections, rollout_id)


async def find(connections: pool.Pool, rollout_id: bytes) -> rollouts.Rollout:
    async with connections.connection() as connection:
        found = await rollouts.find(connection, rollout_id)
    assert found is not None
    return found


async def work(
    connections: pool.Pool, rollout: rollouts.Rollout, place: topics.Agent, count: int = 10, **columns: Any
) -> None:
    """An agent has the new version, and results of it."""
    async with connections.connection() as connection:
        agent_id = await say(connection, place, rollout=rollout.name)
        watched = await tallies.watched(connection)
        for _ in range(count):
            rows = stores.rows(tasks.new_id(), **({"version": "2"} | columns))
            await apply.results(connection, agent_id, rows, watched)


async def steps(connections: pool.Pool, rollout: rollouts.Rollout) -> list[str]:
    async with connections.connection() as connection:
        events = await rollouts.events(connection, [rollout.rollout_id])
    return [event.kind.value for event in events[rollout.rollout_id]]


async def served(connections: pool.Pool) -> list[str]:
    async with connections.connection() as connection:
        return [aim.version for aim in await targets.every(connection, "faces")]


class Led:
    """A hub that leads, with a conductor."""

    def __init__(self, connections: pool.Pool, name: str = "one") -> None:
        self.lead = leader.Leader(
            connections, hot.Hot(None, lambda word: None), name, settings.Leader(), lambda fair: None
        )
        self.active = active.Active(connections)
        self.fleet = fleet.Fleet(10.0)
        self.conductor = conductor.Conductor(connections, self.lead, self.fleet, 10.0, self.active)


@contextlib.asynccontextmanager
async def leading(*hubs: Led) -> AsyncIterator[None]:
    """The hubs' parts in leading run, and one of them leads."""
    async with asyncio.TaskGroup() as group:
        working = [group.create_task(hub.lead.run()) for hub in hubs]
        await until(lambda: any(hub.lead.leading for hub in hubs))
        yield
        for one in working:
            one.cancel()


async def test_a_version_that_passes_every_stage_is_served_by_all(connections: pool.Pool) -> None:
    """Nothing is done before there is evidence; with it the rollout goes on, and at last moves the target."""
    hub = Led(connections)
    begun = await start(connections)
    async with leading(hub):
        assert not await hub.conductor.look()
        await work(connections, begun, PRESSES[0], 9)
        assert not await hub.conductor.look()
        await work(connections, begun, PRESSES[0], 1)
        assert await hub.conductor.look()
        assert (await find(connections, begun.rollout_id)).stage == 1
        assert hub.active.watched["faces"].stage == 1, "this hub counts for the new stage at once"
        assert not await hub.conductor.look(), "the results of the stage before do not count in this one"
        assert await served(connections) == ["1"]
        for place in PRESSES:
            await work(connections, begun, place)
        assert await hub.conductor.look()
        assert not await hub.conductor.look()
    ended = await find(connections, begun.rollout_id)
    assert (ended.state, ended.ended_at is not None) == (rollouts.State.COMPLETED, True)
    assert await served(connections) == ["2"]
    assert await steps(connections, begun) == ["started", "promoted", "completed"]
    assert hub.conductor.counts == {rollouts.Kind.PROMOTED: 1, rollouts.Kind.COMPLETED: 1}
    assert hub.active.watched == {}


async def test_a_gate_that_fails_takes_the_version_back(connections: pool.Pool) -> None:
    """The rollout ends with the evidence, its target as it was."""
    hub = Led(connections)
    begun = await start(connections)
    async with leading(hub):
        await work(connections, begun, PRESSES[0], 12, outcome="failed", label=None)
        assert await hub.conductor.look()
    ended = await find(connections, begun.rollout_id)
    assert ended.state is rollouts.State.ROLLED_BACK
    assert "beyond errors<=10%" in ended.reason
    assert await served(connections) == ["1"]
    async with connections.connection() as connection:
        *_, last = (await rollouts.events(connection, [begun.rollout_id]))[begun.rollout_id]
    assert last.evidence is not None
    seen = standing.decode(last.evidence)
    assert (seen.new_results, [one.verdict for one in seen.judgements]) == (12, [gates.Verdict.FAILED])


async def test_an_agent_that_refuses_pauses_what_is_to_be_paused(connections: pool.Pool) -> None:
    """One agent's word is enough; a paused rollout is left to people, whatever comes of it."""
    hub = Led(connections)
    begun = await start(connections, on_fail=policy.OnFail.PAUSE)
    async with leading(hub):
        async with connections.connection() as connection:
            word = {
                "rollout": begun.name,
                "state": "refused",
                "reason": "the signature is of nobody we trust",
            }
            await say(connection, PRESSES[0], **word)
        assert await hub.conductor.look()
        paused = await find(connections, begun.rollout_id)
        assert paused.state is rollouts.State.PAUSED
        assert "lyon/one refused faces@2 (the signature is of nobody we trust)" in paused.reason
        await work(connections, begun, PRESSES[0], 20)
        assert not await hub.conductor.look()
    assert await steps(connections, begun) == ["started", "paused"]


async def test_whatever_an_agent_says_can_be_written_down(connections: pool.Pool) -> None:
    """A reason with a zero byte, which no text in PostgreSQL may have, ends the rollout and not the hub."""
    hub = Led(connections)
    begun = await start(connections)
    async with connections.connection() as connection:
        agent_id = await say(connection, PRESSES[0])
    word = signals.TrialReport(rollout=begun.name, state="refused", reason="bad\0 graph")
    told = signals.Telemetry(epoch=1, sequence=2, capacity=1, labels={"ring": "internal"}, trials=[word])
    now = time.monotonic()
    hub.fleet.join(fleet.Member(agent_id, PRESSES[0], 1, online=True, heard=now, telemetry=told))
    async with leading(hub):
        assert await hub.conductor.look()
    ended = await find(connections, begun.rollout_id)
    assert ended.state is rollouts.State.ROLLED_BACK
    assert "(bad graph)" in ended.reason


async def test_a_stage_that_takes_too_long_is_paused(connections: pool.Pool) -> None:
    """Patience is counted from the stage's beginning, by the store's clock."""
    hub = Led(connections)
    begun = await start(connections, patience_s=60.0)
    async with leading(hub):
        assert not await hub.conductor.look()
        async with connections.connection() as connection:
            await connection.execute(
                b"UPDATE rollouts SET stage_since = stage_since - %s", (timedelta(seconds=61),)
            )
        assert await hub.conductor.look()
    assert (await find(connections, begun.rollout_id)).state is rollouts.State.PAUSED


async def test_a_leader_that_was_outlived_takes_no_step(connections: pool.Pool) -> None:
    """Of two hubs that both believe to lead, only the one with the newer token writes, and only once."""
    old, new = Led(connections, "old"), Led(connections, "new")
    begun = await start(connections)
    await work(connections, begun, PRESSES[0])
    async with leading(old):
        async with connections.connection() as connection:
            await leadership.take(connection, "new")
        with pytest.raises(leadership.Deposed):
            await old.conductor.look()
        assert await steps(connections, begun) == ["started"]
        async with leading(new):
            assert await new.conductor.look()
    assert await steps(connections, begun) == ["started", "promoted"]
    assert not old.conductor.counts


async def test_an_operator_who_is_quicker_is_not_overruled(connections: pool.Pool) -> None:
    """A step that was decided for a stage is not taken on the next one."""
    hub = Led(connections)
    begun = await start(connections, "internal,50%,100%")
    await work(connections, begun, PRESSES[0])
    async with leading(hub):
        async with connections.connection() as connection:
            await rollouts.take(connection, begun, rollouts.Kind.PROMOTED, rollouts.By.OPERATOR, "hurry")
            looking = asyncio.create_task(hub.conductor.look())  # sees what was before the commit
            await stores.until_one_waits(connections)
        assert not await looking
    found = await find(connections, begun.rollout_id)
    assert (found.stage, found.reason) == (1, "hurry")


async def test_the_conductor_outlives_postgresql(postgres: servers.Postgres, connections: pool.Pool) -> None:
    """While the store is away it waits; when it is back it goes on where it was."""
    hub = Led(connections)
    begun = await start(connections)
    await work(connections, begun, PRESSES[0])
    async with leading(hub):
        end_all = b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        conducting = asyncio.create_task(hub.conductor.run())
        with contextlib.suppress(*pool.UNAVAILABLE):
            async with connections.connection() as connection:
                await connection.execute(end_all)
        async with asyncio.timeout(PATIENCE_S):
            while await steps(connections, begun) == ["started"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        conducting.cancel()
    assert await steps(connections, begun) == ["started", "promoted"]


async def test_results_count_once_whichever_hubs_take_them(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """Two hubs that both serve all agents count each result once, though both get every batch."""
    both = [played.Hub(broker, database, connections, name, alone=True) for name in "ab"]
    senders = [played.Agent(broker, f"press-{n}") for n in range(2)]
    await start(connections, gates=())
    async with connections.connection() as connection:  # what the played agents send is of version 3
        draft = await blobs.begin(connection)
        await blobs.complete(connection, draft, "3" * 64, 0)
        await models.add(connection, "faces", "3", "3" * 64, "", None)
        await targets.put(connection, "faces", "site=york", "3")
    for hub in both:
        await hub.rolling.refresh()
    async with running(*both, *senders):
        await until(lambda: all(hub.gateway.owned == 2 for hub in both))
        for _ in range(10):
            for sender in senders:
                sender.finish(10)
            await asyncio.sleep(0.02)
        await until(lambda: all(sender.outlet.unacknowledged == 0 for sender in senders))
    assert sum(hub.gateway.counts["repeat"] for hub in both) > 0, "both were at work"
    async with connections.connection() as connection:
        query = b"SELECT a.name, t.items FROM rollout_tallies t JOIN agents a USING (agent_id) ORDER BY 1"
        found = await (await connection.execute(query)).fetchall()
    assert found == [("press-0", 100), ("press-1", 100)]


async def test_nothing_is_counted_where_nothing_is_rolled_out(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """Results of a model without a rollout touch no table of rollouts."""
    hub = played.Hub(broker, database, connections, "a", alone=True)
    sender = played.Agent(broker, "press-0")
    await hub.rolling.refresh()
    assert hub.rolling.watched == {}
    async with running(hub, sender):
        sender.finish(10)
        await until(lambda: hub.gateway.counts["results"] == 10)
    async with connections.connection() as connection:
        assert await stores.scalar(connection, b"SELECT count(*) FROM rollout_tallies") == 0
