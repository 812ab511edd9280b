"""Who is there: an agent is a place (site and name) and a boot epoch; the newest epoch is the current one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from cloud_hub.store import ends, outgoing, pool, sql
from shared import lanes, signals, topics, wire

_SQL: Final = sql.load("agents")
_TELEMETRY: Final = msgspec.json.Decoder(signals.Telemetry)


@dataclass(frozen=True, slots=True)
class Seen:
    """What `seen` found."""

    agent_id: int
    is_new: bool
    """The first sight of this epoch."""
    is_current: bool
    """No newer epoch of the same place is known."""
    outcome: ends.Outcome = field(default_factory=ends.Outcome)
    """What the succession of an older epoch did."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One epoch of an agent."""

    agent_id: int
    place: topics.Agent
    epoch: int
    online: bool
    draining: bool
    software: str
    first_seen: datetime
    last_seen: datetime
    telemetry: signals.Telemetry | None


async def seen(
    connection: pool.Connection, place: topics.Agent, epoch: int, *, online: bool = True, software: str = ""
) -> Seen:
    """Note that an agent of `place` with `epoch` gave a sign of life.

    A new epoch succeeds the older ones: their leases are lost, and words to them about tasks that they
    handed over are re-addressed to it. `draining` is a property of the place and goes on.
    """
    cursor = await connection.execute(
        _SQL["seen"],
        {"site": place.site, "name": place.name, "epoch": epoch, "online": online, "software": software},
    )
    row = await cursor.fetchone()
    assert row is not None
    agent_id, is_new = row
    cursor = await connection.execute(_SQL["epochs"], {"site": place.site, "name": place.name})
    *older, newest = [epoch_id for (epoch_id,) in await cursor.fetchall()]
    outcome = ends.Outcome()
    if is_new and older:
        outcome = await _succeed(connection, place, older, agent_id)
    return Seen(agent_id, is_new, is_current=agent_id == newest, outcome=outcome)


async def _succeed(
    connection: pool.Connection, place: topics.Agent, older: list[int], heir: int
) -> ends.Outcome:
    """Take over from older epochs: what they run is lost, what they are to be told is told to the heir."""
    them = {"agent_ids": older}
    await connection.execute(_SQL["retire"], them)
    cursor = await connection.execute(_SQL["leased"], them)
    standings = await ends.lock(connection, [task_id for (task_id,) in await cursor.fetchall()])
    lost = [s for s in standings.values() if s.lease is not None and s.lease.agent_id in older]
    outcome = await ends.lose(connection, lost)
    await connection.execute(
        _SQL["succeed"], {"class": outgoing.PLACES, "site": place.site, "name": place.name}
    )
    cursor = await connection.execute(_SQL["take_undelivered"], them)
    words = [
        outgoing.Record(
            heir,
            outgoing.RESULTS,
            wire.KINDS[kind],
            size=size,
            task_id=task_id,
            attempt=attempt,
            body=body and msgspec.json.decode(body),
        )
        for lane, size, kind, task_id, attempt, body in await cursor.fetchall()
        if lanes.Lane.parse(lane).name == outgoing.RESULTS.name
    ]
    told = await outgoing.append(connection, words)
    return replace(outcome, told=outcome.told | told)


async def set_presence(connection: pool.Connection, agent_id: int, online: bool, software: str = "") -> None:
    """What the agent's birth or will says."""
    await connection.execute(
        _SQL["set_presence"], {"agent_id": agent_id, "online": online, "software": software}
    )


async def save_telemetry(connection: pool.Connection, reports: Mapping[int, signals.Telemetry]) -> None:
    """The latest report of each agent (by id); one statement, however many."""
    agent_ids = sorted(reports)
    texts = [signals.encode(reports[agent_id]).decode() for agent_id in agent_ids]
    await connection.execute(_SQL["save_telemetry"], {"agent_ids": agent_ids, "telemetry": texts})


async def fleet(connection: pool.Connection) -> list[Agent]:
    """The current epoch of every agent, by site and name."""
    cursor = await connection.execute(_SQL["fleet"], {"site": None, "name": None})
    return [_agent(row) for row in await cursor.fetchall()]


async def find(connection: pool.Connection, place: topics.Agent) -> Agent | None:
    """The current epoch of one agent."""
    cursor = await connection.execute(_SQL["fleet"], {"site": place.site, "name": place.name})
    row = await cursor.fetchone()
    return None if row is None else _agent(row)


async def draining(connection: pool.Connection) -> frozenset[int]:
    """The agents (ids) that are given no new work."""
    return frozenset(
        agent_id for (agent_id,) in await (await connection.execute(_SQL["draining"])).fetchall()
    )


async def set_draining(connection: pool.Connection, place: topics.Agent, draining: bool) -> bool:
    """Whether the agent is given new work; False if there is no such agent."""
    cursor = await connection.execute(
        _SQL["set_draining"], {"site": place.site, "name": place.name, "draining": draining}
    )
    return cursor.rowcount > 0


def _agent(row: tuple[Any, ...]) -> Agent:
    agent_id, site, name, epoch, online, draining, software, first_seen, last_seen, telemetry = row
    return Agent(
        agent_id=agent_id,
        place=topics.Agent(site, name),
        epoch=epoch,
        online=online,
        draining=draining,
        software=software,
        first_seen=first_seen,
        last_seen=last_seen,
        telemetry=None if telemetry is None else _TELEMETRY.decode(telemetry),
    )
