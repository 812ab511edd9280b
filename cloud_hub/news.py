"""What a committed change means for those who wait: one place that tells all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from cloud_hub import events, hot
from cloud_hub.store import ends

QUEUED = "queued"
"""Tasks wait: the scheduler has something to place."""
FREED = "freed"
"""An agent has come, or has more room than before: the scheduler may place more."""
ENDED = "ended"
"""Leases ended: of use if something waits for room."""


class Lanes(Protocol):
    """The down lanes of the agents that this hub serves. Both return those that it does not serve."""

    def wake(self, agent_ids: Iterable[int]) -> frozenset[int]:
        """These agents (ids) have new records on some lane."""

    def leased(self, numbers: Mapping[int, int]) -> frozenset[int]:
        """These have new records on their lane of leases, up to these numbers."""


class News:
    """Tells clients that wait, the scheduler and the down lanes what has just been committed."""

    def __init__(
        self,
        here: events.Events,
        everywhere: hot.Hot,
        lanes: Lanes,
    ) -> None:
        self._here = here
        self._everywhere = everywhere
        self._lanes = lanes

    def tell(self, outcome: ends.Outcome) -> None:
        """After the commit of what `outcome` describes."""
        for end in outcome.ended:
            self._here.publish(events.TaskEnded(end.task_id, end.state, end.reason, end.model))
        for model, count in outcome.queued.items():
            self._here.publish(events.TaskQueued(model, count))
        if outcome.queued:
            self._everywhere.announce(QUEUED)
        elif outcome.ended:
            self._everywhere.announce(ENDED)
        if outcome.told:
            self._elsewhere(self._lanes.wake(outcome.told))

    def leased(self, numbers: Mapping[int, int]) -> None:
        """After the commit of leases; `numbers`: by agent (id), the last record of its lane of leases."""
        if numbers:
            self._elsewhere(self._lanes.leased(numbers))

    def _elsewhere(self, agent_ids: frozenset[int]) -> None:
        if agent_ids:
            self._everywhere.announce_lanes(agent_ids)

    def freed(self) -> None:
        """An agent can take more than before. Every hub hears that from the agent itself."""
        self._everywhere.announce_here(FREED)
