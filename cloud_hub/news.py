"""What a committed change means for those who wait: one place that tells all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cloud_hub import events, hot
from cloud_hub.store import ends

QUEUED = "queued"
"""Tasks wait: the scheduler has something to place."""
FREED = "freed"
"""Leases ended or an agent has more room: the scheduler may place more."""


class News:
    """Tells clients that wait, the scheduler and the down lanes what has just been committed."""

    def __init__(
        self,
        here: events.Events,
        everywhere: hot.Hot,
        wake_lanes: Callable[[Iterable[int]], frozenset[int]],
    ) -> None:
        """`wake_lanes` is told of agents (ids) whose down lanes have new records, and returns those that
        this hub does not serve: the others are told of them.
        """
        self._here = here
        self._everywhere = everywhere
        self._wake_lanes = wake_lanes

    def tell(self, outcome: ends.Outcome) -> None:
        """After the commit of what `outcome` describes."""
        for end in outcome.ended:
            self._here.publish(events.TaskEnded(end.task_id, end.state, end.reason, end.model))
        for model, count in outcome.queued.items():
            self._here.publish(events.TaskQueued(model, count))
        if outcome.queued:
            self._everywhere.announce(QUEUED)
        if outcome.told:
            elsewhere = self._wake_lanes(outcome.told)
            if elsewhere:
                self._everywhere.announce_lanes(elsewhere)

    def freed(self) -> None:
        """An agent can take more than before. Every hub hears that from the agent itself."""
        self._everywhere.announce_here(FREED)
