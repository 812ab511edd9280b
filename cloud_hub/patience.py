"""Asking PostgreSQL again and again while it is not available, but no longer than one is wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from cloud_hub.store import pool
from shared import backoff

log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")


async def steadily(work: Callable[[], Awaitable[_T]], what: str) -> _T:
    """Do `work`, which can be repeated, until PostgreSQL was there for it; `what` names it in the log."""
    pause = backoff.Backoff(base_s=0.05, cap_s=2.0)
    while True:
        try:
            done = await work()
            heed_cancellation()
            return done
        except pool.UNAVAILABLE as error:
            log.warning("%s: PostgreSQL is not available, trying again: %s", what, error)
            heed_cancellation()
            await asyncio.sleep(pause.next())


def heed_cancellation() -> None:
    """Raise CancelledError if the current task was asked to end and the request got lost.

    `asyncio.wait_for`, by which older versions of psycopg wait for each answer, forgets it when the answer
    comes at that very moment (Python 3.11); for the pool's own waits see `pool`. A loop that did not look
    would go on for ever, and whoever waits for its end as long. Not for a task in which a TaskGroup has
    failed: that leaves a request behind (likewise).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
