"""HTTP clients: keep-alive connections, each with one request without an answer at any time.

Server and clients share the cores, so the clients must cost next to nothing: requests are made before the
clock runs, and plain sockets carry them. All ways are asked by this one client, with the same bodies.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import worker

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60.0


class NotAnswered(AssertionError):
    """A server hung up, or answered with something else than 200."""


class Connection:
    """HTTP/1.1, a request at a time, and when it was sent."""

    def __init__(self, port: int, requests: itertools.cycle[bytes]) -> None:
        self._requests = requests
        self._received = b""
        self.sent_at = 0.0
        self.socket = socket.create_connection((HOST, port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(next(self._requests))

    def answer(self) -> bytes | None:
        """The body, once the whole of it is here. Raises NotAnswered."""
        chunk = self.socket.recv(1 << 16)
        self._received += chunk
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and head.startswith(b"HTTP/1.1 200"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(body) == length:
                self._received = b""
                return body
        elif end or not chunk:
            raise NotAnswered(self._received.decode(errors="replace"))
        return None


class Client:
    """Keeps `connections` requests unanswered until `warm` and then `count` of them have been answered."""

    def __init__(
        self, port: int, path: str, bodies: list[bytes], connections: int, warm: int, count: int
    ) -> None:
        requests = [_request(path, body) for body in bodies]
        self._warm = warm
        self._count = count
        self._selector = selectors.DefaultSelector()
        self._connections = []
        for place in range(connections):
            order = itertools.cycle(requests[place % len(requests) :] + requests[: place % len(requests)])
            connection = Connection(port, order)
            self._connections.append(connection)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def run(self) -> dict[str, float]:
        """Requests a second, latencies (ms), CPU seconds of this process; of the counted requests alone."""
        for connection in self._connections:
            connection.ask()
        latencies: list[float] = []
        answered, began, cpu = 0, 0.0, 0.0
        while len(latencies) < self._count:
            ready = self._selector.select(TIMEOUT_S)
            if not ready:
                raise NotAnswered(f"nothing was answered for {TIMEOUT_S:g} s")
            for key, _ in ready:
                asked: Connection = key.data
                if asked.answer() is None:
                    continue
                now = time.perf_counter()
                answered += 1
                if answered > self._warm:
                    latencies.append(now - asked.sent_at)
                elif answered == self._warm:
                    worker.tell({"warm": True})
                    began, cpu = time.perf_counter(), time.process_time()
                asked.ask()
        took = time.perf_counter() - began
        ordered = sorted(latencies)
        return {
            "per_s": len(latencies) / took,
            "p50_ms": 1000 * ordered[len(ordered) // 2],
            "p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
            "cpu_s": time.process_time() - cpu,
        }


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    given: dict[str, Any] = worker.arguments()
    bodies = Path(given.pop("bodies")).read_bytes().splitlines()
    client = Client(bodies=bodies, **given)
    worker.tell({"ready": True})
    worker.hear()
    worker.tell(client.run())
    worker.hear()


if __name__ == "__main__":
    main()
