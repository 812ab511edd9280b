"""What goes down to an agent: words that come while something else is under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest

from cloud_hub import down
from cloud_hub.store import outgoing
from shared import lanes, outlet, signals, topics


class Link:
    """Not connected: nothing is sent."""

    connected = False


def lanes_down() -> down.DownLanes:
    nothing: Any = None
    link: Any = Link()
    return down.DownLanes(nothing, link, topics.Agent("lyon", "press"), 1, 1, Counter())


def test_a_wish_to_rewind_outlives_the_same_cursor_said_again() -> None:
    """Two acknowledgements before the first is taken: what was missing is sent again all the same."""
    one = lanes_down()
    one.acknowledge([signals.Ack(lane="leases.1", cursor=5, rewind=True)])
    one.acknowledge([signals.Ack(lane="leases.1", cursor=5)])
    assert one._acks["leases.1"].rewind


async def test_what_is_appended_while_the_lanes_begin_again_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lease that is committed just when the numbers are read anew is known to the new outlet."""
    one = lanes_down()
    store = {outgoing.LEASES: (5, 3)}
    answer, reading, overtake = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def numbers() -> dict[lanes.Lane, tuple[int, int]]:
        found = dict(store)
        if one._outlet is not None and not reading.is_set():
            reading.set()
            await answer.wait()
        return found

    async def run(self: outlet.Outlet) -> None:
        await overtake.wait()
        overtake.clear()
        raise down.Overtaken(outgoing.LEASES, 3, gone=False)

    def known() -> int:
        return max((report.numbered for report in one._outlet.reports()), default=0) if one._outlet else 0

    monkeypatch.setattr(one, "_numbers", numbers)
    monkeypatch.setattr(outlet.Outlet, "run", run)
    running = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(5):
            while not known():  # noqa: ASYNC110
                await asyncio.sleep(0)
            overtake.set()
            await reading.wait()
            store[outgoing.LEASES] = (6, 3)
            one.appended({outgoing.LEASES: 6})
            answer.set()
            while known() < 6:  # noqa: ASYNC110
                await asyncio.sleep(0)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
