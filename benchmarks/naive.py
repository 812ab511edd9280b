"""What one writes without Backhaul: each result row a JSON message, MQTT QoS 1, to a script that INSERTs.

Two processes, a producer and a consumer, each with paho's own network thread. The producer keeps as many
messages in flight as the broker takes. Nothing is kept for when the link or a process is down.
"""

from __future__ import annotations

import json
import queue
import threading
from datetime import UTC, datetime
from typing import Any

import psycopg
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks import rows, worker
from edge_agent.journal import records
from shared import tasks

TOPIC = "naive/results"
IN_FLIGHT = 100

COLUMNS = (*records.ResultRow._fields, "agent_id")
INSERT = (
    f"INSERT INTO results ({', '.join(COLUMNS)}) VALUES ({', '.join(f'%({column})s' for column in COLUMNS)})"
)


def produce(port: int, count: int) -> None:
    """Publish `count` rows at the word, each acknowledged by the broker."""
    made = [row for _, ends in rows.batches(count) for end in ends for row in end.rows]
    client = paho.Client(CallbackAPIVersion.VERSION2, "naive-producer")
    client.max_inflight_messages_set(IN_FLIGHT)
    room = threading.Semaphore(IN_FLIGHT)
    client.on_publish = lambda *_: room.release()
    client.connect("127.0.0.1", port)
    client.loop_start()
    worker.tell({"ready": True})
    worker.hear()
    for row in made:
        room.acquire()
        client.publish(TOPIC, _encode(row), qos=1)
    for _ in range(IN_FLIGHT):
        room.acquire()
    worker.tell({"published": count})
    worker.hear()


def consume(port: int, dsn: str, count: int, together: int) -> None:
    """Insert `count` rows, so many in each transaction, then say so."""
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    client = paho.Client(CallbackAPIVersion.VERSION2, "naive-consumer")
    client.on_message = lambda _client, _userdata, message: arrived.put(bytes(message.payload))
    client.on_subscribe = lambda *_: worker.tell({"ready": True})
    client.connect("127.0.0.1", port)
    client.subscribe(TOPIC, qos=1)
    client.loop_start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        left = count
        while left:
            batch = [_decode(arrived.get()) for _ in range(min(together, left))]
            if together == 1:
                connection.execute(INSERT, batch[0])
            else:
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.executemany(INSERT, batch)
            left -= len(batch)
    worker.tell({"committed": count})
    worker.hear()


def _encode(row: records.ResultRow) -> bytes:
    document = row._asdict() | {
        "task_id": tasks.format_id(row.task_id),
        "observed_at": datetime.fromtimestamp(row.observed_at / 1e6, UTC).isoformat(),
    }
    return json.dumps(document).encode()


def _decode(payload: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(payload)
    return document | {"agent_id": 1}


def main() -> None:
    given = worker.arguments()
    if given.pop("role") == "produce":
        produce(**given)
    else:
        consume(**given)


if __name__ == "__main__":
    main()
