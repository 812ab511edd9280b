"""Tasks over REST: submitted, awaited, listed, cancelled, asked to run again."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from cloud_hub.api import context, intake, problems, submissions, task_view
from cloud_hub.store import ends, pool
from cloud_hub.store import tasks as task_store
from shared import jobs, tasks

POLL_S: Final = 1.0
"""How often a waiting client's task is looked at, should its event never come here."""
MAX_WAIT_S: Final = 60.0
THREAD_BYTES: Final = 64 << 10
"""From this size on a body is parsed in a thread, so that other requests are not held up."""

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

TaskId = Annotated[str, Path(description="The task's id", examples=[task_view.ID])]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="The same key again is the same task again, however often it is sent",
        examples=["part-88121"],
    ),
]
Traceparent = Annotated[str | None, Header(description="W3C trace context", examples=[None])]


class Beside(BaseModel):
    """What may be said about a task beside its body. In a JSON body the same fields may stand in it."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, description="The model to run, `NAME` or `NAME@VERSION`", examples=["surface-defects"]
    )
    version: str | None = Field(None, description="Its version, if not in `model`", examples=["3"])
    priority: int | None = Field(None, description="0 to 9; a higher number goes first; 5 if not said")
    queue: str | None = Field(None, description="The fair-share class", examples=["default"])
    timeout_ms: int | None = Field(None, description="How long one attempt may run")
    deadline_ms: int | None = Field(None, description="How long from now the answer is of use")
    max_attempts: int | None = Field(None, description="Attempts that may fail; 3 if not said")
    idempotency_key: str | None = Field(None, description="As the header `Idempotency-Key`")
    device: str | None = Field(None, description="The device it is of", examples=["camera-7"])


def _body(description: str, content: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_OIP: Final = {
    "model": "surface-defects",
    "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}],
    "parameters": {"priority": 7},
}
_IMAGE: Final = {"model": "surface-defects", "image": "iVBORw0KGgo…", "priority": 7}
_ONE: Final = _body(
    "An image, a JSON task (an image in base64 or an Open Inference Protocol v2 request), or an Arrow "
    "stream of which each row is an item.",
    {
        jobs.PNG: _BINARY,
        jobs.JPEG: _BINARY,
        jobs.JSON: {
            "schema": {"type": "object"},
            "examples": {
                "image": {"summary": "An image", "value": _IMAGE},
                "tensors": {"summary": "Open Inference Protocol v2: two items", "value": _OIP},
            },
        },
        jobs.ARROW: _BINARY,
    },
)
_MANY: Final = _body(
    "JSON with one object a task, each as a single JSON task would be; or an Arrow stream with one row a "
    "task: `payload` (binary), `model`, and as needed `content_type`, `device` and the metadata's names.",
    {
        jobs.JSON: {
            "schema": {
                "type": "object",
                "required": ["tasks"],
                "properties": {"tasks": {"type": "array", "items": {"type": "object"}}},
            },
            "example": {"tasks": [_IMAGE, _OIP]},
        },
        jobs.ARROW: _BINARY,
    },
)


@router.post(
    "",
    status_code=202,
    summary="Submit a task",
    response_model=task_view.Submitted,
    responses=problems.documented(
        problems.REJECTED, problems.INVALID, problems.TOO_LARGE, problems.UNSUPPORTED, problems.BUSY
    ),
    openapi_extra=_ONE,
)
async def submit(
    request: Request,
    hub: context.Dependency,
    beside: Annotated[Beside, Query()],
    idempotency_key: Key = None,
    traceparent: Traceparent = None,
) -> Response:
    """Take one task. The answer comes when PostgreSQL has committed it: from then on it is not lost.

    `Location` is the address of the task.
    """
    properties = beside.model_dump(exclude_none=True, exclude={"model", "device"})
    if idempotency_key is not None:
        if beside.idempotency_key not in (None, idempotency_key):
            raise problems.Problem(
                problems.REJECTED,
                "the header and the query name two idempotency keys; name one",
                where="idempotency_key",
            )
        properties["idempotency_key"] = idempotency_key
    if traceparent is not None:
        properties["traceparent"] = traceparent
    async with hub.bodies.read(request, hub.settings.max_task_bytes) as body:
        content_type = request.headers.get("content-type", "")
        raw = intake.Raw(body, content_type, beside.model, beside.device, properties)
        if len(body) < THREAD_BYTES:
            submission = intake.one(raw, hub.tag, hub.settings.max_task_bytes)
        else:
            submission = await asyncio.to_thread(intake.one, raw, hub.tag, hub.settings.max_task_bytes)
        (stored,) = await _commit(hub, [submission])
    state = tasks.State.QUEUED
    if stored.repeated:
        state = (await _find(hub, stored.task_id)).state
    task_id = tasks.format_id(stored.task_id)
    return Response(
        msgspec.json.encode({"task_id": task_id, "state": state, "repeated": stored.repeated}),
        status_code=202,
        headers={"location": f"{router.prefix}/{task_id}"},
        media_type=jobs.JSON,
    )


@router.post(
    "/batch",
    status_code=202,
    summary="Submit many tasks, all or none",
    response_model=task_view.SubmittedBatch,
    responses=problems.documented(
        problems.REJECTED, problems.INVALID, problems.TOO_LARGE, problems.UNSUPPORTED, problems.BUSY
    ),
    openapi_extra=_MANY,
)
async def submit_batch(request: Request, hub: context.Dependency) -> Response:
    """Take many tasks in one transaction. If one of them cannot be taken none is, and all faults are told."""
    async with hub.bodies.read(request, hub.settings.max_batch_bytes) as body:
        found = await asyncio.to_thread(
            intake.batch,
            body,
            request.headers.get("content-type", ""),
            hub.tag,
            max_tasks=hub.settings.max_batch_tasks,
            max_bytes=hub.settings.max_task_bytes,
        )
        stored = await _commit(hub, found)
    answer = [{"task_id": tasks.format_id(one.task_id), "repeated": one.repeated} for one in stored]
    return Response(msgspec.json.encode({"tasks": answer}), status_code=202, media_type=jobs.JSON)


async def _commit(hub: context.Hub, found: list[task_store.Submission]) -> list[task_store.Submitted]:
    try:
        return await hub.submitter.submit(found)
    except submissions.Busy as busy:
        raise problems.Problem(
            problems.BUSY, f"{busy}; try again", retry_after_s=busy.retry_after_s
        ) from None
    except submissions.Stopped:
        raise problems.Problem(
            problems.UNAVAILABLE,
            "the hub is stopping; send the task again with the same idempotency key",
            retry_after_s=problems.UNAVAILABLE_RETRY_S,
        ) from None
    except pool.REFUSED as error:
        raise problems.Problem(problems.REJECTED, f"PostgreSQL cannot store the task: {error}") from None


class Listing(BaseModel):
    """Which tasks."""

    model_config = ConfigDict(extra="forbid")

    state: tasks.State | None = Field(None, description="In this state")
    reason: tasks.Reason | None = Field(None, description="TERMINATED for this reason")
    model: str | None = Field(None, description="Of this model", examples=["surface-defects"])
    queue: str | None = Field(None, description="Of this fair-share class", examples=["default"])
    device: str | None = Field(None, description="Of this device", examples=["camera-7"])
    site: str | None = Field(
        None, description="Handed over by an agent of this site", examples=["lyon-press"]
    )
    cursor: str | None = Field(None, description="`next` of the page before", examples=[task_view.ID])
    limit: int = Field(100, ge=1, le=1000, description="Tasks of one page")


@router.get("", summary="List tasks", responses=problems.documented(problems.INVALID))
async def list_tasks(hub: context.Dependency, listing: Annotated[Listing, Query()]) -> task_view.TaskPage:
    """Tasks, newest first, a page at a time. Walking the pages meets each task once, whatever is added."""
    wanted = task_store.Filter(**listing.model_dump(exclude={"cursor", "limit"}))
    before = _parse_id(listing.cursor, "cursor") if listing.cursor else None
    async with hub.connection() as connection:
        page = await task_store.list_page(connection, wanted, before=before, limit=listing.limit)
    return task_view.TaskPage.model_construct(
        tasks=[task_view.task(row) for row in page.tasks],
        next=tasks.format_id(page.next) if page.next else None,
    )


@router.get(
    "/{task_id}",
    summary="One task, and the attempts at it",
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID, problems.BUSY),
)
async def get(
    hub: context.Dependency,
    task_id: TaskId,
    wait: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the task to end, if it has not")
    ] = 0.0,
) -> task_view.TaskDetail:
    """A task as it is now, or with `wait` as soon as it has ended, or when that time has passed."""
    wanted = _parse_id(task_id, "task_id")
    task = await _find(hub, wanted)
    if wait > 0 and task.state not in tasks.FINAL:
        with hub.waits.enter():
            task = await _await_end(hub, wanted, time.monotonic() + wait)
    async with hub.connection() as connection:
        return task_view.detail(task, await task_store.attempts(connection, wanted))


async def _await_end(hub: context.Hub, task_id: bytes, until: float) -> task_store.Task:
    """Look, wait for the event or a second, look again: the event may be told to another hub's process."""
    with hub.events.ending(task_id) as ended:
        while True:
            ended.clear()
            task = await _find(hub, task_id)
            left = until - time.monotonic()
            if task.state in tasks.FINAL or left <= 0 or hub.events.closed:
                return task
            try:
                async with asyncio.timeout(min(left, POLL_S)):
                    await ended.wait()
            except TimeoutError:
                continue


@router.post(
    "/{task_id}/cancel",
    summary="Cancel a task",
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID, problems.CONFLICT),
)
async def cancel(hub: context.Dependency, task_id: TaskId) -> task_view.Task:
    """End a task that is queued or running. To cancel it again changes nothing and is no error."""
    wanted = _parse_id(task_id, "task_id")
    async with hub.connection() as connection:
        outcome = await task_store.cancel(connection, [wanted])
    hub.tell(outcome)
    task = await _find(hub, wanted)
    if not outcome.ended and task.reason is not tasks.Reason.CANCELLED:
        raise problems.Problem(
            problems.CONFLICT, f"the task is {task.state}: only a task that has not ended can be cancelled"
        )
    return task_view.task(task)


@router.post(
    "/{task_id}/retry",
    summary="Run a dead letter again",
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID, problems.CONFLICT),
)
async def retry(hub: context.Dependency, task_id: TaskId) -> task_view.Task:
    """Put a TERMINATED task back into the queue, its failures and its deadline forgotten."""
    wanted = _parse_id(task_id, "task_id")
    async with hub.connection() as connection:
        queued = await task_store.requeue(connection, [wanted])
    task = await _find(hub, wanted)
    if not queued:
        raise problems.Problem(
            problems.CONFLICT,
            f"the task is {task.state}: only a dead letter, a task that is TERMINATED, can be run again",
        )
    hub.tell(ends.Outcome(queued={task.model: 1}))
    return task_view.task(task)


async def _find(hub: context.Hub, task_id: bytes) -> task_store.Task:
    async with hub.connection() as connection:
        task = await task_store.get(connection, task_id)
    if task is None:
        raise problems.Problem(
            problems.NOT_FOUND,
            f"there is no task {tasks.format_id(task_id)} at this hub. A task that an agent took from a "
            "device and ran itself is known by its results only: ask for /v1/results?task_id=",
            where="task_id",
        )
    return task


def _parse_id(text: str, where: str) -> bytes:
    try:
        return tasks.parse_id(text)
    except ValueError as wrong:
        raise problems.Problem(problems.INVALID, str(wrong), where=where) from None
