"""Brings models back into memory that made room for others, while the rest goes on running.

    batcher: is it away? -> wanted -> a thread loads it -> the batcher is asked again

The wait is bounded: a model that is not back in time is run all the same, which fails the attempts of its
tasks with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from edge_agent import engine, models, room

log: Final = logging.getLogger(__name__)

AGAIN_S: Final = 0.1
"""Between two tries while those that are loaded are in use."""
FAILED_S: Final = 1.0
"""How long a model that could not be loaded is left to fail the tasks that wait for it."""


class Reloads:
    """Asked by the batcher, in the loop."""

    def __init__(self, machine: engine.Engine, patience_s: float, on_back: Callable[[], None]) -> None:
        """`on_back` is told when a model is back, or has been waited for in vain."""
        self._engine = machine
        self._patience_s = patience_s
        self._on_back = on_back
        self._wanted: dict[models.Key, float] = {}
        """And since when, monotonic seconds."""
        self._given_up: dict[models.Key, float] = {}
        """Until when."""
        self._news = asyncio.Event()

    def away(self, model: models.Model) -> bool:
        """Whether to wait for the model; from now on it is on its way."""
        key = model.key
        if not self._engine.models.is_away(key) and not self._engine.models.is_to_go(key):
            return False
        now = time.monotonic()
        if self._given_up.get(key, 0.0) > now:
            return False
        self._wanted.setdefault(key, now)
        self._news.set()
        return not self._is_late(key)

    async def run(self) -> None:
        """Bring back what is wanted until cancelled: who waits for longest first."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._wanted:
                for key in list(self._wanted):
                    await self._bring(key)
                if self._wanted:
                    await asyncio.sleep(AGAIN_S)

    async def _bring(self, key: models.Key) -> None:
        began = time.monotonic()
        try:
            is_back = await asyncio.to_thread(self._engine.models.wake, key)
        except room.NoRoom:
            self._is_late(key)  # whoever waited for it may have gone
        except Exception as error:  # noqa: BLE001 - whatever a graph does, the other models must serve
            log.error("%s cannot be loaded again: %s", key, error)
            self._give_up(key)
        else:
            if is_back:
                log.info("%s is back in memory after %.1f s", key, time.monotonic() - began)
            self._wanted.pop(key, None)  # what is to leave memory is asked for again, unless it need not
        self._on_back()

    def _is_late(self, key: models.Key) -> bool:
        """Whether it was waited for in vain; then it is given up."""
        since = self._wanted.get(key)
        if since is None or time.monotonic() - since <= self._patience_s:
            return False
        log.error("%s is not back in memory after %g s: its tasks fail", key, self._patience_s)
        self._give_up(key)
        return True

    def _give_up(self, key: models.Key) -> None:
        self._wanted.pop(key, None)
        self._given_up[key] = time.monotonic() + FAILED_S
