"""Looks for leases that ran out and deadlines that passed, and puts their tasks where they belong."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from cloud_hub import leader, news, settings
from cloud_hub.store import leadership, pool, schedule

log: Final = logging.getLogger(__name__)

LIMIT: Final = 1000
"""Of one transaction; when it is reached the next follows at once."""


class Keeper:
    """Takes back what was not renewed, in the hub that leads."""

    def __init__(self, lead: leader.Leader, told: news.News, policy: settings.Leases) -> None:
        self._lead = lead
        self._news = told
        self._policy = policy
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                while self._lead.leading and await self._look():
                    pass
            except leadership.Deposed as deposed:
                log.info("leases not looked at: %s", deposed)
            except pool.UNAVAILABLE as error:
                log.warning("leases not looked at: PostgreSQL is not available: %s", error)
            await asyncio.sleep(self._policy.look_every_s)

    async def _look(self) -> bool:
        """One look; True if there may be more."""
        full = False
        for what, look in (("lost", schedule.expire), ("expired", schedule.expire_deadlines)):
            async with self._lead.writing() as connection:
                outcome = await look(connection, LIMIT)
            found = len(outcome.ended) + sum(outcome.queued.values())
            if found:
                log.info(
                    "%s: %d queued again, %d ended", what, sum(outcome.queued.values()), len(outcome.ended)
                )
            self.counts[what] += found
            self._news.tell(outcome)
            full = full or found >= LIMIT
        return full
