"""The link beside paho's own thread, on one broker in one run: `python -m benchmarks.link [messages]`.

Messages of 200 bytes at QoS 1 over MQTT 5, 64 in flight; the received ones acknowledged one by one. CPU is
that of the client's process alone.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from demo import servers
from shared import link

IN_FLIGHT = 64
PAYLOAD = bytes(200)
KEPT_S = 3600
"""The receivers' sessions, in which the messages wait that they are to receive."""

Measured = tuple[float, float]
"""Messages a second, and µs of CPU for each."""


class Stopwatch:
    """Wall time and CPU time of what happens between two moments."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> Measured:
        wall = time.perf_counter() - self._began[0]
        cpu = time.process_time() - self._began[1]
        return self._messages / wall, cpu / self._messages * 1e6


async def link_publishes(broker: servers.Mosquitto, messages: int, topic: str = "bench/out") -> Measured:
    """Our link, one task, as fast as its window allows."""
    ours = link.Link(link.Address(broker.host, broker.port), "link-out", in_flight_limit=IN_FLIGHT)
    running = asyncio.create_task(ours.run())
    await ours.wait_connected()
    watch = Stopwatch(messages)
    acknowledged: asyncio.Future[None] | None = None
    for _ in range(messages):
        await ours.room()
        acknowledged = ours.publish_nowait(topic, PAYLOAD, qos=1)
    assert acknowledged is not None
    await acknowledged
    measured = watch.stop()
    running.cancel()
    await asyncio.wait([running])
    return measured


async def link_receives(broker: servers.Mosquitto, messages: int) -> Measured:
    """Our link, a handler that acknowledges at once."""
    received = 0
    done = asyncio.Event()

    def handle(message: link.Message) -> None:
        nonlocal received
        ours.ack(message)
        received += 1
        if received == messages:
            done.set()

    ours = link.Link(link.Address(broker.host, broker.port), "link-in", session_expiry_s=KEPT_S)
    ours.subscribe("bench/in", 1, handle)

    async def connected(until: Callable[[], Awaitable[object]]) -> None:
        running = asyncio.create_task(ours.run())
        await until()
        running.cancel()
        await asyncio.wait([running])

    await connected(ours.wait_connected)
    await link_publishes(broker, messages, "bench/in")
    watch = Stopwatch(messages)
    await connected(done.wait)
    return watch.stop()


@contextmanager
def paho_thread(
    client: paho.Client,
    broker: servers.Mosquitto,
    properties: Properties | None = None,
    *,
    clean: bool = True,
) -> Iterator[None]:
    """paho, connected and driven by its own thread."""
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(broker.host, broker.port, clean_start=clean, properties=properties)
    client.loop_start()
    connected.wait()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def paho_publishes(broker: servers.Mosquitto, messages: int) -> Measured:
    """paho's thread sends, another fills its window."""
    client = paho.Client(CallbackAPIVersion.VERSION2, "paho-out", protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    window = threading.Semaphore(IN_FLIGHT)
    client.on_publish = lambda *_: window.release()
    with paho_thread(client, broker):
        watch = Stopwatch(messages)
        for _ in range(messages):
            window.acquire()
            client.publish("bench/out", PAYLOAD, qos=1)
        for _ in range(IN_FLIGHT):
            window.acquire()
        return watch.stop()


def paho_receives(broker: servers.Mosquitto, messages: int) -> Measured:
    """paho's thread receives and acknowledges by hand."""
    kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    kept.SessionExpiryInterval = KEPT_S

    def client() -> paho.Client:
        return paho.Client(
            CallbackAPIVersion.VERSION2, "paho-in", protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )

    subscribed = threading.Event()
    first = client()
    first.on_subscribe = lambda *_: subscribed.set()
    with paho_thread(first, broker, kept):
        first.subscribe("bench/in", 1)
        subscribed.wait()
    asyncio.run(link_publishes(broker, messages, "bench/in"))

    done = threading.Event()
    received = 0

    def handle(client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        nonlocal received
        client.ack(message.mid, message.qos)
        received += 1
        if received == messages:
            done.set()

    second = client()
    second.on_message = handle
    watch = Stopwatch(messages)
    with paho_thread(second, broker, kept, clean=False):
        done.wait()
        return watch.stop()


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as directory, servers.Mosquitto(Path(directory)) as broker:
        rows = {
            "publish": (paho_publishes(broker, messages), asyncio.run(link_publishes(broker, messages))),
            "receive": (paho_receives(broker, messages), asyncio.run(link_receives(broker, messages))),
        }
    print(f"{messages:,} messages   paho's thread            link     ratio")
    for name, (theirs, ours) in rows.items():
        columns = "  ".join(f"{rate:8,.0f}/s {cpu:3.0f} µs" for rate, cpu in (theirs, ours))
        print(f"{name:15} {columns}  {ours[0] / theirs[0]:8.2f}")


if __name__ == "__main__":
    main()
