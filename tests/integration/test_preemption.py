"""Something urgent comes while all room is taken: the hub, an agent of the pool, and real work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psycopg
import pyarrow as pa
import pytest

from demo import program, servers
from shared import jobs
from tests import models
from tests.integration import agents

ITEMS = 4_000
PATIENCE_S = 60.0


def windows(count: int) -> bytes:
    """An Arrow stream of numbers, each an item whose score is the number itself."""
    numbers = pa.array([[float(number)] * 4 for number in range(count)], pa.list_(pa.float32(), 4))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([pa.field("window", numbers.type)])) as writer:
        writer.write_batch(pa.record_batch([numbers], ["window"]))
    return bytes(sink.getvalue().to_pybytes())


@pytest.fixture
async def hub(tmp_path: Path, database: str) -> AsyncIterator[program.Program]:
    """A hub whose one agent takes one task at a time and runs it slowly, item by item."""
    async with servers.Mosquitto(tmp_path / "broker") as broker:
        one = program.Program("hub", ["cloud-hub", "serve"], tmp_path / "hub.toml")
        one.configure({"database": database, "broker": {"host": broker.host, "port": broker.port}})
        models.write_slow_scorer(tmp_path / "pool" / "models" / "slow", extra="[batching]\nmax_batch = 1")
        worker = agents.agent(
            tmp_path / "pool",
            None,
            broker,
            site="cloud",
            name="pool-1",
            leases={"slots": 1},
            uplink={"telemetry_s": 0.1},
        )
        async with agents.running(one), agents.running(worker):
            yield one


async def submit(client: httpx.AsyncClient, items: int, priority: int) -> str:
    answer = await client.post(
        "/v1/tasks",
        params={"model": "slow", "priority": priority},
        content=windows(items),
        headers={"content-type": jobs.ARROW},
    )
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


async def test_something_urgent_makes_room_and_no_work_is_lost(hub: program.Program, database: str) -> None:
    """The agent's one place is taken by a long task: it stops between two items for a more urgent one, goes
    on after it from there, and has one row of each item; nobody stops for one that is not more urgent."""
    async with httpx.AsyncClient(base_url=hub.url, timeout=PATIENCE_S) as client:
        long = await submit(client, ITEMS, priority=3)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            rows = 0
            while not 0 < rows < ITEMS:
                found = await (await connection.execute("SELECT count(*) FROM results")).fetchone()
                assert found is not None
                (rows,) = found
            same = await submit(client, 1, priority=3)
            urgent = await submit(client, 10, priority=8)
            ends = {}
            for task_id in (urgent, long, same):
                task = (await client.get(f"/v1/tasks/{task_id}", params={"wait": PATIENCE_S})).json()
                assert task["state"] == "COMPLETED", task
                ends[task_id] = task["finished_at"]
                if task_id == long:
                    attempts = task["attempts"]
            assert ends[urgent] < ends[long] < ends[same], "the interrupted task is older than its equal"
            first, last = attempts
            assert (first["state"], last["state"]) == ("QUEUED", "COMPLETED")
            assert 0 < first["items_done"] < ITEMS
            query = """
                SELECT count(*), count(DISTINCT item), sum(score)::int, (SELECT count(*) FROM shadows)
                FROM results WHERE task_id = %s
            """
            found = await (await connection.execute(query, (long,))).fetchone()
            assert found == (ITEMS, ITEMS, ITEMS * (ITEMS - 1) // 2, 0)
