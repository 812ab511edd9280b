"""The publications of one connection that wait for the broker's acknowledgement, and who waits to add one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from shared.link.errors import LinkDown, NoRoom, Refused

_FAILURE: Final = 0x80
"""Reason codes from here on are failures (MQTT 5.0, 2.4)."""


class Window:
    """Publications of QoS 1 in flight: at most `limit`, each known by its packet id."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[int, asyncio.Future[None]] = {}
        self._queue: deque[asyncio.Future[None]] = deque()
        self._over = False

    def __len__(self) -> int:
        return len(self._in_flight)

    async def room(self) -> None:
        """Wait until there is room for one more, first come, first served. Raises LinkDown at the end."""
        behind = bool(self._queue)
        while not self._over and (behind or len(self._in_flight) >= self.limit):
            turn: asyncio.Future[None] = self._loop.create_future()
            self._queue.append(turn)
            try:
                await turn
            finally:
                # Whoever was let in may be cancelled, or not publish after all: look again afterwards.
                self._loop.call_soon(self._admit)
            behind = False
        if self._over:
            raise LinkDown("the connection ended before there was room for one more publication")

    def check(self) -> None:
        """Raise NoRoom unless there is room for one more at this moment."""
        if len(self._in_flight) >= self.limit:
            raise NoRoom(f"{len(self)} publications are in flight, and the limit is {self.limit}")

    def sent(self, packet_id: int) -> asyncio.Future[None]:
        """One more is in flight; the future is done when it is acknowledged, and fails when it is lost."""
        future = self._in_flight[packet_id] = self._loop.create_future()
        return future

    def acknowledged(self, packet_id: int, code: int) -> None:
        """The broker has answered with this reason code. Call `settled` after the last of several."""
        future = self._in_flight.pop(packet_id, None)
        if future is None or future.done():  # done: nobody waited any longer
            return
        if code < _FAILURE:
            future.set_result(None)
        else:
            reason = ReasonCode(PacketTypes.PUBACK, identifier=code)
            fail(future, Refused("the broker refused a publication", str(reason)))

    def settled(self) -> None:
        """What has been acknowledged makes room for others."""
        self._admit()

    def end(self, why: Exception) -> None:
        """The connection is over: whatever is in flight is lost, and whoever waits for room waits in vain."""
        self._over = True
        for future in self._in_flight.values():
            fail(future, LinkDown(f"the connection ended before the acknowledgement: {why}"))
        self._in_flight.clear()
        self._admit()

    def _admit(self) -> None:
        """Let in as many as there is room for; all of them once it is over."""
        admitted = 0
        while self._queue and (self._over or len(self._in_flight) + admitted < self.limit):
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                admitted += 1


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail whoever waits; it is no mistake if nobody does."""
    if not future.done():
        future.set_exception(error)
        future.exception()
