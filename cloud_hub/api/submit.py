"""Submissions over REST: one task, or many at once. This is the hub's busiest road.

So its parameters are read here rather than by the framework, whose reading of a model of parameters
costs as much as all the rest of a request.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from cloud_hub import queues
from cloud_hub.api import admission, context, intake, problems, submissions, task_view
from cloud_hub.store import pool
from cloud_hub.store import tasks as task_store
from shared import jobs, tasks

THREAD_BYTES: Final = 64 << 10
"""From this size on a body is parsed in a thread, so that other requests are not held up."""
ADDRESS: Final = "/v1/tasks"
KEY: Final = "idempotency-key"

router = APIRouter(prefix=ADDRESS, tags=["tasks"])

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer", "minimum": 1}
BESIDE: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "model": (_TEXT, "The model to run, `NAME` or `NAME@VERSION`"),
    "version": (_TEXT, "Its version, if not in `model`; if none is said, the one that the agent is to serve"),
    "priority": (
        {"type": "integer", "minimum": 0, "maximum": 9},
        "A higher one goes first; its queue's if not said, else 5",
    ),
    "queue": (_TEXT, "The fair-share class; `default` if not said"),
    "selector": (_TEXT, "Which agents may run it, by labels that must all match: `site=lyon,gpu=h100`"),
    "timeout_ms": (_NUMBER, "How long one attempt may run"),
    "deadline_ms": (_NUMBER, "How long from now the answer is of use; a task too old is not run"),
    "max_attempts": ({"type": "integer", "minimum": 1, "maximum": 100}, "So many may fail; 3 if not said"),
    "idempotency_key": (_TEXT, "As the header `Idempotency-Key`"),
    "device": (_TEXT, "The device it is of"),
}
"""What may be said about a task beside its body, with its schema. The same may stand in a JSON body."""

_PARAMETERS: Final = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
    for name, (schema, description) in BESIDE.items()
] + [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": _TEXT,
        "description": "The same key again is the same task again, however often it is sent",
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "schema": _TEXT,
        "description": "W3C trace context",
    },
]


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
_TAKEN: Final = problems.documented(
    problems.REJECTED,
    problems.INVALID,
    problems.TOO_LARGE,
    problems.UNSUPPORTED,
    problems.BUSY,
    problems.QUEUE_FULL,
    problems.TOO_FAST,
)


@router.post(
    "",
    status_code=202,
    summary="Submit a task",
    response_model=task_view.Submitted,
    responses=_TAKEN,
    openapi_extra=_ONE | {"parameters": _PARAMETERS},
)
async def submit(request: Request) -> Response:
    """Take one task. The answer comes when PostgreSQL has committed it: from then on it is not lost.

    `Location` is the address of the task.
    """
    hub = context.of(request)
    model, device, properties = _beside(request)
    async with hub.bodies.read(request, hub.settings.max_task_bytes) as body:
        raw = intake.Raw(body, request.headers.get("content-type", ""), model, device, properties)
        if len(body) < THREAD_BYTES:
            taken = intake.one(raw, hub.settings.max_task_bytes)
        else:
            taken = await asyncio.to_thread(intake.one, raw, hub.settings.max_task_bytes)
        (stored,) = await _commit(hub, [taken])
    state = await _present_state(hub, stored.task_id) if stored.repeated else tasks.State.QUEUED
    task_id = tasks.format_id(stored.task_id)
    return Response(
        msgspec.json.encode({"task_id": task_id, "state": state, "repeated": stored.repeated}),
        status_code=202,
        headers={"location": f"{ADDRESS}/{task_id}"},
        media_type=jobs.JSON,
    )


def _beside(request: Request) -> tuple[str | None, str | None, dict[str, Any]]:
    """The model, the device and the metadata in the query and the headers; words not known are refused."""
    said: dict[str, Any] = dict(request.query_params)
    for name in said:
        if name not in BESIDE:
            raise problems.Problem(
                problems.INVALID, f"{name} is not known here; what is: {', '.join(BESIDE)}", where=name
            )
    key = request.headers.get(KEY)
    if key is not None and said.setdefault("idempotency_key", key) != key:
        raise problems.Problem(
            problems.REJECTED,
            "the header and the query name two idempotency keys; name one",
            where="idempotency_key",
        )
    if (traceparent := request.headers.get("traceparent")) is not None:
        said["traceparent"] = traceparent
    return said.pop("model", None), said.pop("device", None), said


async def _present_state(hub: context.Hub, task_id: bytes) -> tasks.State:
    async with hub.connection() as connection:
        task = await task_store.get(connection, task_id)
    return task.state if task else tasks.State.QUEUED


@router.post(
    "/batch",
    status_code=202,
    summary="Submit many tasks, all or none",
    response_model=task_view.SubmittedBatch,
    responses=_TAKEN,
    openapi_extra=_MANY,
)
async def submit_batch(request: Request) -> Response:
    """Take many tasks in one transaction. If one of them cannot be taken none is, and all faults are told."""
    hub = context.of(request)
    async with hub.bodies.read(request, hub.settings.max_batch_bytes) as body:
        taken = await asyncio.to_thread(
            intake.batch,
            body,
            request.headers.get("content-type", ""),
            max_tasks=hub.settings.max_batch_tasks,
            max_bytes=hub.settings.max_task_bytes,
        )
        stored = await _commit(hub, taken)
    answer = [{"task_id": tasks.format_id(one.task_id), "repeated": one.repeated} for one in stored]
    return Response(msgspec.json.encode({"tasks": answer}), status_code=202, media_type=jobs.JSON)


def routes() -> list[APIRoute]:
    """The routes of this module, whose endpoints take the request as it is."""
    return [route for route in router.routes if isinstance(route, APIRoute)]


async def _commit(hub: context.Hub, taken: list[intake.Taken]) -> list[task_store.Submitted]:
    limits = hub.queues
    found = [task_store.Submission(job=limits.with_priority(one.job), device=one.device) for one in taken]
    try:
        with limits.submitting([one.job for one in found]):
            return await hub.submitter.submit(found)
    except queues.TooFast as fast:
        hub.submitter.refused.labels(fast.queue, "rate").inc(len(found))
        raise problems.Problem(
            problems.TOO_FAST,
            f"{fast}; send the task again in {fast.retry_after_s:.1f} s, or raise the limit: "
            f"backhaul queues set {fast.queue} --max-per-second",
            retry_after_s=fast.retry_after_s,
        ) from None
    except admission.Full as full:
        if not full.fits:
            raise problems.Problem(
                problems.TOO_LARGE, f"{full}; send fewer at a time", where="tasks"
            ) from None
        raise problems.Problem(
            problems.QUEUE_FULL,
            f"{full}; send the task again later, or raise the limit: "
            f"backhaul queues set {full.queue} --max-queued",
            retry_after_s=admission.RETRY_S,
        ) from None
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
