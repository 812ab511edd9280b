"""The rollouts that have not ended, as this hub knows them: for which results count.

Asked for each batch of results, so that nothing here asks the database. Where no model is being rolled
out nothing is looked at at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from cloud_hub.store import pool, tallies

log: Final = logging.getLogger(__name__)

EVERY_S: Final = 1.0
"""How often they are read: so late at most another hub's step is seen here."""


class Active:
    """What is to be counted now."""

    def __init__(self, connections: pool.Pool) -> None:
        self._connections = connections
        self.watched: Mapping[str, tallies.Watch] = {}
        """By model; empty where nothing is rolled out."""

    async def run(self) -> None:
        """Read them again and again until cancelled; while PostgreSQL is away, the last ones hold."""
        while True:
            try:
                await self.refresh()
            except pool.UNAVAILABLE as error:
                log.warning("the rollouts are as they were: %s", error)
            await asyncio.sleep(EVERY_S)

    async def refresh(self) -> None:
        """Read them now. Raises pool.UNAVAILABLE."""
        async with self._connections.connection() as connection:
            self.watched = await tallies.watched(connection)
