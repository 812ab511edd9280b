"""Tasks change here, whoever wants it: judged by `verdicts`, written in a handful of statements.

What follows goes with it: the lease, the payload of a completed task, the call to an agent that runs
it in vain, and the word to its origin, if it was handed over and somebody else ended it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_hub.store import arrays, outgoing, pool, sql, verdicts
from shared import tasks, wire
from shared.tasks import State

_SQL: Final = sql.load("ends")


@dataclass(frozen=True, slots=True)
class End:
    """A task that reached a final state."""

    task_id: bytes
    state: tasks.State
    reason: tasks.Reason | None
    model: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did, for those who wait: to be told after the commit."""

    ended: list[End] = field(default_factory=list)
    queued: dict[str, int] = field(default_factory=dict)
    """Tasks that went into the queue, by model."""
    told: frozenset[int] = frozenset()
    """Agents (ids) whose down lanes have new records."""


def merge(outcomes: Iterable[Outcome]) -> Outcome:
    """What several changes of one transaction did together."""
    ended: list[End] = []
    queued: Counter[str] = Counter()
    told: set[int] = set()
    for outcome in outcomes:
        ended += outcome.ended
        queued.update(outcome.queued)
        told |= outcome.told
    return Outcome(ended, dict(queued), frozenset(told))


async def lock(connection: pool.Connection, task_ids: Iterable[bytes]) -> dict[bytes, verdicts.Standing]:
    """The tasks among `task_ids` that the hub knows, as they stand, locked until the transaction ends."""
    wanted = {"task_ids": arrays.ids(task_ids)}
    async with connection.cursor(binary=True) as cursor:
        rows = await (await cursor.execute(_SQL["lock"], wanted)).fetchall()
        leases = {
            task_id: verdicts.Lease(agent_id, attempt)
            for task_id, agent_id, attempt in await (await cursor.execute(_SQL["leases"], wanted)).fetchall()
        }
    origins = await _epochs(connection, {row[-1] for row in rows} - {None})
    return {
        task_id: verdicts.Standing(
            task_id=task_id,
            state=State(state),
            model=model,
            items=items,
            items_done=items_done,
            attempt=attempt,
            failures=failures,
            max_attempts=max_attempts,
            overdue=overdue,
            origin_agent=origin,
            origin_epochs=origins.get(origin, frozenset()),
            lease=leases.get(task_id),
        )
        for task_id, state, model, items, items_done, attempt, failures, max_attempts, overdue, origin in rows
    }


async def settle(
    connection: pool.Connection, changes: Sequence[verdicts.Change], by: int | None = None
) -> Outcome:
    """Write changes of locked tasks and what follows from them; `by` is the agent whose report they are."""
    if not changes:
        return Outcome()
    columns = {
        "task_ids": arrays.ids(change.standing.task_id for change in changes),
        "was": arrays.texts(change.standing.state.value for change in changes),
        "states": arrays.texts(change.state.value for change in changes),
        "reasons": arrays.texts(change.reason and change.reason.value for change in changes),
        "errors": arrays.texts(change.error for change in changes),
        "items_done": arrays.numbers(change.items_done for change in changes),
        "failures": arrays.numbers(change.failures for change in changes),
        "delays": arrays.numbers(change.delay_s for change in changes),
    }
    completed = [change.standing.task_id for change in changes if change.state is State.COMPLETED]
    async with connection.pipeline():
        await connection.execute(_SQL["change"], columns)
        await connection.execute(_SQL["release"], columns)
        if completed:
            await connection.execute(_SQL["drop_payloads"], {"task_ids": arrays.ids(completed)})
    records = [record for change in changes for record in words(change, by)]
    return Outcome(
        ended=[
            End(change.standing.task_id, change.state, change.reason, change.standing.model)
            for change in changes
            if change.state in tasks.FINAL
        ],
        queued=dict(Counter(c.standing.model for c in changes if c.state is State.QUEUED)),
        told=await outgoing.append(connection, records),
    )


async def lose(connection: pool.Connection, standings: Sequence[verdicts.Standing]) -> Outcome:
    """Take the leases of locked tasks back: what their rows show to be done is not run again."""
    many = [standing.task_id for standing in standings if standing.items > 1]
    done: dict[bytes, int] = {}
    if many:
        cursor = await connection.execute(_SQL["checkpoints"], {"task_ids": arrays.ids(many)})
        done = dict(await cursor.fetchall())
    return await settle(
        connection, [verdicts.lost(standing, done.get(standing.task_id, 0)) for standing in standings]
    )


async def record(connection: pool.Connection, agent_id: int, reports: Sequence[verdicts.Report]) -> None:
    """Write down how attempts ended, by their agent's word; of several words about one, the last.

    Before `settle`, which ends the leases that say when they were granted.
    """
    latest = list({(report.task_id, report.attempt): report for report in reports}.values())
    if not latest:
        return
    await connection.execute(
        _SQL["record"],
        {
            "agent_id": agent_id,
            "task_ids": arrays.ids(report.task_id for report in latest),
            "attempts": arrays.numbers(report.attempt for report in latest),
            "states": arrays.texts(report.state.value for report in latest),
            "reasons": arrays.texts(report.reason for report in latest),
            "errors": arrays.texts(report.error for report in latest),
            "items_done": arrays.numbers(report.items_done for report in latest),
            "run_us": arrays.numbers(report.run_us for report in latest),
        },
    )


def words(change: verdicts.Change, by: int | None) -> list[outgoing.Record]:
    """What must be said to agents about a change that agent `by` (None: the hub itself) brought about."""
    standing = change.standing
    if change.state not in tasks.FINAL:
        return []
    records = []
    if standing.lease is not None and standing.lease.agent_id != by:
        records.append(cancel(standing.lease.agent_id, standing.task_id, standing.lease.attempt))
    if standing.origin_agent is not None and by not in standing.origin_epochs:
        records.append(_word_to_origin(standing.origin_agent, change))
    return records


def cancel(agent_id: int, task_id: bytes, attempt: int | None = None) -> outgoing.Record:
    """The command to drop a task."""
    return outgoing.Record(
        agent_id,
        outgoing.COMMANDS,
        wire.COMMANDS,
        task_id=task_id,
        attempt=attempt,
        body={"command": "cancel"},
    )


def _word_to_origin(origin_agent: int, change: verdicts.Change) -> outgoing.Record:
    """All result rows of a completed task, or the one record that says how else it ended."""
    standing = change.standing
    if change.state is State.COMPLETED:
        return outgoing.Record(
            origin_agent,
            outgoing.RESULTS,
            wire.RESULTS,
            size=standing.items,
            task_id=standing.task_id,
            attempt=standing.attempt,
        )
    return outgoing.Record(
        origin_agent,
        outgoing.RESULTS,
        wire.ATTEMPTS,
        task_id=standing.task_id,
        attempt=standing.attempt,
        body={
            "state": change.state.value,
            "reason": change.reason and change.reason.value,
            "error": change.error,
            "retriable": False,
            "items_done": change.items_done,
        },
    )


async def _epochs(connection: pool.Connection, agent_ids: set[int]) -> dict[int, frozenset[int]]:
    """All epochs of the place of each agent."""
    if not agent_ids:
        return {}
    cursor = await connection.execute(_SQL["origins"], {"agent_ids": list(agent_ids)})
    return {agent_id: frozenset(epochs) for agent_id, epochs in await cursor.fetchall()}
