"""Listens at the cloud's broker and counts what the agents send on their results lanes."""

from __future__ import annotations

from typing import Final

from shared import lanes, link, topics, wire

LANE: Final = "results"


class Tap:
    """A subscriber that counts batches of results; it is late or absent at its own cost alone.

    Bytes are those of the MQTT payloads. A batch that is sent twice counts twice, in bytes and in rows.
    """

    def __init__(self, cloud: link.Address) -> None:
        self._link = link.Link(cloud, "demo-tap")
        self._link.subscribe(topics.all_up(), 0, self._heard)
        self.payload_bytes = 0
        self.rows = 0
        self.batches = 0

    async def run(self) -> None:
        """Count until cancelled."""
        await self._link.run()

    @property
    def bytes_per_row(self) -> float | None:
        """None before the first."""
        return self.payload_bytes / self.rows if self.rows else None

    def _heard(self, message: link.Message) -> None:
        lane = topics.parse(message.topic).lane
        if lane in (topics.TELEMETRY, topics.ACK) or lanes.Lane.parse(lane).name != LANE:
            return
        header = wire.Header.parse(message.properties)
        if header.kind == wire.RESULTS.name:
            self.payload_bytes += len(message.payload)
            self.rows += header.span.size
            self.batches += 1
