"""Rollouts in the store: begun once a model, stepped from where they stand, their results counted once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pytest

from cloud_hub.rollouts import policy
from cloud_hub.store import apply, blobs, ids, models, pool, rollouts, tallies, targets
from shared import tasks, topics
from shared.rollouts import gates, measures, stages
from tests.integration import stores

EXPOSED = [topics.Agent("lyon", name) for name in ("one", "two")]


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    """A store with three versions of a model."""
    async with stores.fresh(database) as opened:
        async with opened.connection() as connection:
            for version in ("1", "2", "3"):
                draft = await blobs.begin(connection)
                await blobs.complete(connection, draft, version * 64, 0)
                await models.add(connection, "faces", version, version * 64, "", None)
        yield opened


def plan(version: str = "2", **said: Any) -> rollouts.Plan:
    fields: dict[str, Any] = {
        "model": "faces",
        "version": version,
        "selector": "",
        "stages": stages.parse_all("5%,100%"),
        "gates": gates.DEFAULT,
        "min_results": 10,
        "soak_s": 0.0,
        "patience_s": None,
        "on_fail": policy.OnFail.ROLL_BACK,
        **said,
    }
    return rollouts.Plan(**fields)


async def started(connection: pool.Connection, **said: Any) -> rollouts.Rollout:
    return await standing(connection, await rollouts.start(connection, plan(**said)))


async def standing(connection: pool.Connection, rollout_id: bytes) -> rollouts.Rollout:
    found = await rollouts.find(connection, rollout_id)
    assert found is not None
    return found


async def kinds(connection: pool.Connection, rollout_id: bytes) -> list[str]:
    return [event.kind.value for event in (await rollouts.events(connection, [rollout_id]))[rollout_id]]


async def test_a_rollout_is_read_back_as_it_was_planned(connections: pool.Pool) -> None:
    """Stages, gates and numbers come back as they were given, with the version that it goes from."""
    wanted = plan(
        "2",
        selector="site=lyon",
        stages=stages.parse_all("internal,25%/shadow:50%,tag:group=beta,100%"),
        patience_s=60.0,
        on_fail=policy.OnFail.PAUSE,
    )
    async with connections.connection() as connection:
        rollout_id = await rollouts.start(connection, wanted)
        found = await standing(connection, rollout_id)
        assert (found.plan, found.compared) == (wanted, {})
        assert (found.state, found.stage, found.ended_at) == (rollouts.State.RUNNING, 0, None)
        assert await rollouts.active(connection) == [found]
        assert await kinds(connection, rollout_id) == ["started"]


async def test_a_model_has_one_rollout_at_a_time(connections: pool.Pool) -> None:
    """Of two that begin at one moment one does, whatever their selectors; when it has ended another may."""

    async def begin(version: str, selector: str) -> bytes | None:
        try:
            async with connections.connection() as connection, connection.transaction():
                return await rollouts.start(connection, plan(version, selector=selector))
        except rollouts.Underway:
            return None

    begun = await asyncio.gather(begin("2", ""), begin("3", "site=lyon"))
    (first,) = [rollout_id for rollout_id in begun if rollout_id is not None]
    async with connections.connection() as connection:
        found = await standing(connection, first)
        await rollouts.take(connection, found, rollouts.Kind.ROLLED_BACK, rollouts.By.OPERATOR, "no")
    assert await begin("3", "") is not None


async def test_a_version_that_nobody_pushed_cannot_be_rolled_out(connections: pool.Pool) -> None:
    """Neither a version nor a model that the hub does not have."""
    for wanted in (plan("9"), plan("1", model="ocr")):
        async with connections.connection() as connection:
            with pytest.raises(targets.UnknownVersion):
                async with connection.transaction():
                    await rollouts.start(connection, wanted)


async def test_what_is_rolled_out_stays_until_the_rollout_has_ended(connections: pool.Pool) -> None:
    """The new version cannot be removed meanwhile, and can be afterwards, whatever the history names."""
    async with connections.connection() as connection:
        found = await started(connection)
        with pytest.raises(models.Targeted):
            async with connection.transaction():
                await models.remove(connection, "faces", "2")
        await rollouts.take(connection, found, rollouts.Kind.ROLLED_BACK, rollouts.By.OPERATOR, "no")
        assert await models.remove(connection, "faces", "2")
        assert (await standing(connection, found.rollout_id)).plan.version == "2"


async def test_completing_moves_the_target_in_the_same_transaction(connections: pool.Pool) -> None:
    """Either the target says the new version and the rollout has ended, or neither."""
    async with connections.connection() as connection:
        await targets.put(connection, "faces", "", "1")
        found = await started(connection)
        await rollouts.take(
            connection,
            found,
            rollouts.Kind.PROMOTED,
            rollouts.By.POLICY,
            "well",
            compared={"lyon/one": rollouts.Said(3, 2)},
        )
        found = await standing(connection, found.rollout_id)
        assert (found.stage, found.compared) == (1, {"lyon/one": rollouts.Said(3, 2)})
    async with connections.connection() as connection:
        async with connection.transaction(force_rollback=True):
            await rollouts.take(connection, found, rollouts.Kind.COMPLETED, rollouts.By.POLICY, "done")
        assert await standing(connection, found.rollout_id) == found
        assert [one.version for one in await targets.every(connection, "faces")] == ["1"]
        await rollouts.take(connection, found, rollouts.Kind.COMPLETED, rollouts.By.POLICY, "done")
        assert [one.version for one in await targets.every(connection, "faces")] == ["2"]
        ended = await standing(connection, found.rollout_id)
        assert (ended.state, ended.reason) == (rollouts.State.COMPLETED, "done")
        assert ended.ended_at is not None
        assert await rollouts.active(connection) == []
        assert await kinds(connection, found.rollout_id) == ["started", "promoted", "completed"]


async def test_who_decided_on_what_has_passed_is_told_so(connections: pool.Pool) -> None:
    """A step is taken from the state and stage that it was decided for, or not at all."""
    async with connections.connection() as connection:
        seen = await started(connection)
        await rollouts.take(connection, seen, rollouts.Kind.PAUSED, rollouts.By.OPERATOR, "wait")
        for kind in (rollouts.Kind.PROMOTED, rollouts.Kind.ROLLED_BACK):
            with pytest.raises(rollouts.Moved):
                await rollouts.take(connection, seen, kind, rollouts.By.POLICY, "late")
        paused = await standing(connection, seen.rollout_id)
        assert (paused.state, paused.stage, paused.reason) == (rollouts.State.PAUSED, 0, "wait")
        await rollouts.take(connection, paused, rollouts.Kind.RESUMED, rollouts.By.OPERATOR, "")
        resumed = await standing(connection, seen.rollout_id)
        assert resumed.stage_since >= paused.stage_since
        assert await kinds(connection, seen.rollout_id) == ["started", "paused", "resumed"]


# Tallies


async def counted(connection: pool.Connection, rollout_id: bytes) -> dict[tuple[int, str, str], Any]:
    """By stage, agent and version."""
    query = b"""
        SELECT t.stage, a.name, t.version, t.items, t.failed, t.run_us, t.labels
        FROM rollout_tallies t JOIN agents a USING (agent_id) WHERE t.rollout_id = %s
    """
    cursor = await connection.execute(query, (ids.Id(rollout_id),))
    fields = ("items", "failed", "run_us", "labels")
    return {
        (stage, name, version): measures.Measures(**dict(zip(fields, counts, strict=True)))
        for stage, name, version, *counts in await cursor.fetchall()
    }


def rows(count: int, version: str, **columns: Any) -> pa.RecordBatch:
    """Results of tasks of their own."""
    fields = {"label": "good", "run_us": 1000, "version": version, **columns}
    return (
        pa.Table.from_batches([stores.rows(tasks.new_id(), **fields) for _ in range(count)])
        .combine_chunks()
        .to_batches()[0]
    )


async def test_results_count_for_the_rollout_of_their_model(connections: pool.Pool) -> None:
    """By version, with failures, run times and labels; nothing else, and nothing that never ran."""
    async with connections.connection() as connection:
        await targets.put(connection, "faces", "", "1")
        found = await started(connection)
        watched = await tallies.watched(connection)
        agent_id = await stores.agent(connection)
        for batch in (
            rows(3, "2"),
            rows(2, "2", label=None, run_us=2_000_000),
            rows(1, "2", outcome="failed", label=None),
            rows(1, "2", outcome="expired", label=None, run_us=None),
            rows(1, "2", outcome="cancelled", label=None, run_us=None),
            rows(4, "1", label="bad\0"),
            rows(5, "3"),
            rows(5, "2", model="ocr"),
        ):
            await apply.results(connection, agent_id, batch, watched)
        by_version = {key[2]: one for key, one in (await counted(connection, found.rollout_id)).items()}
        new, old = by_version["2"], by_version["1"]
        assert set(by_version) == {"1", "2"}
        assert (new.items, new.failed, new.labels) == (6, 1, {"good": 3, measures.UNLABELLED: 2})
        assert (new.run_us[measures.bucket(1000)], new.run_us[measures.bucket(2_000_000)]) == (3, 2)
        assert (old.items, old.failed, old.labels) == (4, 0, {"bad\N{REPLACEMENT CHARACTER}": 4})


async def test_each_result_counts_once(connections: pool.Pool) -> None:
    """Rows that come again, alone or among new ones, and rows of a transaction that fails, do not count."""
    async with connections.connection() as connection:
        found = await started(connection)
        agent_id = await stores.agent(connection)
        other_id = await stores.agent(connection, "two")
    watched = await tallies.watched(connection)
    first, more = rows(5, "2"), rows(3, "2")
    both = pa.Table.from_batches([first, more]).combine_chunks().to_batches()[0]
    async with connections.connection() as connection, connection.transaction(force_rollback=True):
        await apply.results(connection, agent_id, both, watched)
    for sender, batch in ((agent_id, first), (agent_id, first), (other_id, first), (agent_id, both)):
        async with connections.connection() as connection:
            await apply.results(connection, sender, batch, watched)
    async with connections.connection() as connection:
        (one,) = (await counted(connection, found.rollout_id)).values()
        assert (one.items, sum(one.run_us), one.labels) == (8, 8, {"good": 8})


async def test_what_is_counted_at_once_adds_up(connections: pool.Pool) -> None:
    """Two hubs that apply batches of one agent at one moment, by two lanes, lose nothing of each other's."""
    async with connections.connection() as connection:
        found = await started(connection)
        agent_id = await stores.agent(connection)
    watched = await tallies.watched(connection)

    async def send() -> None:
        for _ in range(5):
            async with connections.connection() as connection:
                await apply.results(connection, agent_id, rows(2, "2"), watched)

    await asyncio.gather(*(send() for _ in range(4)))
    async with connections.connection() as connection:
        (one,) = (await counted(connection, found.rollout_id)).values()
        assert one.items == 40


async def test_an_agent_that_begins_anew_keeps_what_it_counted(connections: pool.Pool) -> None:
    """Counts are read by place: a pod with an empty disk goes on under its name."""
    async with connections.connection() as connection:
        found = await started(connection)
        watched = await tallies.watched(connection)
        for epoch in (1, 2):
            agent_id = await stores.agent(connection, epoch=epoch)
            await apply.results(connection, agent_id, rows(2, "2"), watched)
        sides = await tallies.sides(connection, found, EXPOSED)
        assert (sides.new.items, sides.results) == (4, {"lyon/one": 4})


async def test_the_baseline_is_what_the_old_version_did_lately(connections: pool.Pool) -> None:
    """Recent results of the old version count as the stage before the first, by agent; no others do."""
    async with connections.connection() as connection:
        await targets.put(connection, "faces", "", "1")
        one, two = [await stores.agent(connection, name) for name in ("one", "two")]
        for agent_id, batch in (
            (one, rows(3, "1")),
            (two, rows(2, "1", outcome="failed")),
            (two, rows(2, "3")),
            (two, rows(2, "1", model="ocr")),
            (one, stores.rows(bytes(16), version="1")),  # of 1970
        ):
            await apply.results(connection, agent_id, batch)
        found = await started(connection)
        await tallies.baseline(connection, found)
        found_counts = await counted(connection, found.rollout_id)
        assert {key: (one.items, one.failed) for key, one in found_counts.items()} == {
            (tallies.BASELINE, "one", "1"): (3, 0),
            (tallies.BASELINE, "two", "1"): (2, 2),
        }


async def test_columns_are_measured_as_rows_would_be(connections: pool.Pool) -> None:
    """What Arrow counts of a batch is what `Measures.add` counts of its rows, bucket by bucket."""
    run_us = [0, 1, 2, 3, 999, 1000, 1080, 123_456_789, 10**12, None]
    labels = ["a", "b", None, "a", "x" * 300, "a", None, "b", "c", "a"]
    outcomes = ["ok"] * 8 + ["ok", "failed"]
    batch = pa.RecordBatch.from_pydict({"run_us": run_us, "label": labels, "outcome": outcomes})
    expected = measures.Measures()
    for took, label, outcome in zip(run_us, labels, outcomes, strict=True):
        expected.add(took or 0, label and label[: tallies.LABEL_CHARACTERS], failed=outcome == "failed")
    assert tallies.measure(batch) == expected


async def test_both_sides_are_of_the_same_agents(connections: pool.Pool) -> None:
    """The new version counts by its stage, the old one in all of them where the new one has results."""
    async with connections.connection() as connection:
        await targets.put(connection, "faces", "", "1")
        one, two = [await stores.agent(connection, name) for name in ("one", "two")]
        await apply.results(connection, one, rows(5, "1", label="early", run_us=4000))
        found = await started(connection)
        await tallies.baseline(connection, found)

        async def send(agent_id: int, batch: pa.RecordBatch) -> None:
            await apply.results(connection, agent_id, batch, await tallies.watched(connection))

        await send(two, rows(7, "2"))
        await send(one, rows(2, "1"))
        await rollouts.take(connection, found, rollouts.Kind.PROMOTED, rollouts.By.POLICY, "well")
        found = await standing(connection, found.rollout_id)
        empty = await tallies.sides(connection, found, EXPOSED)
        assert (empty.new.items, empty.old.items, empty.results) == (0, 0, {"lyon/two": 7})
        await send(one, rows(3, "2", label=None))
        await send(one, rows(1, "2", outcome="failed"))
        await send(two, rows(9, "1"))
        sides = await tallies.sides(connection, found, EXPOSED)
    assert (sides.new.items, sides.new.failed, sides.new.labels) == (4, 1, {measures.UNLABELLED: 3})
    assert (sides.old.items, sides.old.labels) == (7, {"early": 5, "good": 2})
    assert sides.old.run_us[measures.bucket(4000)] == 5
    assert sides.results == {"lyon/one": 4, "lyon/two": 7}


async def test_only_agents_that_are_exposed_are_judged_by(connections: pool.Pool) -> None:
    """Another may serve the new version by a target of its own, and have what it did counted beside."""
    async with connections.connection() as connection:
        await targets.put(connection, "faces", "", "1")
        found = await started(connection)
        for name in ("one", "two"):
            agent_id = await stores.agent(connection, name)
            watched = await tallies.watched(connection)
            await apply.results(connection, agent_id, rows(4, "1"), watched)
            await apply.results(connection, agent_id, rows(3, "2", label="other"), watched)
        one = await tallies.sides(connection, found, EXPOSED[:1])
        none = await tallies.sides(connection, found, [])
    assert (one.new.items, one.new.labels, one.old.items) == (3, {"other": 3}, 4)
    assert (none.new.items, none.old.items, none.results) == (0, 0, one.results)


async def test_what_was_counted_for_a_rollout_goes_with_it(connections: pool.Pool) -> None:
    """Its steps keep the evidence; what is counted for one that goes on stays."""
    async with connections.connection() as connection:
        found = await started(connection)
        agent_id = await stores.agent(connection)
        await apply.results(connection, agent_id, rows(3, "2"), await tallies.watched(connection))
        assert await tallies.clear(connection) == 0
        await rollouts.take(connection, found, rollouts.Kind.ROLLED_BACK, rollouts.By.OPERATOR, "no")
        assert await tallies.clear(connection) == 1
        assert not await counted(connection, found.rollout_id)


async def test_what_was_compared_is_there_for_who_asks_for_it(connections: pool.Pool) -> None:
    """In a large fleet it is much, and those who ask every second have no use for it."""
    async with connections.connection() as connection:
        found = await started(connection)
        seen = {"lyon/one": rollouts.Said(7, 6, 5, 1)}
        await rollouts.take(
            connection, found, rollouts.Kind.PROMOTED, rollouts.By.POLICY, "well", compared=seen
        )
        (whole,) = await rollouts.active(connection)
        (rest,) = await rollouts.active(connection, whole=False)
        assert (whole.compared, rest.compared) == (seen, {})
        assert rest == dataclasses.replace(whole, compared={})
