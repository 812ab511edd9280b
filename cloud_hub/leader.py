"""Which hub decides: one at a time.

    lock in Redis (or, without it, a leader that PostgreSQL has not seen for a while)  -> may lead
    token in PostgreSQL, newer than all before it                                     -> leads
    every write of the leader checks that token                                       -> cannot lead in error

The lock only says whose turn it is. That nobody writes out of turn is kept by the token: a leader that
was paused, cut off or outlived finds a newer one and stops. So Redis may be emptied or go away at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from cloud_hub import hot, settings
from cloud_hub.store import leadership, pool

log: Final = logging.getLogger(__name__)

LOCK: Final = "leader"
LOOKS: Final = 3
"""A leader shows itself so often within the time after which it counts as gone."""


class Leader:
    """This hub's part in deciding who leads."""

    def __init__(
        self,
        connections: pool.Pool,
        everywhere: hot.Hot,
        hub_id: str,
        policy: settings.Leader,
        on_lead: Callable[[str], None],
    ) -> None:
        """`on_lead` is told when this hub has taken the lead, with the clocks that the last one left."""
        self._connections = connections
        self._hot = everywhere
        self._hub_id = hub_id
        self._policy = policy
        self._on_lead = on_lead
        self._token: int | None = None
        self._look = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @property
    def leading(self) -> bool:
        return self._token is not None

    async def run(self) -> None:
        """Lead whenever it is our turn, until cancelled; then let the next one lead at once."""
        try:
            while True:
                try:
                    await self._consider()
                except pool.UNAVAILABLE as error:
                    log.warning("who leads is not known: PostgreSQL is not available: %s", error)
                    await self._hot.unlock(LOCK, self._hub_id)  # another hub may still reach it
                self._look.clear()
                try:
                    async with asyncio.timeout(self._policy.ttl_s / LOOKS):
                        await self._look.wait()
                except TimeoutError:
                    pass
        finally:
            await self._leave()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[pool.Connection]:
        """A transaction that only the leader can commit.

        Raises Deposed if this hub does not lead, or no longer.
        """
        if self._token is None:
            raise leadership.Deposed("this hub does not lead")
        try:
            async with self._connections.connection() as connection, connection.transaction():
                await leadership.hold(connection, self._token)
                yield connection
        except leadership.Deposed as deposed:
            self._step_down(str(deposed))
            raise

    @asynccontextmanager
    async def deciding(self) -> AsyncIterator[tuple[pool.Connection, int]]:
        """A connection for single statements which check the token themselves, and the token.

        Raises Deposed if this hub does not lead, or no longer.
        """
        if self._token is None:
            raise leadership.Deposed("this hub does not lead")
        try:
            async with pool.statement(self._connections) as connection:
                yield connection, self._token
        except leadership.Deposed as deposed:
            self._step_down(str(deposed))
            raise

    async def _consider(self) -> None:
        ours = await self._hot.lock(LOCK, self._hub_id, self._policy.ttl_s)
        async with self._connections.connection() as connection:
            if ours is None:
                ours = await leadership.vacant(connection, self._hub_id, self._policy.ttl_s)
            if not ours:
                self._step_down("another hub holds the lock")
            elif self._token is None:
                lead = await leadership.take(connection, self._hub_id)
                self._token = lead.token
                self.counts["taken"] += 1
                log.info("this hub leads, token %d", lead.token)
                self._on_lead(lead.fair)
            else:
                try:
                    await leadership.hold(connection, self._token)
                except leadership.Deposed as deposed:
                    self._step_down(str(deposed))

    def _step_down(self, why: str) -> None:
        if self._token is not None:
            log.warning("this hub leads no more: %s", why)
            self.counts["lost"] += 1
            self._token = None
            self._look.set()

    async def _leave(self) -> None:
        token, self._token = self._token, None
        if token is None:
            return
        try:
            async with asyncio.timeout(self._policy.ttl_s), self._connections.connection() as connection:
                await leadership.leave(connection, token)
            await self._hot.unlock(LOCK, self._hub_id)
        except TimeoutError:
            log.info("the lead was not given back in time: the next hub waits for it")
        except pool.UNAVAILABLE as error:
            log.info("the lead was not given back, the next hub waits for it: %s", error)
