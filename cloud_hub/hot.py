"""Hot state in Redis: what must be fast and shared between hubs, and may be gone at any moment.

Keys, all under `backhaul:`

    telemetry:{site}/{agent}   the last heartbeat as JSON, for as long as it counts as fresh
    news                       channel: which topics changed, so that other hubs look at once

Nothing here is a promise. Redis emptied costs a second of staleness; Redis away costs the news of other
hubs, which then look by their own clocks. Every failure is counted and logged once, not raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import redis.asyncio
import redis.exceptions

from shared import backoff, topics

log: Final = logging.getLogger(__name__)

PREFIX: Final = "backhaul:"
NEWS: Final = PREFIX + "news"
FRESH_S: Final = 30
TIMEOUT_S: Final = 1.0
"""A hot store that does not answer within this is no hot store."""


class Hot:
    """Redis, when it is there."""

    def __init__(self, url: str | None, on_news: Callable[[str], None]) -> None:
        """`on_news` is told what another hub, or this one, has announced."""
        self._client = (
            redis.asyncio.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
            if url
            else None
        )
        self._on_news = on_news
        self._announced: set[str] = set()
        self._wake = asyncio.Event()
        self.available = False
        self.failures = 0

    async def save_telemetry(self, agent: topics.Agent, telemetry: bytes) -> None:
        """Keep the last heartbeat for readers that do not hear the broker themselves."""
        if self._client is not None and self.available:
            try:
                await self._client.set(f"{PREFIX}telemetry:{agent}", telemetry, ex=FRESH_S)
            except redis.exceptions.RedisError as error:
                self._failed(error)

    async def telemetry(self, agent: topics.Agent) -> bytes | None:
        """The last heartbeat of an agent, if it is fresh and Redis is there."""
        if self._client is None or not self.available:
            return None
        try:
            found = await self._client.get(f"{PREFIX}telemetry:{agent}")
        except redis.exceptions.RedisError as error:
            self._failed(error)
            return None
        return found if isinstance(found, bytes) else None

    def announce(self, what: str) -> None:
        """Tell every hub, this one included, that `what` changed: 'queued', 'freed', 'ended'."""
        self._on_news(what)
        self._announced.add(what)
        self._wake.set()

    async def run(self) -> None:
        """Listen and publish until cancelled, coming back to Redis when it comes back."""
        if self._client is None:
            return
        pause = backoff.Backoff(base_s=0.1, cap_s=5.0)
        try:
            while True:
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._listen(), name="hot: listen")
                        group.create_task(self._publish(), name="hot: publish")
                except* redis.exceptions.RedisError as errors:
                    self._failed(errors.exceptions[0])
                await asyncio.sleep(pause.next())
        finally:
            with contextlib.suppress(redis.exceptions.RedisError):
                await self._client.aclose()

    async def _listen(self) -> None:
        assert self._client is not None
        async with self._client.pubsub() as channel:
            await channel.subscribe(NEWS)
            self.available = True
            log.info("Redis is there")
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=TIMEOUT_S / 2)
                if message is not None:
                    self._on_news(message["data"].decode())

    async def _publish(self) -> None:
        """What was announced, each word at most once in 20 ms: news say look, not what to see."""
        assert self._client is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            words, self._announced = self._announced, set()
            for word in words:
                await self._client.publish(NEWS, word)
            await asyncio.sleep(0.02)

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        if self.available:
            log.warning("Redis is away, going on without it: %s", error)
        self.available = False
