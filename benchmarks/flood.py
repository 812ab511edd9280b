"""A device that publishes as fast as its broker takes it, and waits for no reply."""

from __future__ import annotations

import asyncio

from benchmarks import pictures, worker
from shared import link

IN_FLIGHT = 100


async def pour(port: int, topic: str, count: int, payload_bytes: int) -> None:
    """Publish `count` pictures, at the word; say so when the broker has them all."""
    encoded = pictures.draw(pixels=36, count=20, payload_bytes=payload_bytes)
    device = link.Link(link.Address("127.0.0.1", port), "flood", in_flight_limit=IN_FLIGHT)
    running = asyncio.create_task(device.run(), name="link")
    await device.wait_connected()
    worker.tell({"ready": True})
    await asyncio.to_thread(worker.hear)
    for number in range(count):
        await device.room()
        device.publish_nowait(topic, encoded[number % len(encoded)], qos=1, content_type="image/png")
    while device.in_flight:  # noqa: ASYNC110 - the link tells each publisher, not when all are done
        await asyncio.sleep(0.01)
    worker.tell({"published": count})
    await asyncio.to_thread(worker.hear)
    running.cancel()


if __name__ == "__main__":
    asyncio.run(pour(**worker.arguments()))
