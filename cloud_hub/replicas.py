"""The hubs that share one database, and which of them serves which agent.

Each hub says once a second in the table `hubs` that it is alive, and learns there who else is. From
that picture alone each one computes whose agents are whose (`owner`): there is no coordinator, and no
hub asks another.

Two pictures may differ for a second: when a hub comes, goes, or wakes up after it was given up. Then
two hubs serve one agent, or none does, and neither does harm:

- Up: both get a batch, and both apply it in a transaction that holds the row of its lane's cursor. Who
  comes second finds the cursor moved, knows the batch by its numbers, and acknowledges it again.
- Down: the agent gets a record from both and knows the second by its number. Who finds that the other
  has had records acknowledged begins again with what the store says (`channel.Overtaken`).
- By nobody: the agent sends again from the cursor that its next hub tells it; its leases are renewed
  by its next heartbeat, well within their time.

A hub that is missed may have been stopped in the middle of a transaction, with locks that its successors
wait for. So whoever misses it ends its sessions; if it lives, it begins anew what it had not committed.

So owning an agent is a division of work and not a lock, and nothing waits for agreement.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection
from typing import Final

from cloud_hub.store import hubs, pool
from shared import backoff, topics

log: Final = logging.getLogger(__name__)

BEAT_S: Final = 1.0
TIMEOUT_S: Final = 3.0
"""A beat that takes longer is given up, with its connection."""
LEAVE_S: Final = 1.0
"""How long the goodbye may take."""

_AWAY: Final[tuple[type[Exception], ...]] = (TimeoutError, *pool.UNAVAILABLE)


def hub_id(host: str, port: int) -> str:
    """An id for a hub that starts at this place, unlike that of any that was there before."""
    return f"{host}:{port}/{secrets.token_hex(4)}"


def owner(agent: topics.Agent, live: Collection[str]) -> str:
    """The hub that serves `agent`, of those that are alive: the one with the highest hash of both.

    When a hub goes, only its agents move, evenly to all others; when one comes, only those that it gets
    (rendezvous hashing: Thaler and Ravishankar, 1996). ValueError if nobody is alive.
    """
    return max(live, key=lambda hub: (_weight(hub, agent), hub))


def _weight(hub: str, agent: topics.Agent) -> bytes:
    return hashlib.blake2b(f"{hub}\0{agent}".encode(), digest_size=8).digest()


class Replicas:
    """This hub among its like."""

    def __init__(self, hub_id: str, dsn: str) -> None:
        """`dsn`: of the database. A connection of its own, so that a hub whose pool is busy for a while is
        not taken for dead, just when it has the most to do.
        """
        self.hub_id = hub_id
        self.live: frozenset[str] = frozenset()
        """The hubs that are alive, as last seen; none before the first look. While PostgreSQL is away it
        stays as it was: nobody else could do anything for the agents either."""
        self._dsn = dsn
        self._watchers: list[Callable[[], None]] = []
        self._missed: frozenset[str] = frozenset()
        """Hubs that went, and whose sessions are to be ended unless they come back."""
        self._heard = self._back = -math.inf
        """When we last beat, and when we last did so after a pause of our own (s, monotonic)."""

    @property
    def alone(self) -> bool:
        """No other hub is known to be alive."""
        return self.live <= {self.hub_id}

    def owns(self, agent: topics.Agent) -> bool:
        """Whether `agent` is ours to serve."""
        return bool(self.live) and owner(agent, self.live) == self.hub_id

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have `watcher` called, in the loop, whenever a hub has come or gone. It must not block."""
        self._watchers.append(watcher)

    async def run(self) -> None:
        """Say that we are alive, and look who else is, until cancelled; then say that we go."""
        pause = backoff.Backoff(base_s=0.1, cap_s=BEAT_S)
        begun = False
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    connection = await pool.connect(self._dsn, hubs.session(self.hub_id))
                async with connection:
                    await connection.set_autocommit(True)
                    if not begun:  # before the first beat: an earlier run's share is ours at once
                        await hubs.succeed(connection, self.hub_id, self.hub_id.rpartition("/")[0] + "/")
                        begun = True
                    await self._beat(connection)
            except _AWAY as error:
                log.warning("which hubs are alive is not known, taking it to be as before: %s", error)
            await asyncio.sleep(pause.next())

    async def _beat(self, connection: pool.Connection) -> None:
        try:
            while True:
                async with asyncio.timeout(TIMEOUT_S):
                    live = await hubs.beat(connection, self.hub_id)
                    await self._end_sessions(connection, live)
                self._learn(live)
                await asyncio.sleep(BEAT_S)
        except asyncio.CancelledError:
            await self._leave(connection)
            raise

    async def _end_sessions(self, connection: pool.Connection, live: frozenset[str]) -> None:
        """End those of hubs that are missed; but what held us up may have held them up too (PostgreSQL
        itself, or the machine), so after a pause of our own they get as long to come back."""
        now = time.monotonic()
        if -math.inf < self._heard < now - hubs.LIVE_S:
            self._back = now
        self._heard = now
        self._missed = (self._missed | self.live - live) - live
        if self._missed and now - self._back > hubs.LIVE_S:
            ended = await hubs.end_sessions(connection, self._missed)
            log.info("%d sessions ended of hubs that went without a word", ended)
            self._missed = frozenset()

    async def _leave(self, connection: pool.Connection) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await hubs.leave(connection, self.hub_id)
        except _AWAY as error:
            log.info("no goodbye to the other hubs, they will miss us: %s", error)

    def _learn(self, live: frozenset[str]) -> None:
        if live == self.live:
            return
        came, went = live - self.live - {self.hub_id}, self.live - live
        if came or went:
            log.info("%d hubs are alive; came: %s; went: %s", len(live), sorted(came), sorted(went))
        self.live = live
        for watcher in self._watchers:
            watcher()
