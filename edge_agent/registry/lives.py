"""How often in a row the agent has died while it tried a version: it may be the version that kills it.

What dies with the agent leaves no result to judge a version by. So each start with a trial is noted, until it
was seen to be a life of some length, or ended in a stop.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from edge_agent.registry import shelf

log: Final = logging.getLogger(__name__)

DEATHS: Final = 3
"""After so many in a row a version is left."""
ALIVE_S: Final = 600.0
"""An agent that lives so long does not die of what it tries."""


class Lives:
    """The lives of an agent with its trials. Every method blocks."""

    def __init__(self, notes: shelf.Shelf) -> None:
        self._notes = notes

    def begin(self, rollouts: Collection[str]) -> dict[str, str]:
        """A life with these begins; those that are better left, and why."""
        before = self._notes.starts()
        self._note({rollout: before.get(rollout, 0) + 1 for rollout in rollouts})
        return {
            rollout: f"the agent died {deaths} times in a row while it was tried"
            for rollout in rollouts
            if (deaths := before.get(rollout, 0)) >= DEATHS
        }

    def go_on(self) -> None:
        """This life is none that ends in a death, or it does not matter any more."""
        if self._notes.starts():
            self._note({})

    def _note(self, starts: dict[str, int]) -> None:
        try:
            if starts != self._notes.starts():
                self._notes.start(starts)
        except OSError as error:
            log.error("how often the agent has begun with its trials cannot be kept: %s", error)
