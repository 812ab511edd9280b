"""What goes down to one agent: read from the store, sent, and forgotten when the agent has it.

Another hub may serve the same agent for a moment (see `replicas`), and may have had records acknowledged
of which this one does not know. So the store's word goes before what is remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from cloud_hub import patience
from cloud_hub.store import lanes as lane_store
from cloud_hub.store import pool
from shared import lanes, link, outlet, signals, topics, wire

log: Final = logging.getLogger(__name__)

LANES: Final = frozenset(map(str, (lane_store.LEASES, lane_store.RESULTS, lane_store.COMMANDS)))


class Overtaken(Exception):
    """What this hub remembers of a lane is behind the store: begin again with what that says."""

    def __init__(self, lane: lanes.Lane, after: int, *, gone: bool) -> None:
        """`gone`: the records after the number `after` are no more."""
        super().__init__(f"lane {lane} has changed behind record {after}")
        self.lane = lane
        self.after = after
        self.gone = gone


class DownLanes:
    """The down lanes of one agent, in one epoch."""

    def __init__(
        self,
        connections: pool.Pool,
        mqtt: link.Link,
        agent: topics.Agent,
        agent_id: int,
        epoch: int,
        counts: Counter[str],
    ) -> None:
        self._connections = connections
        self._link = mqtt
        self._agent = agent
        self._agent_id = agent_id
        self._epoch = epoch
        self._counts = counts
        self._outlet: outlet.Outlet | None = None
        self._closed: set[lanes.Lane] = set()
        """Their records went to the agent's next epoch."""
        self._behind = False
        """The agent knows of records that the outlet does not."""
        self._acks: dict[str, signals.Ack] = {}
        """Not taken yet, the furthest of each lane."""
        self._acknowledged = asyncio.Event()
        self._look = asyncio.Event()
        self._unheard = False
        """Something was appended when there was no outlet to hear of it, or one that is to go."""

    def wake(self) -> None:
        """The store has new records."""
        self._look.set()

    def appended(self, numbers: Mapping[lanes.Lane, int]) -> None:
        """The store has records up to these numbers, as somebody knows who wrote them or has looked."""
        if self._outlet is None:
            self._unheard = True
        else:
            known = {report.lane: report.numbered for report in self._outlet.reports()}
            fresh = {
                lane: number
                for lane, number in numbers.items()
                if number > known.get(str(lane), 0) and lane not in self._closed
            }
            if fresh:
                self._outlet.appended(fresh)

    def reconnected(self) -> None:
        """What was sent may not have arrived."""
        if self._outlet is not None:
            self._outlet.reconnected()

    def acknowledge(self, acks: Iterable[signals.Ack]) -> None:
        """The agent's cursors; of those that wait to be taken, the furthest of each lane."""
        for ack in acks:
            known = self._acks.get(ack.lane)
            if ack.lane in LANES and (known is None or ack.cursor >= known.cursor):
                if known is not None and known.rewind and known.cursor == ack.cursor:
                    ack.rewind = True
                self._acks[ack.lane] = ack
        self._acknowledged.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name=f"{self._agent}: send down")
            group.create_task(self._take_acks(), name=f"{self._agent}: take acknowledgements")
            group.create_task(self._watch(), name=f"{self._agent}: watch down lanes")

    async def _send(self) -> None:
        overtaken: Overtaken | None = None
        while True:
            self._behind = False
            numbers = await self._numbers()
            if overtaken is not None and overtaken.gone and overtaken.lane in numbers:
                numbered, acked = numbers[overtaken.lane]
                if acked <= overtaken.after < numbered:
                    self._closed.add(overtaken.lane)
                    del numbers[overtaken.lane]
            self._outlet = outlet.Outlet(
                self, self._link, lambda lane: topics.down(self._agent, lane), self._epoch, numbers
            )
            if self._unheard:
                self._unheard = False
                self._look.set()
            try:
                await self._outlet.run()
            except Overtaken as error:
                self._unheard = True  # what is appended from now on is told to the one that is to go
                log.info("%s: %s; going on with what the store says", self._agent, error)
                self._counts["overtaken"] += 1
                overtaken = error

    async def _take_acks(self) -> None:
        while True:
            await self._acknowledged.wait()
            self._acknowledged.clear()
            acks, self._acks = list(self._acks.values()), {}
            if self._outlet is None:
                continue  # the agent says it again, to what it is sent
            try:
                await self._outlet.acknowledge(acks)
            except lanes.JournalRegressed as error:
                await self._catch_up(acks, error)
                self._behind = True
                self._outlet.reconnected()  # so that it reads, and finds out

    async def _catch_up(self, acks: Iterable[signals.Ack], error: lanes.JournalRegressed) -> None:
        """The agent has more than we sent: from another hub, or from before PostgreSQL was put back to an
        older state. Then what waits is numbered anew, after the agent's cursor.
        """
        numbers = await self._numbers()
        for ack in acks:
            lane = lanes.Lane.parse(ack.lane)
            numbered, _ = numbers.get(lane, (0, 0))
            if ack.cursor > numbered:
                log.error("%s epoch %d: %s", self._agent, self._epoch, error)
                self._counts["regressed"] += 1
                await self._renumber(lane, ack.cursor)
            else:
                await self.acknowledged(lane, ack.cursor)

    async def _watch(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            self.appended({lane: numbered for lane, (numbered, _) in (await self._numbers()).items()})

    # The store, as an outlet asks it

    async def read(self, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int) -> wire.Batch | None:
        """The records after `after`; None if an acknowledgement to us came meanwhile.

        Raises Overtaken if some are gone without one.
        """

        async def read() -> wire.Batch | None:
            async with pool.statement(self._connections) as connection:
                return await lane_store.read(connection, self._agent_id, lane, after, max_rows, max_bytes)

        batch = await patience.steadily(read, f"{self._agent}: lane {lane}")
        whole = batch is not None and batch.span == (after + 1, after + _size(batch))
        if self._behind or (not whole and self._acked(lane) <= after):
            raise Overtaken(lane, after, gone=not whole)
        return batch if whole else None

    async def acknowledged(self, lane: lanes.Lane, cursor: int) -> None:
        """Forget the records up to `cursor`."""

        async def forget() -> None:
            async with pool.statement(self._connections) as connection:
                await lane_store.acknowledged(connection, self._agent_id, lane, cursor)

        await patience.steadily(forget, f"{self._agent}: lane {lane}")

    def _acked(self, lane: lanes.Lane) -> int:
        """The agent's cursor, as far as this hub knows."""
        reports = self._outlet.reports() if self._outlet is not None else ()
        return next((report.acknowledged for report in reports if report.lane == str(lane)), 0)

    async def _numbers(self) -> dict[lanes.Lane, tuple[int, int]]:
        """(numbered, acknowledged) of each lane that is open."""

        async def read() -> dict[lanes.Lane, tuple[int, int]]:
            async with pool.statement(self._connections) as connection:
                return await lane_store.down_lanes(connection, self._agent_id)

        numbers = await patience.steadily(read, f"down lanes of {self._agent}")
        return {lane: number for lane, number in numbers.items() if lane not in self._closed}

    async def _renumber(self, lane: lanes.Lane, cursor: int) -> None:
        async def renumber() -> None:
            async with self._connections.connection() as connection:
                await lane_store.renumber(connection, self._agent_id, lane, cursor)

        await patience.steadily(renumber, f"{self._agent}: lane {lane}")


def _size(batch: wire.Batch) -> int:
    return sum(part.num_rows for part in batch.batches)
