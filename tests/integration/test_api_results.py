"""Results over REST: pages that miss nothing, and streams of any length in little memory."""

from __future__ import annotations

import asyncio
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from cloud_hub.api import context
from cloud_hub.api import results as result_api
from cloud_hub.store import results as result_store
from shared import tasks, topics, wire
from tests.integration import api_server
from tests.integration.api_server import ARROW, Served, join, record, results

MANY = 50_000


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


async def test_a_result_is_told_as_it_was_recorded(hub: Served) -> None:
    """A row has every column that the agent sent, who sent it, and the output as JSON, not as text."""
    rows = results(1, error=None, clock_offset_us=-1200, clock_error_us=400)
    await record(hub.pool, await join(hub.pool), rows)
    (row,) = (await hub.client.get("/v1/results")).json()["results"]
    result_api.Result.model_validate(row)
    assert row["task_id"] == tasks.format_id(rows["task_id"][0].as_py())
    assert (row["site"], row["agent"], row["device"]) == ("lyon", "press-a", "camera-7")
    assert (row["label"], row["outcome"], row["clock_offset_us"]) == ("scratch", "ok", -1200)
    assert row["score"] == pytest.approx(0.9)
    assert row["output"] == {"label": "scratch", "scores": [0.9, 0.1]}
    assert datetime.fromisoformat(row["observed_at"]) == rows["observed_at"][0].as_py()


async def test_output_that_is_no_json_stays_text(hub: Served) -> None:
    """One agent that writes something else than JSON as output does not break the answer."""
    await record(hub.pool, await join(hub.pool), results(1, output="not { json"))
    assert (await hub.client.get("/v1/results")).json()["results"][0]["output"] == "not { json"


async def test_the_results_of_a_task_come_by_item(hub: Served) -> None:
    """A task's results are its rows in the order of its items, and none before it has any."""
    task_id = tasks.new_id()
    address = f"/v1/tasks/{tasks.format_id(task_id)}/results"
    assert (await hub.client.get(address)).json() == {"results": []}
    await record(hub.pool, await join(hub.pool), results(5, task_id=[task_id] * 5, item=[3, 1, 4, 0, 2]))
    assert [row["item"] for row in (await hub.client.get(address)).json()["results"]] == [0, 1, 2, 3, 4]


async def test_paging_meets_every_row_once_while_others_come(hub: Served) -> None:
    """Walking the pages shows each row that was there exactly once, tasks of many items included."""
    agent = await join(hub.pool)
    many = tasks.new_id()
    await record(hub.pool, agent, results(40))
    await record(hub.pool, agent, results(30, task_id=[many] * 30, item=list(range(30))))
    there = set(await hub.rows("SELECT task_id, item FROM results"))
    met: list[tuple[bytes, int]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await hub.client.get("/v1/results", params={"limit": 7, **cursor})).json()
        met += [(tasks.parse_id(row["task_id"]), row["item"]) for row in page["results"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        await record(hub.pool, agent, results(3))
    assert len(met) == 70
    assert set(met) == there


FILTERS: list[tuple[dict[str, str], set[str]]] = [
    ({"model": "ocr"}, {"ocr"}),
    ({"model": "ocr", "version": "9"}, set()),
    ({"label": "dent"}, {"dent"}),
    ({"outcome": "failed"}, {"failed"}),
    ({"device": "camera-9"}, {"camera-9"}),
    ({"site": "gdansk"}, {"gdansk"}),
    ({"site": "lyon", "agent": "jetson"}, set()),
    ({"agent": "jetson"}, {"gdansk"}),
]


@pytest.mark.parametrize(("wanted", "found"), FILTERS, ids=[str(wanted) for wanted, _ in FILTERS])
@pytest.mark.parametrize("form", ["pages", "stream"])
async def test_filters_leave_what_they_name(
    hub: Served, wanted: dict[str, str], found: set[str], form: str
) -> None:
    """Each filter, and all of them together, hold for pages and for streams alike."""
    lyon = await join(hub.pool)
    gdansk = await join(hub.pool, topics.Agent("gdansk", "jetson"))
    await record(hub.pool, lyon, results(1, model="ocr", error="ocr"))
    await record(hub.pool, lyon, results(1, label="dent", error="dent"))
    await record(hub.pool, lyon, results(1, outcome="failed", error="failed"))
    await record(hub.pool, lyon, results(1, device="camera-9", error="camera-9"))
    await record(hub.pool, gdansk, results(1, error="gdansk"))
    assert {row["error"] for row in await _read(hub, wanted, form)} == found


@pytest.mark.parametrize("form", ["pages", "stream"])
async def test_since_and_until_bound_the_time_of_the_tasks(hub: Served, form: str) -> None:
    """`since` is included, `until` is not; both go by when the tasks were made."""
    instants = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day) for day in range(4)]
    ids = [int(at.timestamp() * 1000).to_bytes(6, "big") + tasks.new_id()[6:] for at in instants]
    await record(hub.pool, await join(hub.pool), results(4, task_id=ids, error=["0", "1", "2", "3"]))
    wanted = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-04T01:00:00+01:00"}
    assert {row["error"] for row in await _read(hub, wanted, form)} == {"1", "2"}


async def _read(hub: Served, wanted: dict[str, str], form: str) -> list[dict[str, Any]]:
    if form == "pages":
        rows: list[dict[str, Any]] = (await hub.client.get("/v1/results", params=wanted)).json()["results"]
        return rows
    answer = await hub.client.get("/v1/results", params=wanted, headers=ARROW)
    assert answer.headers["content-type"] == wire.CONTENT_TYPE
    streamed: list[dict[str, Any]] = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    return streamed


async def test_a_stream_of_very_many_rows_takes_little_memory(hub: Served) -> None:
    """50,000 rows come whole and in order as one Arrow stream; the hub holds a small part of them."""
    agent = await join(hub.pool)
    for _ in range(5):
        await record(hub.pool, agent, results(MANY // 5))
    await hub.client.get("/v1/results", params={"limit": 1}, headers=ARROW)  # what is made once, is made
    size = 0
    pa.default_memory_pool().release_unused()
    arrow_before = pa.total_allocated_bytes()
    arrow_peak = 0
    tracemalloc.start()
    with tempfile.TemporaryFile() as file:  # so that what the reader keeps does not count
        async with hub.client.stream("GET", "/v1/results", headers=ARROW) as answer:
            async for chunk in answer.aiter_bytes():
                size += len(chunk)
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
                file.write(chunk)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        file.seek(0)
        table = pa.ipc.open_stream(file.read()).read_all()
    assert table.schema == result_store.SCHEMA
    assert table.num_rows == MANY
    ids = table["task_id"].to_pylist()
    assert ids == sorted(ids)
    assert len(set(ids)) == MANY
    whole = table.nbytes
    assert peak < 25e6, f"{peak / 1e6:.0f} MB at its peak, for {whole / 1e6:.0f} MB of rows"
    assert arrow_peak < whole / 2


async def test_an_empty_stream_is_a_stream(hub: Served) -> None:
    """No rows are an Arrow stream of the same columns, with nothing in it."""
    answer = await hub.client.get("/v1/results", headers=ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    assert (table.schema, table.num_rows) == (result_store.SCHEMA, 0)


async def test_a_reader_that_leaves_gives_its_connection_back(database: str) -> None:
    """Streams are bounded, and one that is broken off by its reader makes room for the next at once."""
    async with api_server.serving(database, context.Settings(max_exports=1)) as hub:
        agent = await join(hub.pool)
        for _ in range(3):
            await record(hub.pool, agent, results(8000, output="x" * 400))
        async with hub.client.stream("GET", "/v1/results", headers=ARROW) as answer:
            await anext(answer.aiter_bytes())
            refused = await hub.client.get("/v1/results", headers=ARROW)
            assert (refused.status_code, refused.json()["type"]) == (429, "/problems/busy")
        async with asyncio.timeout(5):
            while hub.app.state.hub.exports.inside:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await hub.client.get("/v1/results", headers=ARROW)).status_code == 200
