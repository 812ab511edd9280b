"""The agents as they are now: who is there, what each can run, how much more it would take.

Fed by presence and telemetry, asked by the scheduler and the dashboard. It is a picture, not a record:
after a restart it fills within one heartbeat, and nothing durable depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from shared import signals, tasks, topics


@dataclass(slots=True)
class Member:
    """One agent of the fleet."""

    agent_id: int
    agent: topics.Agent
    epoch: int
    online: bool
    """What its presence says; a broker may be late with a will, so look at `heard` too."""
    heard: float
    """When it last said anything (s, monotonic)."""
    telemetry: signals.Telemetry | None = None
    sequence: int = 0
    """Of the newest telemetry since the agent's birth, which begins to count anew."""
    draining: bool = False


class Fleet:
    """The current epoch of every agent that was heard of since the hub started."""

    def __init__(self, silent_after_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._members: dict[topics.Agent, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def find(self, agent: topics.Agent) -> Member | None:
        return self._members.get(agent)

    def join(self, member: Member) -> None:
        """A new agent, or a new epoch of one."""
        self._members[member.agent] = member

    def heard(self, member: Member, telemetry: signals.Telemetry | None = None) -> bool:
        """Something came from `member`; True if its telemetry is news."""
        member.heard = time.monotonic()
        if telemetry is None:
            return False
        if 1 < telemetry.sequence <= member.sequence:
            return False  # an older one that came late
        member.telemetry, member.sequence = telemetry, telemetry.sequence
        return True

    def born(self, member: Member) -> None:
        """The agent says that it is there: it may have started again, and count its heartbeats from 1."""
        member.online = True
        member.sequence = 0
        self.heard(member)

    def alive(self, member: Member, now: float | None = None) -> bool:
        """Present by its word, and heard of lately; `now`: monotonic, for who asks of many."""
        now = time.monotonic() if now is None else now
        return member.online and now - member.heard < self._silent_after_s

    def drain(self, agent_ids: Collection[int]) -> None:
        """These agents get no new work, all others do."""
        for member in self._members.values():
            member.draining = member.agent_id in agent_ids

    def progress(self) -> dict[tuple[bytes, int], float]:
        """Of the leases that agents reported, (task id, attempt): seconds of work since the last item."""
        return {
            (tasks.parse_id(lease.task_id), lease.attempt): lease.running_s
            for member in self._members.values()
            if member.telemetry is not None
            for lease in member.telemetry.leases
        }
