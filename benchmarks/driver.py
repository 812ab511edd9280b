"""Devices: publish pictures to a broker, a fixed number without a reply at any time, and time the replies.

Every job in flight has a slot: a reply topic of its own, and a packet id. A reply sends the slot's next job.

Broker, driver and the measured program share the cores, so the driver must cost next to nothing: its MQTT
packets (version 5, QoS 1 both ways) are made before the clock runs, and a plain socket carries them.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import pictures, worker

REPLIES: Final = "devices/replies"

# MQTT 5.0, 2.1 and 3: the first byte of a packet
CONNECT: Final = 0x10
CONNACK: Final = 0x20
PUBLISH: Final = 0x32  # QoS 1
PUBACK: Final = 0x40
SUBSCRIBE: Final = 0x82
SUBACK: Final = 0x90
KIND: Final = 0xF0

CONTENT_TYPE: Final = b"\x03"
RESPONSE_TOPIC: Final = b"\x08"
TIMEOUT_S: Final = 60.0


class Driver:
    """Keeps `in_flight` jobs without a reply until `warm` and then `count` of them have been answered."""

    def __init__(
        self, port: int, topic: str, encoded: list[bytes], in_flight: int, warm: int, count: int
    ) -> None:
        self._in_flight = in_flight
        self._warm = warm
        self._count = count
        self._jobs = [
            itertools.cycle([_job(topic, slot, picture) for picture in encoded]) for slot in range(in_flight)
        ]
        self._received = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receive_maximum = b"\x03\x21" + struct.pack("!H", 2 * in_flight)
        self._ask(
            _packet(
                CONNECT,
                _text("MQTT") + b"\x05\x02" + struct.pack("!H", 0) + receive_maximum + _text("devices"),
            ),
            CONNACK,
        )
        self._ask(_packet(SUBSCRIBE, b"\x00\x01\x00" + _text(f"{REPLIES}/+") + b"\x01"), SUBACK)

    def run(self) -> dict[str, float]:
        """Jobs a second, latencies (ms), CPU seconds of this process; of the counted jobs alone."""
        sent_at = [time.perf_counter()] * self._in_flight
        self._socket.sendall(b"".join(next(jobs) for jobs in self._jobs))
        latencies: list[float] = []
        answered, began, cpu = 0, 0.0, 0.0
        while len(latencies) < self._count:
            replies = self._replies()
            now = time.perf_counter()
            out = bytearray()
            for slot, packet_id in replies:
                out += b"\x40\x02" + packet_id
                out += next(self._jobs[slot])
                answered += 1
                if answered > self._warm:
                    latencies.append(now - sent_at[slot])
                elif answered == self._warm:
                    worker.tell({"warm": True})
                    began, cpu = now, time.process_time()
                sent_at[slot] = now
            self._socket.sendall(out)
        took = time.perf_counter() - began
        ordered = sorted(latencies)
        return {
            "jobs_per_s": len(latencies) / took,
            "p50_ms": 1000 * ordered[len(ordered) // 2],
            "p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
            "cpu_s": time.process_time() - cpu,
        }

    def _replies(self) -> list[tuple[int, bytes]]:
        """The slot and the packet id of each reply that has come; waits for one packet at least."""
        replies = []
        for kind, body in self._packets():
            if kind & KIND == PUBLISH & KIND:
                length = int.from_bytes(body[:2], "big")
                slot = int(body[2 + len(REPLIES) + 1 : 2 + length])
                replies.append((slot, bytes(body[2 + length : 4 + length])))
        return replies

    def _packets(self) -> Iterator[tuple[int, memoryview]]:
        """First byte and body of each whole packet; waits until something comes."""
        chunk = self._socket.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the broker has closed the connection")
        received = self._received + chunk
        view = memoryview(received)
        at = 0
        while True:
            size, begin = _size(view, at)
            if begin + size > len(view):
                break
            yield view[at], view[begin : begin + size]
            at = begin + size
        self._received = received[at:]

    def _ask(self, packet: bytes, answer: int) -> None:
        self._socket.sendall(packet)
        if answer not in [kind for kind, _ in self._packets()]:
            raise ConnectionError("the broker did not answer as it should")


def _job(topic: str, slot: int, picture: bytes) -> bytes:
    """The whole PUBLISH packet."""
    properties = CONTENT_TYPE + _text("image/png") + RESPONSE_TOPIC + _text(f"{REPLIES}/{slot}")
    head = _text(topic) + struct.pack("!H", slot + 1) + _varint(len(properties)) + properties
    return _packet(PUBLISH, head + picture)


def _packet(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + _varint(len(body)) + body


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text)) + text.encode()


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first (1.5.5)."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


def _size(view: memoryview, at: int) -> tuple[int, int]:
    """How long the body of the packet at `at` is, and where it begins; beyond the end if it is cut short."""
    value = shift = 0
    for place in range(at + 1, min(at + 5, len(view))):
        value |= (view[place] & 0x7F) << shift
        if view[place] < 0x80:
            return value, place + 1
        shift += 7
    return 0, len(view) + 1


def main() -> None:
    given = worker.arguments()
    encoded = pictures.load(Path(given.pop("pictures")))
    driver = Driver(encoded=encoded, **given)
    worker.tell({"ready": True})
    worker.hear()
    worker.tell(driver.run())
    worker.hear()


if __name__ == "__main__":
    main()
