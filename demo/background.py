"""Doing several things at once, with errors that come out as they were raised."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

Work = Coroutine[Any, Any, None]


async def together(steps: Iterable[Work]) -> None:
    """Take all steps at the same time. The first that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


@contextlib.asynccontextmanager
async def beside(*work: Work) -> AsyncIterator[None]:
    """Run `work` beside the block and end it with the block.

    What fails first, the block or some work, ends everything, and its error is raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one) for one in work]
            yield
            for one in running:
                one.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
