"""A client as there are many: it submits tasks under keys of its own, and again until a hub has answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Final

import httpx

from demo import background
from shared import jobs
from tests.integration.test_preemption import windows

MODEL: Final = "slow"
SHORT: Final = 2
"""Items of most tasks."""
LONG: Final = 60
"""Items of every `LONG_EACH`-th: it is interrupted somewhere in the middle."""
LONG_EACH: Final = 5
BACKLOG: Final = 150
"""The first tasks come all at once, so that there is a queue."""
HANDS: Final = 10
"""Submissions that may be on their way at one time: one that is not answered does not hold up the rest."""
ANSWER_S: Final = 2.0
"""A hub that has not answered by then is not waited for."""
PAUSE_S: Final = 0.1
"""Between two tries."""


class Client:
    """Submits so many tasks a second. What it was told is in its book."""

    def __init__(self, hubs: Sequence[str], per_s: float) -> None:
        """`hubs`: their URLs, all of one fleet."""
        self._hubs = hubs
        self._per_s = per_s
        self._numbers = itertools.count()
        self._closing = asyncio.Event()
        self.book: dict[str, uuid.UUID] = {}
        """The task that each key was answered with."""
        self.items: dict[uuid.UUID, int] = {}
        """How many items each of these tasks has."""
        self.again = 0
        """Times that a key had to be sent again: refused, not answered, or answered with an error."""

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Submit as long as the block lasts; at its end every key that was sent is answered."""
        async with contextlib.AsyncExitStack() as stack:
            hubs = [
                await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=ANSWER_S))
                for url in self._hubs
            ]
            hands = [asyncio.create_task(self._hand(hubs), name=f"client: hand {n}") for n in range(HANDS)]
            stack.push_async_callback(_ended, hands)
            yield
            self._closing.set()
            await background.together(_outcome(hand) for hand in hands)

    async def _hand(self, hubs: Sequence[httpx.AsyncClient]) -> None:
        while not self._closing.is_set():
            number = next(self._numbers)
            await self._submit(number, hubs)
            if number >= BACKLOG:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HANDS / self._per_s):
                        await self._closing.wait()

    async def _submit(self, number: int, hubs: Sequence[httpx.AsyncClient]) -> None:
        """One task, to one hub after the other under the same key until one has answered that it has it."""
        key, items = f"order-{number}", SHORT if number % LONG_EACH else LONG
        for turn in itertools.count(number):
            with contextlib.suppress(httpx.HTTPError):
                answer = await hubs[turn % len(hubs)].post(
                    "/v1/tasks",
                    params={"model": MODEL},
                    headers={"content-type": jobs.ARROW, "idempotency-key": key},
                    content=windows(items),
                )
                if answer.status_code == httpx.codes.ACCEPTED:
                    task_id = uuid.UUID(answer.json()["task_id"])
                    self.book[key], self.items[task_id] = task_id, items
                    return
                assert answer.is_server_error, answer.text
            self.again += 1
            await asyncio.sleep(PAUSE_S)


async def _outcome(hand: asyncio.Task[None]) -> None:
    await hand


async def _ended(hands: Sequence[asyncio.Task[None]]) -> None:
    """Of hands that were cut short no word is wanted: the block has raised something better."""
    for hand in hands:
        hand.cancel()
    await asyncio.gather(*hands, return_exceptions=True)
