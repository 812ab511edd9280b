"""Hubs that share one database: who serves whom, and that nothing is lost or doubled where they disagree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psycopg
import pytest

from cloud_hub import hot, replicas
from cloud_hub.store import ends, hubs, pool
from cloud_hub.store import lanes as lane_store
from demo import servers
from shared import signals, tasks
from tests.integration import played, stores
from tests.integration.played import running, until

COUNTS = b"SELECT count(*), count(DISTINCT task_id), count(DISTINCT (task_id, item)) FROM results"


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database, max_size=20) as opened:
        yield opened


def divided(hubs_: Sequence[played.Hub], agents: Sequence[played.Agent]) -> bool:
    """Whether each agent is served by one of the hubs, and each knows all agents."""
    owners = [[hub for hub in hubs_ if hub.replicas.owns(agent.place)] for agent in agents]
    return (
        all(len(its) == 1 for its in owners)
        and sum(hub.gateway.owned for hub in hubs_) == len(agents)
        and all(len(list(hub.fleet)) == len(agents) for hub in hubs_)
    )


async def committed(connections: pool.Pool) -> tuple[int, ...]:
    async with connections.connection() as connection:
        row = await (await connection.execute(COUNTS)).fetchone()
        assert row is not None
        return row


async def until_stored(connections: pool.Pool, query: bytes, wanted: object) -> None:
    """Wait until a query gives the `wanted` value."""
    async with connections.connection() as connection, asyncio.timeout(played.PATIENCE_S):
        while await stores.scalar(connection, query) != wanted:
            await connection.rollback()
            await asyncio.sleep(0.02)


async def until_committed(connections: pool.Pool, count: int) -> None:
    await until_stored(connections, b"SELECT count(*) FROM results", count)
    assert await committed(connections) == (count, count, count)


# Who is alive


async def test_hubs_know_each_other(connections: pool.Pool, database: str) -> None:
    """Each learns of the others within two beats; one that stops says so, and need not be missed first."""
    first, second = (replicas.Replicas(replicas.hub_id(name, 1), database) for name in "ab")
    changes: list[frozenset[str]] = []
    first.watch(lambda: changes.append(first.live))
    one = asyncio.create_task(first.run())
    await until(lambda: first.live == {first.hub_id})
    two = asyncio.create_task(second.run())
    await until(lambda: first.live == second.live == {first.hub_id, second.hub_id}, 2 * replicas.BEAT_S)
    two.cancel()
    await until(lambda: first.live == {first.hub_id}, 2 * replicas.BEAT_S)
    one.cancel()
    await asyncio.wait([one, two])
    assert [len(live) for live in changes] == [1, 2, 1]
    async with connections.connection() as connection:
        assert await stores.scalar(connection, b"SELECT count(*) FROM hubs") == 0


async def test_a_hub_that_is_silent_counts_as_gone(connections: pool.Pool) -> None:
    """By the database's clock, and by that alone; what is long gone is forgotten."""
    async with connections.connection() as connection:
        await hubs.beat(connection, "a:1/x")
        assert await hubs.beat(connection, "b:1/x") == {"a:1/x", "b:1/x"}
        age = b"UPDATE hubs SET seen_at = seen_at - make_interval(secs => %s) WHERE hub_id = 'a:1/x'"
        await connection.execute(age, [hubs.LIVE_S])
        assert await hubs.beat(connection, "b:1/x") == {"b:1/x"}
        assert await hubs.beat(connection, "a:1/x") == {"a:1/x", "b:1/x"}, "it woke up"
        await connection.execute(age, [hubs.FORGET_S + 1])
        await hubs.beat(connection, "b:1/x")
        assert await stores.scalar(connection, b"SELECT count(*) FROM hubs") == 1


async def test_a_hub_that_comes_back_to_its_place_waits_for_nobody(
    connections: pool.Pool, database: str
) -> None:
    """The row of the one that died there is gone with its first beat; others' rows stay."""
    async with connections.connection() as connection:
        await hubs.beat(connection, replicas.hub_id("a", 8080))
        other = replicas.hub_id("a", 80)
        await hubs.beat(connection, other)
    again = replicas.Replicas(replicas.hub_id("a", 8080), database)
    beating = asyncio.create_task(again.run())
    await until(lambda: bool(again.live))
    beating.cancel()
    await asyncio.wait([beating])
    assert again.live == {again.hub_id, other}


async def test_while_postgres_is_away_the_picture_stays(connections: pool.Pool, database: str) -> None:
    """A session that ends, or a database that is not there, changes nobody's share."""
    first, second = (replicas.Replicas(replicas.hub_id(name, 1), database) for name in "ab")
    async with asyncio.TaskGroup() as group:
        beating = [group.create_task(one.run()) for one in (first, second)]
        await until(lambda: len(first.live) == len(second.live) == 2)
        changes: list[int] = []
        first.watch(lambda: changes.append(len(first.live)))
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await admin.execute("UPDATE hubs SET seen_at = seen_at - interval '2 s'")
            fresh = b"SELECT min(seen_at) > now() - interval '1 s' FROM hubs"
            await until_stored(connections, fresh, True)
        assert not changes
        for one in beating:
            one.cancel()


# The division of the work


async def test_hubs_divide_the_agents_and_each_knows_all(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """Three hubs, nine agents: each is served by one hub, and what it sends is committed once."""
    trio = [played.Hub(broker, database, connections, name) for name in "abc"]
    agents = [played.Agent(broker, f"press-{n}") for n in range(9)]
    async with running(*trio, *agents):
        await until(lambda: divided(trio, agents))
        assert all(hub.gateway.owned for hub in trio)
        for agent in agents:
            agent.finish(50)
        await until_committed(connections, 450)
        await until(lambda: all(agent.outlet.unacknowledged == 0 for agent in agents))
        assert sum(hub.gateway.counts["records"] for hub in trio) == 450
        assert all(hub.gateway.counts["records"] for hub in trio), "no hub did it alone"
        assert sum(hub.gateway.counts["gap"] for hub in trio) == 0


async def test_a_heartbeat_is_handled_once(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """The owner has two subscriptions that cover it, and answers it once."""
    hub = played.Hub(broker, database, connections, "a")
    agent = played.Agent(broker, "press", beat_s=600)
    async with running(hub, agent):
        await until(lambda: hub.gateway.owned == 1 and agent.heard > 0)
        before, freed = agent.heard, hub.heard["freed"]
        told = signals.Telemetry(epoch=1, sequence=2, capacity=1)
        await agent.link.publish("backhaul/v1/lyon/press/up/telemetry", signals.encode(told))
        await until(lambda: agent.heard > before)
        agent.finish()
        await until_committed(connections, 1)
        await until(lambda: agent.outlet.unacknowledged == 0)
        assert hub.link.counters.messages_in >= 3 + 2
        assert (agent.heard, hub.heard["freed"]) == (before + 2, freed + 1), "one for the batch of results"


async def test_a_share_moves_when_a_hub_comes_and_goes(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """While records stream in both directions, a hub comes and goes, twice: all arrive, and once."""
    first, second = (played.Hub(broker, database, connections, name) for name in "ab")
    agents = [played.Agent(broker, f"press-{n}") for n in range(6)]
    sent = 0
    streaming = True

    async def stream() -> None:
        nonlocal sent
        while streaming:
            for agent in agents:
                agent.finish(3)
                sent += 3
            async with connections.connection() as connection:
                told = await lane_store.command(
                    connection, [member.agent_id for member in first.fleet], "cancel"
                )
            first.gateway.wake(told)
            second.gateway.wake(told)
            await asyncio.sleep(0.02)

    async def visit(hub: played.Hub) -> None:
        async with running(hub):
            await until(lambda: divided([first, hub], agents))
            await until(lambda: hub.gateway.counts["records"] > 20)

    async with running(first, *agents), asyncio.TaskGroup() as group:
        await until(lambda: divided([first], agents))
        group.create_task(stream())
        for _ in range(2):
            second = played.Hub(broker, database, connections, "b")
            await visit(second)
            await until(lambda: divided([first], agents))
        streaming = False
        await until_committed(connections, sent)
        commands = lane_store.COMMANDS
        async with connections.connection() as connection:
            books = await lane_store.ledgers(connection)
            numbers = {member.agent: books[member.agent_id].down[commands].numbered for member in first.fleet}
        await until(lambda: all(agent.got[commands] == numbers[agent.place] for agent in agents))
        for book in (await ledgers(connections)).values():
            assert all(ledger.missing == 0 for ledger in book.up.values())


async def ledgers(connections: pool.Pool) -> dict[int, lane_store.Ledgers]:
    async with connections.connection() as connection:
        return await lane_store.ledgers(connection)


async def test_two_hubs_that_both_serve_an_agent_do_no_harm(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """Both apply what comes up and send what goes down, for as long as it lasts: all is committed once."""
    both = [played.Hub(broker, database, connections, name, alone=True) for name in "ab"]
    agents = [played.Agent(broker, f"press-{n}") for n in range(3)]
    async with running(*both, *agents):
        await until(lambda: all(hub.gateway.owned == 3 for hub in both))
        for turn in range(30):
            for agent in agents:
                agent.finish(10)
            async with connections.connection() as connection:
                told = await lane_store.command(
                    connection, [member.agent_id for member in both[0].fleet], "cancel"
                )
            for hub in both if turn % 3 else both[:1]:
                hub.gateway.wake(told)
            await asyncio.sleep(0.02)
        await until_committed(connections, 900)
        await until(lambda: all(agent.got[lane_store.COMMANDS] == 30 for agent in agents))
        await until(lambda: all(agent.outlet.unacknowledged == 0 for agent in agents))
        await until_stored(connections, b"SELECT sum(numbered - acked) FROM down_lanes", 0)
    assert sum(hub.gateway.counts["repeat"] for hub in both) > 0, "both were at work"
    assert sum(hub.gateway.counts["regressed"] for hub in both) == 0
    for book in (await ledgers(connections)).values():
        assert all(ledger.missing == 0 and ledger.waiting == 0 for ledger in book.up.values())


async def test_words_to_an_epoch_that_is_over_are_not_looked_for(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """What was on its way to an agent that came back as another is its heir's: the hub stops sending it."""
    hub = played.Hub(broker, database, connections, "a")
    former, heir = (played.Agent(broker, "press", epoch=epoch) for epoch in (1, 2))
    async with running(hub):
        async with running(former):
            await until(lambda: hub.gateway.owned == 1 and former.heard > 0)
        member = hub.fleet.find(former.place)
        assert member is not None
        async with connections.connection() as connection:
            told = await lane_store.command(connection, [member.agent_id], "cancel")
        hub.gateway.wake(told)
        async with running(heir):
            await until(lambda: heir.heard > 0)
            await broker.restart()  # so that what is not acknowledged is sent again
            await until(lambda: hub.gateway.counts["overtaken"] == 1)
            heir.finish(10)
            await until_committed(connections, 10)
            await broker.restart()
            heir.finish(10)
            await until_committed(connections, 20)
        assert hub.gateway.counts["overtaken"] == 1


# News from hub to hub


@pytest.mark.parametrize("with_redis", [True, False])
async def test_what_another_hub_puts_on_a_lane_is_sent_by_its_owner(
    connections: pool.Pool, database: str, broker: servers.Mosquitto, redis_url: str, with_redis: bool
) -> None:
    """At once by way of Redis; without it, when the owner looks, about a second later."""
    url = redis_url if with_redis else None
    pair = [played.Hub(broker, database, connections, name, url) for name in "ab"]
    agents = [played.Agent(broker, f"press-{n}") for n in range(4)]
    async with running(*pair, *agents):
        await until(lambda: divided(pair, agents) and all(hub.hot.available for hub in pair) == with_redis)
        teller = next(hub for hub in pair if hub.gateway.owned < 4)
        waits = []
        for _ in range(2):
            for agent in agents:
                async with connections.connection() as connection:
                    member = teller.fleet.find(agent.place)
                    assert member is not None
                    told = await lane_store.command(connection, [member.agent_id], "cancel")
                began, before = time.monotonic(), agent.got.get(lane_store.COMMANDS, 0)
                teller.gateway.news.tell(ends.Outcome(told=told))
                await until(lambda: agent.got.get(lane_store.COMMANDS, 0) > before)  # noqa: B023
                waits.append(time.monotonic() - began)
    assert max(waits) < (0.5 if with_redis else 2.0), waits


async def test_a_lock_in_redis_has_one_holder(redis_url: str) -> None:
    """It is taken when free, prolonged by its holder alone, given up by its holder alone, and runs out."""
    one = hot.Hot(redis_url, lambda word: None)
    assert await one.lock("leader", "a", 30.0) is True
    assert await one.lock("leader", "b", 30.0) is False
    assert await one.lock("other", "b", 30.0) is True
    assert await one.lock("leader", "a", 0.2) is True, "prolonged, or rather shortened"
    async with asyncio.timeout(played.PATIENCE_S):
        while not await one.lock("leader", "b", 30.0):  # noqa: ASYNC110 - Redis's clock
            await asyncio.sleep(0.02)
    await one.unlock("leader", "a")
    assert await one.lock("leader", "a", 30.0) is False, "it was not a's to give up"
    await one.unlock("leader", "b")
    assert await one.lock("leader", "a", 30.0) is True


async def test_redis_that_comes_back_is_used_again(tmp_path: Path) -> None:
    """Killed and started again, it carries news and locks as before; meanwhile both are done without."""
    heard: list[str] = []
    async with servers.Valkey(tmp_path / "valkey") as server, asyncio.TaskGroup() as group:
        one, other = hot.Hot(server.url, heard.append), hot.Hot(server.url, heard.append)
        listening = [group.create_task(each.run()) for each in (one, other)]
        for _ in range(2):
            await until(lambda: one.available and other.available)
            heard.clear()
            one.announce("queued")
            await until(lambda: len(heard) == 2)  # by itself, and the other by way of Redis
            assert await one.lock("leader", "a", 30.0) is True
            await server.kill()
            assert await one.lock("leader", "a", 30.0) is None
            one.announce("queued")
            await until(lambda: not one.available and not other.available)
            await server.start()
        for task in listening:
            task.cancel()


async def test_a_hub_acts_once_on_its_own_news(redis_url: str) -> None:
    """What it announced it does not hear again, though others hear it by way of Redis."""
    ones: list[str] = []
    others: list[str] = []
    async with asyncio.TaskGroup() as group:
        one, other = hot.Hot(redis_url, ones.append), hot.Hot(redis_url, others.append)
        listening = [group.create_task(each.run()) for each in (one, other)]
        await until(lambda: one.available and other.available)
        one.announce("queued")
        await until(lambda: "queued" in others)
        other.announce("freed")
        await until(lambda: "freed" in ones)  # behind its own on the same channel
        assert ones == ["queued", "freed"]
        for task in listening:
            task.cancel()


async def test_without_redis_nobody_knows_who_holds_a_lock() -> None:
    """None is neither yes nor no: Redis is not used, or does not answer."""
    nothing = hot.Hot(None, lambda word: None)
    assert await nothing.lock("leader", "a", 1.0) is None
    await nothing.unlock("leader", "a")
    away = hot.Hot(f"redis://127.0.0.1:{servers.ports.free()}", lambda word: None)
    assert await away.lock("leader", "a", 1.0) is None
    await away.unlock("leader", "a")
    assert away.failures == 2


# One slow agent


async def test_a_statement_that_hangs_holds_up_nobody_else(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """While one agent's rows are locked, the results, leases and births of others go on."""
    hub = played.Hub(broker, database, connections, "a")
    slow, quick = played.Agent(broker, "slow"), played.Agent(broker, "quick")
    late = played.Agent(broker, "late")
    async with running(hub, slow, quick):
        await until(lambda: hub.gateway.owned == 2)
        async with connections.connection() as connection:
            (task_id,) = await stores.submit(connection)
            member = hub.fleet.find(quick.place)
            assert member is not None
            await stores.grant(connection, [task_id], member.agent_id)
        async with await psycopg.AsyncConnection.connect(database) as admin:
            await admin.execute("SELECT 1 FROM agents WHERE name = 'slow' FOR UPDATE")
            await slow.say(online=False)
            quick.leases = [signals.LeaseReport(task_id=tasks.format_id(task_id), attempt=1, progress=7)]
            quick.finish(20)
            await until_committed(connections, 20)
            async with running(late):
                await until(lambda: hub.gateway.owned == 3 and late.heard > 0, 3.0)
            await until_stored(connections, b"SELECT progress FROM leases", 7)
        await until_stored(connections, b"SELECT online FROM agents WHERE name = 'slow'", False)


async def test_nonsense_of_one_agent_is_dropped_alone(
    connections: pool.Pool, database: str, broker: servers.Mosquitto
) -> None:
    """What PostgreSQL refuses is counted; the reports of others in the same transaction are written."""
    hub = played.Hub(broker, database, connections, "a")
    mad, sane = played.Agent(broker, "mad"), played.Agent(broker, "sane")
    async with running(hub, mad, sane):
        await until(lambda: hub.gateway.owned == 2)
        async with connections.connection() as connection:
            (task_id,) = await stores.submit(connection)
            member = hub.fleet.find(sane.place)
            assert member is not None
            await stores.grant(connection, [task_id], member.agent_id)
        word = tasks.format_id(task_id)
        mad.leases = [signals.LeaseReport(task_id=word, attempt=70_000, progress=1 << 80)]
        await until(lambda: hub.gateway.counts["unreadable"] > 0)
        sane.leases = [signals.LeaseReport(task_id=word, attempt=1, progress=7)]
        await until_stored(connections, b"SELECT progress FROM leases", 7)
        mad.leases = [signals.LeaseReport(task_id="nobody", attempt=1, progress=1)]
        before = hub.gateway.counts["unreadable"]
        await until(lambda: hub.gateway.counts["unreadable"] > before)
        mad.finish(5)
        await until_committed(connections, 5)
