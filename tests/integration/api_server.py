"""The API on a real server and a real PostgreSQL, and the agents and rows that tests put there."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from PIL import Image

from cloud_hub import events, queues
from cloud_hub.api import app as api
from cloud_hub.api import context, submissions
from cloud_hub.store import agents, apply, ends, lanes, migrate, pool
from shared import lanes as protocol
from shared import signals, tasks, topics, wire

ARROW = {"accept": wire.CONTENT_TYPE}
PRESS_A = topics.Agent("lyon", "press-a")


@dataclass
class Served:
    """A running API and what stands behind it."""

    url: str
    client: httpx.AsyncClient
    pool: pool.Pool
    events: events.Events
    submitter: submissions.Submitter
    queues: queues.Queues
    app: FastAPI
    told: list[ends.Outcome] = field(default_factory=list)
    """What the API told of what requests changed."""

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return await (await connection.execute(sql.encode())).fetchall()

    async def submit(self, **query: Any) -> str:
        """Submit an image; the id of its task."""
        answer = await self.client.post("/v1/tasks", params={"model": "defects", **query}, content=png())
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id


@contextlib.asynccontextmanager
async def serving(
    dsn: str,
    settings: context.Settings | None = None,
    committer: submissions.Committer | None = None,
    max_waiting_tasks: int = submissions.MAX_WAITING_TASKS,
    **collaborators: Any,
) -> AsyncIterator[Served]:
    """The API on a free port, on the newest schema; stopped as a hub stops it."""
    await migrate.migrate(dsn)
    here = events.Events()
    told: list[ends.Outcome] = []

    def tell(outcome: ends.Outcome) -> None:
        told.append(outcome)
        for end in outcome.ended:
            here.publish(events.TaskEnded(end.task_id, end.state, end.reason, end.model))

    async with pool.open_pool(dsn, max_size=8) as connections, asyncio.TaskGroup() as group:
        limits = queues.Queues(connections)
        submitter = submissions.Submitter(
            committer
            or submissions.into(
                connections, tell, limits, database_wait_s=(settings or context.Settings()).database_wait_s
            ),
            max_waiting_tasks=max_waiting_tasks,
        )
        flusher = group.create_task(submitter.run(), name="submissions")
        app = api.create(
            connections, submitter, here, settings=settings, limits=limits, tell=tell, **collaborators
        )
        draining = group.create_task(app.state.drains.run(), name="drains")
        # Said to be TCP, so that asyncio turns Nagle's algorithm off: it would cost 40 ms an answer.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(512)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            server = uvicorn.Server(
                uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=5)
            )
            running = group.create_task(server.serve(sockets=[listener]), name="server")
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                try:
                    yield Served(url, client, connections, here, submitter, limits, app, told)
                finally:
                    here.close()
                    server.should_exit = True
                    await running
                    flusher.cancel()
                    draining.cancel()


async def main(dsn: str) -> None:
    """A hub's HTTP side as a process of its own, for tests that kill it; it says where it is."""
    async with serving(dsn) as served:
        print(served.url, flush=True)
        await asyncio.Event().wait()


def png(colour: int = 0) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("L", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    return out.getvalue()


def arrow(columns: dict[str, Sequence[Any] | pa.Array]) -> bytes:
    """Columns as an Arrow IPC stream."""
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(memoryview(sink.getvalue()))


async def join(
    connections: pool.Pool,
    place: topics.Agent = PRESS_A,
    *,
    epoch: int = 1,
    online: bool = True,
    telemetry: signals.Telemetry | None = None,
) -> int:
    """An agent that the store knows; returns its id."""
    async with connections.connection() as connection:
        seen = await agents.seen(connection, place, epoch, online=online, software="backhaul 0.1.0")
        if telemetry is not None:
            await agents.save_telemetry(connection, {seen.agent_id: telemetry})
    return seen.agent_id


def telemetry(**said: Any) -> signals.Telemetry:
    """A heartbeat."""
    told: dict[str, Any] = {"epoch": 1, "sequence": 1, "capacity": 4, "models": [model()], **said}
    return signals.Telemetry(**told)


def model(
    name: str = "defects", version: str = "3", provider: str = "CPU", wanted: str = ""
) -> signals.ModelReport:
    return signals.ModelReport(
        name=name,
        version=version,
        provider=f"{provider}ExecutionProvider",
        wanted=f"{wanted}ExecutionProvider" if wanted else "",
        items_per_s=40.0,
    )


def results(count: int, **columns: Any) -> pa.RecordBatch:
    """Result rows as an agent sends them, each of a task of its own; a column may be one value for all."""
    fields: dict[str, Any] = {
        "task_id": [tasks.new_id() for _ in range(count)],
        "item": 0,
        "attempt": 0,
        "device": "camera-7",
        "model": "defects",
        "version": "3",
        "outcome": "ok",
        "label": "scratch",
        "score": 0.9,
        "output": '{"label": "scratch", "scores": [0.9, 0.1]}',
        "observed_at": datetime.now(UTC),
        "run_us": 8210,
        "wait_us": 900,
        **columns,
    }
    return wire.build(
        wire.RESULTS,
        {name: value if isinstance(value, list) else [value] * count for name, value in fields.items()},
    )


async def record(
    connections: pool.Pool, agent_id: int, rows: pa.RecordBatch, numbered: int | None = None
) -> None:
    """Commit result rows as the gateway does, with the lane's cursor; `numbered` more may be on their way."""
    lane = protocol.Lane("results")
    async with connections.connection() as connection, connection.transaction():
        cursor = await lanes.lock(connection, agent_id, lane)
        applied = await apply.results(connection, agent_id, rows)
        last = cursor.cursor + rows.num_rows
        added = applied.inserted + applied.shadowed
        await lanes.advance(
            connection, agent_id, lane, last=last, added=added, numbered=max(last, numbered or 0)
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
