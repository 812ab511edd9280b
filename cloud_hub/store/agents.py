"""Who is there: an agent is a place (site and name) and a boot epoch; the newest epoch is the current one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cloud_hub.store import pool
from shared import signals, topics


@dataclass(frozen=True, slots=True)
class Seen:
    """What `seen` found."""

    agent_id: int
    is_new: bool
    """The first sight of this epoch."""
    is_current: bool
    """No newer epoch of the same place is known."""
    told: frozenset[int] = frozenset()
    """Agents whose down lanes have new records: this one, if words for an older epoch were re-addressed."""


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

    A new epoch succeeds the older ones: their leases go back into the queue, and words to them about
    tasks they handed over are re-addressed to it. `draining` is a property of the place and goes on.
    """
    raise NotImplementedError


async def set_presence(connection: pool.Connection, agent_id: int, online: bool, software: str = "") -> None:
    """What the agent's birth or will says."""
    raise NotImplementedError


async def save_telemetry(connection: pool.Connection, reports: Mapping[int, signals.Telemetry]) -> None:
    """The latest report of each agent (by id); one statement, however many."""
    raise NotImplementedError


async def fleet(connection: pool.Connection) -> list[Agent]:
    """The current epoch of every agent, by site and name."""
    raise NotImplementedError


async def find(connection: pool.Connection, place: topics.Agent) -> Agent | None:
    """The current epoch of one agent."""
    raise NotImplementedError


async def set_draining(connection: pool.Connection, place: topics.Agent, draining: bool) -> bool:
    """Whether the agent is given new work; False if there is no such agent."""
    raise NotImplementedError
