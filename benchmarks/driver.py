"""Devices: publish pictures to a broker, a fixed number without a reply at any time, and time the replies.

Every job in flight has a slot, and its reply topic names the slot; a reply sends the next job. It runs in a
process of its own and does as little as it can: broker, driver and the measured program share the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from benchmarks import pictures, worker
from shared import link

REPLIES = "devices/replies"


class Driver:
    """Keeps `in_flight` jobs without a reply until `warm` and then `count` of them have been answered."""

    def __init__(
        self, port: int, topic: str, encoded: list[bytes], in_flight: int, warm: int, count: int
    ) -> None:
        self._topic = topic
        self._encoded = encoded
        self._in_flight = in_flight
        self._warm = warm
        self._count = count
        self._link = link.Link(link.Address("127.0.0.1", port), "devices", receive_maximum=2 * in_flight)
        self._link.subscribe(f"{REPLIES}/+", 1, self._replied)
        self._sent = 0
        self._sent_at = [0.0] * in_flight
        self._answered = 0
        self._began = (0.0, 0.0)
        self._latencies: list[float] = []
        self._done = asyncio.Event()

    async def run(self) -> dict[str, float]:
        """Jobs a second, latencies (ms), CPU seconds of this process; of the counted jobs alone."""
        running = asyncio.create_task(self._link.run(), name="link")
        await self._link.wait_connected()
        worker.tell({"ready": True})
        await asyncio.to_thread(worker.hear)
        for slot in range(self._in_flight):
            self._send(slot)
        await self._done.wait()
        took, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        ordered = sorted(self._latencies)
        return {
            "jobs_per_s": self._count / took,
            "p50_ms": 1000 * ordered[len(ordered) // 2],
            "p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
            "cpu_s": cpu,
        }

    def _send(self, slot: int) -> None:
        self._sent_at[slot] = time.perf_counter()
        self._link.publish_nowait(
            self._topic,
            self._encoded[self._sent % len(self._encoded)],
            qos=1,
            content_type="image/png",
            response_topic=f"{REPLIES}/{slot}",
        )
        self._sent += 1

    def _replied(self, message: link.Message) -> None:
        self._link.ack(message)
        now = time.perf_counter()
        slot = int(message.topic.rpartition("/")[2])
        self._answered += 1
        if self._answered > self._warm:
            self._latencies.append(now - self._sent_at[slot])
        elif self._answered == self._warm:
            self._began = (now, time.process_time())
            worker.tell({"warm": True})
        if len(self._latencies) == self._count:
            self._done.set()
        elif len(self._latencies) < self._count:
            self._send(slot)


def main() -> None:
    given = worker.arguments()
    encoded = pictures.load(Path(given.pop("pictures")))
    worker.tell(asyncio.run(_run(encoded, given)))
    worker.hear()


async def _run(encoded: list[bytes], given: dict[str, object]) -> dict[str, float]:
    return await Driver(encoded=encoded, **given).run()  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
