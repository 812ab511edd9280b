"""Results over REST: of one task, by the page, or all of them as an Arrow stream."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from cloud_hub.api import context, problems, streams, task_view
from cloud_hub.store import pool
from cloud_hub.store import results as result_store
from shared import jobs, tasks, wire

router = APIRouter(tags=["results"])

_IPC: Final = pa.ipc.IpcWriteOptions(compression="zstd")


class Result(BaseModel):
    """What became of one item of a task."""

    task_id: str = Field(description="The task", examples=[task_view.ID])
    item: int = Field(description="The item in it, from 0", examples=[0])
    attempt: int = Field(description="The attempt that gave it; 0: the origin ran it itself", examples=[0])
    site: str = Field(description="The site of the agent that ran it", examples=["lyon-press"])
    agent: str = Field(description="The agent that ran it", examples=["press-a"])
    device: str | None = Field(description="The device it is of", examples=["camera-7"])
    model: str = Field(description="The model that ran", examples=["surface-defects"])
    version: str = Field(description="The version that ran", examples=["3"])
    outcome: tasks.Outcome = Field(description="How it ended", examples=[tasks.Outcome.OK])
    label: str | None = Field(description="The verdict, for models that give one", examples=["scratch"])
    score: float | None = Field(description="Its score", examples=[0.913])
    output: Any = Field(
        description="The model's whole output, as its postprocessing makes it", examples=[None]
    )
    error: str | None = Field(description="What failed", examples=[None])
    observed_at: datetime = Field(description="When the job was accepted, by the agent's clock")
    clock_offset_us: int | None = Field(description="The hub's clock minus the agent's, when last measured")
    clock_error_us: int | None = Field(description="How far off that may be")
    wait_us: int | None = Field(
        description="Microseconds from acceptance to the start of its batch", examples=[1800]
    )
    run_us: int | None = Field(description="Microseconds that its batch ran", examples=[8210])
    received_at: datetime = Field(description="When the hub committed it")


class ResultList(BaseModel):
    """The results of one task."""

    results: list[Result] = Field(description="By item")


class ResultPage(BaseModel):
    """A page of results."""

    results: list[Result] = Field(description="Newest task first")
    next: str | None = Field(
        description="Ask again with this as `cursor` for the next page; null: there is none",
        examples=["AZkNim8rfEGdPluPChwtPgAAAAA"],
    )


class Wanted(BaseModel):
    """Which results."""

    model_config = ConfigDict(extra="forbid")

    task_id: str | None = Field(None, description="Of this task", examples=[task_view.ID])
    site: str | None = Field(None, description="Of agents of this site", examples=["lyon-press"])
    agent: str | None = Field(None, description="Of agents of this name", examples=["press-a"])
    model: str | None = Field(None, description="Of this model", examples=["surface-defects"])
    version: str | None = Field(None, description="Of this version of it", examples=["3"])
    device: str | None = Field(None, description="Of this device", examples=["camera-7"])
    label: str | None = Field(None, description="With this label", examples=["scratch"])
    outcome: tasks.Outcome | None = Field(None, description="With this outcome")
    since: AwareDatetime | None = Field(None, description="Of tasks made at this instant or later")
    until: AwareDatetime | None = Field(None, description="Of tasks made before this instant")
    cursor: str | None = Field(None, description="`next` of the page before")
    limit: int = Field(100, ge=1, le=5000, description="Results of one page; a stream has no pages")

    def filter(self) -> result_store.Filter:
        fields = self.model_dump(exclude={"cursor", "limit", "task_id"})
        return result_store.Filter(task_id=_task_id(self.task_id) if self.task_id else None, **fields)


_ARROW_ANSWER: Final[problems.Responses] = {
    200: {
        "description": "A page of results; or, for `Accept: application/vnd.apache.arrow.stream`, all of "
        "them as an Arrow IPC stream, oldest task first",
        "content": {wire.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/v1/results",
    summary="Results, by the page or as an Arrow stream",
    response_model=ResultPage,
    responses=_ARROW_ANSWER | problems.documented(problems.INVALID, problems.BUSY),
)
async def list_results(
    request: Request, hub: context.Dependency, wanted: Annotated[Wanted, Query()]
) -> Response:
    """Result rows, newest task first. An Arrow stream has no limit: it takes the memory of one batch."""
    if wire.CONTENT_TYPE in request.headers.get("accept", ""):
        return streams.Stream(
            _export(hub, wanted.filter()),
            media_type=wire.CONTENT_TYPE,
            headers={"content-disposition": 'attachment; filename="results.arrows"'},
        )
    after = _position(wanted.cursor) if wanted.cursor else None
    async with hub.connection() as connection:
        page = await result_store.page(connection, wanted.filter(), after=after, limit=wanted.limit)
    body = {"results": _rows(page.rows), "next": _cursor(page.next) if page.next else None}
    return Response(msgspec.json.encode(body), media_type=jobs.JSON)


@router.get(
    "/v1/tasks/{task_id}/results",
    summary="The results of one task",
    response_model=ResultList,
    responses=problems.documented(problems.INVALID),
)
async def of_task(
    hub: context.Dependency,
    task_id: Annotated[str, Path(description="The task's id", examples=[task_view.ID])],
) -> Response:
    """The result rows of a task by item, also of one that ran at its origin; none yet is an empty list."""
    wanted = _task_id(task_id)
    async with hub.connection() as connection:
        rows = await result_store.of_task(connection, wanted)
    return Response(msgspec.json.encode({"results": _rows(rows)}), media_type=jobs.JSON)


@asynccontextmanager
async def _export(hub: context.Hub, wanted: result_store.Filter) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of an Arrow stream of all results; the connection is held until the client has read them."""
    with hub.exports.enter():
        async with hub.lend() as connection, aclosing(_batches(connection, wanted)) as batches:
            first = await anext(batches, None)  # an error shows here, while it can still be answered
            async with aclosing(_arrow(first, batches)) as chunks:
                yield chunks


async def _batches(
    connection: pool.Connection, wanted: result_store.Filter
) -> AsyncGenerator[pa.RecordBatch]:
    async for batch in result_store.stream(connection, wanted):
        yield batch


async def _arrow(first: pa.RecordBatch | None, rest: AsyncIterator[pa.RecordBatch]) -> AsyncGenerator[bytes]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, result_store.SCHEMA, options=_IPC) as writer:
        if first is not None:
            await asyncio.to_thread(writer.write_batch, first)
            yield _drain(sink)
            async for batch in rest:
                await asyncio.to_thread(writer.write_batch, batch)
                yield _drain(sink)
    yield _drain(sink)


def _drain(sink: io.BytesIO) -> bytes:
    chunk = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return chunk


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as JSON has them: ids and instants written out, the model's output as it is."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    for row in rows:
        row["task_id"] = tasks.format_id(row["task_id"])
        row["observed_at"] = _instant(row["observed_at"])
        row["received_at"] = _instant(row["received_at"])
        row["output"] = _output(row["output"])
    return rows


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _output(text: str | None) -> object:
    """The output as JSON, or as the text that it is if an agent wrote something else."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _cursor(position: result_store.Position) -> str:
    raw = position.task_id + position.item.to_bytes(4, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _position(cursor: str) -> result_store.Position:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 20:
        raise problems.Problem(
            problems.INVALID, "the cursor is none that a page of results gave as `next`", where="cursor"
        )
    return result_store.Position(raw[:16], int.from_bytes(raw[16:], "big", signed=True))


def _task_id(text: str) -> bytes:
    try:
        return tasks.parse_id(text)
    except ValueError as wrong:
        raise problems.Problem(problems.INVALID, str(wrong), where="task_id") from None
