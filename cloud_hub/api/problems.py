"""Errors as application/problem+json (RFC 9457): what happened, where, and what to do about it.

Every error that leaves the hub has this one form, be it a refused task, an unknown address, a value of
the wrong type or a database that is away. A `type` is an address of this hub, at which it is explained.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cloud_hub.store import pool

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""The `responses` of a route."""

ADDRESS: Final = "/problems/{name}"
UNAVAILABLE_RETRY_S: Final = 2.0
GONE: Final = 499
"""The status that logs and metrics show for a client that went away before it was answered."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error: the last part of its `type`, its status and title, and what it means."""

    name: str
    status: int
    title: str
    meaning: str

    @property
    def type(self) -> str:
        return ADDRESS.format(name=self.name)


REJECTED: Final = Kind(
    "rejected",
    422,
    "The task cannot be taken",
    "The body or its metadata is not a job that this hub can run. Nothing was stored. "
    "`errors` names the field; correct it and send the task again.",
)
INVALID: Final = Kind(
    "invalid",
    422,
    "The request cannot be understood",
    "A parameter is missing, of the wrong type or out of its range. `errors` says which one and why.",
)
NOT_FOUND: Final = Kind(
    "not-found",
    404,
    "There is no such thing here",
    "The address, the task or the agent is not known to this hub. Addresses are listed in /openapi.json.",
)
METHOD: Final = Kind(
    "method-not-allowed",
    405,
    "The address does not take this method",
    "The `Allow` header lists the methods that it takes.",
)
CONFLICT: Final = Kind(
    "conflict",
    409,
    "The state of the task does not allow it",
    "Only a task that has not ended can be cancelled, and only a dead letter (TERMINATED) can be run again.",
)
TOO_LARGE: Final = Kind(
    "too-large",
    413,
    "The body is too large",
    "One task, one batch of tasks and one model package may each have so many bytes. Send smaller images or "
    "fewer tasks at a time, or raise the limit in the hub's settings.",
)
TOO_SLOW: Final = Kind(
    "too-slow",
    408,
    "The body comes too slowly",
    "Nothing more of it came for a while, and others wait for their turn. Nothing was stored; send it again.",
)
BAD_PACKAGE: Final = Kind(
    "bad-package",
    422,
    "The model package cannot be taken",
    "The body is no archive of a model package, its manifest is not right or not that of this address, or "
    "its digest or signature is not of it. Nothing was stored. `backhaul models check` says what is wrong "
    "before a package is pushed.",
)
VERSION_TAKEN: Final = Kind(
    "version-taken",
    409,
    "The version is there with other content",
    "A version of a model never changes once it was pushed, for agents already have it. Nothing was stored. "
    "Push the new content under a new version.",
)
IN_USE: Final = Kind(
    "in-use",
    409,
    "Agents are to serve the version",
    "A version that a target names, or that is being rolled out, cannot be removed. Serve another version "
    "there, withdraw the target, or roll the rollout back.",
)
ROLLOUT_UNDERWAY: Final = Kind(
    "rollout-underway",
    409,
    "The model is being rolled out",
    "A model has one rollout at a time, and the target that a rollout is to write changes by nothing else. "
    "Wait for its end, or roll it back.",
)
ROLLOUT_OVER: Final = Kind(
    "rollout-over",
    409,
    "The rollout is past that",
    "A rollout that has ended is a matter of history, and so is a stage that it has left. Nothing was done; "
    "/v1/rollouts says where it is. Begin another.",
)
RANGE: Final = Kind(
    "range-not-satisfiable",
    416,
    "The content does not reach that far",
    "The range begins behind the end. `Content-Range` says how many bytes there are.",
)
UNSUPPORTED: Final = Kind(
    "unsupported-content",
    415,
    "The body is of a kind that is not taken",
    "A body is image/png, image/jpeg, application/json or application/vnd.apache.arrow.stream, not encoded.",
)
BUSY: Final = Kind(
    "busy",
    429,
    "The hub has as much as it can hold",
    "More is being asked than the hub may hold in memory. Nothing was stored. Try again after the time "
    "in `Retry-After`; with the same idempotency key no task is ever made twice.",
)
QUEUE_FULL: Final = Kind(
    "queue-full",
    429,
    "The queue is full",
    "As many tasks wait in it as its limit allows, and the new ones are not above any that could give way. "
    "Nothing was stored. Try again after the time in `Retry-After`; /v1/queues has the limit.",
)
TOO_FAST: Final = Kind(
    "too-fast",
    429,
    "The queue takes no more tasks just now",
    "A queue may take only so many tasks a second. Nothing was stored. Try again after the time in "
    "`Retry-After`; /v1/queues has the limit.",
)
INTERNAL: Final = Kind(
    "internal",
    500,
    "The hub failed",
    "An error of the hub itself. It is in the hub's log.",
)
UNAVAILABLE: Final = Kind(
    "unavailable",
    503,
    "The hub cannot answer now",
    "PostgreSQL cannot be reached, or the hub is stopping. A task whose answer was lost may be stored: "
    "send it again with the same idempotency key.",
)

KINDS: Final = {
    kind.name: kind
    for kind in (
        REJECTED,
        INVALID,
        NOT_FOUND,
        METHOD,
        CONFLICT,
        TOO_LARGE,
        TOO_SLOW,
        BAD_PACKAGE,
        VERSION_TAKEN,
        IN_USE,
        ROLLOUT_UNDERWAY,
        ROLLOUT_OVER,
        RANGE,
        UNSUPPORTED,
        BUSY,
        QUEUE_FULL,
        TOO_FAST,
        INTERNAL,
        UNAVAILABLE,
    )
}


class Fault(BaseModel):
    """One thing that is wrong, and the place of it."""

    where: str = Field(
        description="The field of the body, or the parameter, as a path", examples=["tasks/3/priority"]
    )
    detail: str = Field(description="What is wrong with it", examples=["priority 12 is not between 0 and 9"])


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(
        description="The kind of error; explained at this address", examples=["/problems/rejected"]
    )
    title: str = Field(description="The kind of error in words", examples=["The task cannot be taken"])
    status: int = Field(description="The HTTP status", examples=[422])
    detail: str = Field(
        description="What happened this time and what to do", examples=["priority 12 is not between 0 and 9"]
    )
    instance: str = Field(description="The address that was asked for", examples=["/v1/tasks"])
    errors: list[Fault] = Field(default=[], description="Where it is wrong, for errors in a request")


class Problem(Exception):
    """An error to be answered with; `where` names the field or parameter if it is one's fault."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        where: str | None = None,
        faults: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.faults = [(where, detail)] if where else list(faults)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))

    def response(self, request: Request) -> Response:
        body: dict[str, Any] = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "instance": request.url.path,
        }
        if self.faults:
            body["errors"] = [{"where": where, "detail": detail} for where, detail in self.faults]
        return Response(
            msgspec.json.encode(body),
            status_code=self.kind.status,
            headers=self.headers,
            media_type=CONTENT_TYPE,
        )


def documented(*kinds: Kind) -> Responses:
    """The `responses` of a route that may answer with errors of these kinds, for its OpenAPI."""
    by_status: dict[int | str, list[Kind]] = {}
    for kind in (*kinds, UNAVAILABLE):
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"{kind.title} (`{kind.type}`)" for kind in found),
            "content": {
                CONTENT_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemDetails"},
                    "example": {
                        "type": found[0].type,
                        "title": found[0].title,
                        "status": found[0].status,
                        "detail": found[0].meaning,
                        "instance": "/v1/…",
                    },
                }
            },
        }
        for status, found in by_status.items()
    }


def install(app: FastAPI) -> None:
    """Have every error of `app` answered as a problem, and its kinds explained."""
    for kind, handler in _ANSWERS.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _internal)


async def answer(request: Request, error: Exception) -> Response | None:
    """The answer to a request that ended in `error`; None for one that nobody foresaw."""
    for kind in type(error).__mro__:
        if kind in _ANSWERS:
            return await _ANSWERS[kind](request, error)
    return None


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [(_path(fault["loc"]), str(fault["msg"])) for fault in error.errors()]
    detail = "; ".join(f"{where}: {what}" for where, what in faults[:5])
    return Problem(INVALID, detail, faults=faults).response(request)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _of_http(request, error).response(request)


async def _unavailable(request: Request, error: Exception) -> Response:
    log.warning("%s %s: PostgreSQL cannot be used: %s", request.method, request.url.path, error)
    return Problem(
        UNAVAILABLE,
        "PostgreSQL cannot be reached; try again soon, with the same idempotency key",
        retry_after_s=UNAVAILABLE_RETRY_S,
    ).response(request)


async def _internal(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so that the server logs it with its trace.
    return Problem(INTERNAL, f"{type(error).__name__}; the hub's log at this time has the rest").response(
        request
    )


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)  # nobody is there to read it


_ANSWERS: Final[dict[type, Callable[[Request, Exception], Awaitable[Response]]]] = {
    ClientDisconnect: _gone,
    Problem: _problem,
    RequestValidationError: _invalid,
    HTTPException: _http,
    **dict.fromkeys(pool.UNAVAILABLE, _unavailable),
}


def _path(location: Sequence[int | str]) -> str:
    """A place as pydantic names it, without the level that says it is of the query, the path or the body."""
    inner = location[1:]
    if not any(isinstance(level, str) for level in inner):  # where JSON breaks off is no field
        inner = location[:1]
    return "/".join(str(level) for level in inner)


def _of_http(request: Request, error: HTTPException) -> Problem:
    """What the framework refuses by itself."""
    asked = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Problem(NOT_FOUND, f"there is no {asked}; the addresses are listed in /openapi.json")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "others")
        return Problem(METHOD, f"{asked} is not taken here, but {allowed} is", headers=error.headers)
    kind = next((kind for kind in KINDS.values() if kind.status == error.status_code), INTERNAL)
    return Problem(kind, str(error.detail), headers=error.headers)


router = APIRouter(tags=["problems"])


class Explanation(BaseModel):
    """What a kind of error means."""

    type: str = Field(description="The kind of error", examples=[REJECTED.type])
    title: str = Field(description="The kind of error in words", examples=[REJECTED.title])
    status: int = Field(description="The HTTP status it comes with", examples=[REJECTED.status])
    meaning: str = Field(description="What it means and what to do", examples=[REJECTED.meaning])


@router.get(ADDRESS, summary="What a kind of error means", responses=documented(NOT_FOUND))
async def explain(
    name: Annotated[str, Path(description="The kind of error", examples=[REJECTED.name])],
) -> Explanation:
    """The explanation behind the `type` of a problem."""
    kind = KINDS.get(name)
    if kind is None:
        raise Problem(NOT_FOUND, f"{name!r} is no kind of error; they are {', '.join(KINDS)}", where="name")
    return Explanation(type=kind.type, title=kind.title, status=kind.status, meaning=kind.meaning)
