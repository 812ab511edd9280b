"""The executors as the scheduler knows them from pass to pass: of a large fleet only what changed is told."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from cloud_hub import fleet
from cloud_hub.scheduler import placement, snapshot
from shared import signals


class _Known(NamedTuple):
    """What the index was last told of an agent."""

    telemetry: signals.Telemetry
    held: int


class Readiness:
    """Keeps an index for placement in step with the fleet."""

    def __init__(self, members: fleet.Fleet, rules: snapshot.Rules) -> None:
        self.index: Final = placement.Fleet(rules=rules)
        self._members = members
        self._known: dict[int, _Known] = {}

    @property
    def agent_ids(self) -> Collection[int]:
        """The agents that may be given work."""
        return self._known.keys()

    def refresh(self, outstanding: Mapping[int, int], given: Iterable[int] = ()) -> None:
        """Tell the index what is new; `outstanding`: leases that each agent holds.

        `given`: agents that a plan gave something, which may have come to nothing.
        """
        now = time.monotonic()
        doubtful = set(given)
        left = self._known.keys() - {member.agent_id for member in self._members}
        for member in self._members:
            told, known = member.telemetry, self._known.get(member.agent_id)
            held = outstanding.get(member.agent_id, 0)
            if told is None or member.draining or not self._members.alive(member, now):
                if known is not None:
                    left.add(member.agent_id)
                continue
            if known is None or known.telemetry is not told:
                self.index.put(_executor(member, told, held))
            elif known.held != held or member.agent_id in doubtful:
                self.index.credit(member.agent_id, told.capacity - held)
            else:
                continue
            self._known[member.agent_id] = _Known(told, held)
        for agent_id in left:
            del self._known[agent_id]
            self.index.remove(agent_id)


def _executor(member: fleet.Member, told: signals.Telemetry, held: int) -> snapshot.Executor:
    return snapshot.Executor(
        agent_id=member.agent_id,
        site=member.agent.site,
        labels=told.labels | {"site": member.agent.site, "agent": member.agent.name},
        credits=told.capacity - held,
        models={(model.name, model.version): model.items_per_s for model in told.models},
        predicted_wait_s=told.predicted_wait_s,
        bytes_per_s=told.down_bytes_per_s,
    )
