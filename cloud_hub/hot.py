"""Hot state in Redis: what must be fast and shared between hubs, and may be gone at any moment.

Keys, all under `backhaul:`

    telemetry:{site}/{agent}   the last heartbeat as JSON, for as long as it counts as fresh
    lock:{key}                 who holds a lock, until it runs out
    news                       channel: which topics changed, so that other hubs look at once
    lanes                      channel: agents (ids) whose down lanes have new records

Nothing here is a promise. Redis emptied costs a second of staleness; Redis away costs the news of other
hubs, which then look by their own clocks. Every failure is counted and logged once, not raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import redis.asyncio
import redis.exceptions

from shared import backoff, topics

log: Final = logging.getLogger(__name__)

PREFIX: Final = "backhaul:"
NEWS: Final = PREFIX + "news"
LANES: Final = PREFIX + "lanes"
FRESH_S: Final = 30
TIMEOUT_S: Final = 1.0
"""A hot store that does not answer within this is no hot store."""
PAUSE_S: Final = 0.02
"""Between two publications: what is announced meanwhile goes together."""

_LUA: Final = Path(__file__).parent / "lua"


class Hot:
    """Redis, when it is there."""

    def __init__(self, url: str | None, on_news: Callable[[str], None]) -> None:
        """`on_news` is told what another hub, or this one, has announced; once."""
        self._client = (
            redis.asyncio.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
            if url
            else None
        )
        self._scripts = (
            {path.stem: self._client.register_script(path.read_bytes()) for path in _LUA.glob("*.lua")}
            if self._client is not None
            else {}
        )
        self._on_news = on_news
        self._name = secrets.token_hex(4)
        """By which we know our own news when we hear it."""
        self.on_lanes: Callable[[Iterable[int]], object] = lambda agent_ids: None
        """Told of agents (ids) to which any hub, this one included, has something new to send."""
        self._announced: set[str] = set()
        self._lanes: set[int] = set()
        self._wake = asyncio.Event()
        self.available = False
        self.failures = 0

    # The last heartbeats

    async def save_telemetry(self, reports: Mapping[topics.Agent, bytes]) -> None:
        """Keep the last heartbeats for readers that do not hear the broker themselves."""
        if self._client is not None and self.available:
            try:
                async with self._client.pipeline(transaction=False) as together:
                    for agent, telemetry in reports.items():
                        together.set(f"{PREFIX}telemetry:{agent}", telemetry, ex=FRESH_S)
                    await together.execute()
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

    # Locks

    async def lock(self, key: str, holder: str, ttl_s: float) -> bool | None:
        """Take the lock `key` or prolong our own; whether `holder` has it now, for `ttl_s`.

        None if nobody can know: Redis is not used, or does not answer. A lock in Redis is a hint, not a
        proof: it may be forgotten, and its holder may sleep past its end. What must not be done twice
        needs a fencing token beside it.
        """
        taken = await self._run_script("lock", key, holder, max(1, round(ttl_s * 1000)))
        return None if taken is None else taken == 1

    async def unlock(self, key: str, holder: str) -> None:
        """Give up the lock `key`, if `holder` still has it."""
        await self._run_script("unlock", key, holder)

    async def _run_script(self, name: str, key: str, *words: str | int) -> object:
        """What a script answers; None if there is nobody to run it."""
        if self._client is None:
            return None
        try:
            return await self._scripts[name](keys=[f"{PREFIX}lock:{key}"], args=list(words))
        except redis.exceptions.RedisError as error:
            self._failed(error)
            return None

    # News

    def announce(self, what: str) -> None:
        """Tell every hub, this one included, that `what` changed: 'queued', 'freed'."""
        self._on_news(what)
        if self._client is not None:
            self._announced.add(what)
            self._wake.set()

    def announce_here(self, what: str) -> None:
        """Tell this hub alone, of what every hub hears for itself."""
        self._on_news(what)

    def announce_lanes(self, agent_ids: Iterable[int]) -> None:
        """Tell every hub that the down lanes of these agents have new records."""
        if self._client is not None:
            self._lanes.update(agent_ids)
            self._wake.set()

    async def run(self) -> None:
        """Listen and publish until cancelled, coming back to Redis when it comes back."""
        if self._client is None:
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="hot: listen")
                group.create_task(self._publish(), name="hot: publish")
        finally:
            with contextlib.suppress(redis.exceptions.RedisError):
                await self._client.aclose()

    async def _listen(self) -> None:
        pause = backoff.Backoff(base_s=0.1, cap_s=5.0)
        while True:
            began = time.monotonic()
            try:
                await self._follow()
            except redis.exceptions.RedisError as error:
                self._failed(error)
            pause.succeeded(time.monotonic() - began)
            await asyncio.sleep(pause.next())

    async def _follow(self) -> None:
        """Hear the news over one connection, to its end."""
        assert self._client is not None
        async with self._client.pubsub() as channel:
            await channel.subscribe(NEWS, LANES)
            while True:
                if not self.available:  # at first, and after a call that it did not answer in time
                    await self._client.ping()
                    self.available = True
                    log.info("Redis is there")
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=TIMEOUT_S / 2)
                if message is not None:
                    self._heard(message["channel"].decode(), message["data"].decode())

    def _heard(self, channel: str, text: str) -> None:
        if channel == NEWS:
            whose, _, word = text.rpartition(" ")
            if whose != self._name:  # our own we have acted on already
                self._on_news(word)
            return
        try:
            self.on_lanes([int(agent_id) for agent_id in text.split()])
        except ValueError:
            log.warning("news of lanes that cannot be read: %.100s", text)

    async def _publish(self) -> None:
        """What was announced, each word at most once in PAUSE_S: news say look, not what to see."""
        assert self._client is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            words, self._announced = self._announced, set()
            lanes, self._lanes = self._lanes, set()
            try:
                for word in words:
                    await self._client.publish(NEWS, f"{self._name} {word}")
                if lanes:
                    await self._client.publish(LANES, " ".join(map(str, lanes)))
            except redis.exceptions.RedisError as error:
                self._failed(error)
            await asyncio.sleep(PAUSE_S)

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        if self.available:
            log.warning("Redis is away, going on without it: %s", error)
        self.available = False
