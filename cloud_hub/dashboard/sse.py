"""The live stream: pictures of the fleet and tasks that ended, as server-sent events.

Each client is served at its own pace. What a slow one has not read is replaced by what is newer, or
falls out of its bounded mailbox and is counted; nobody waits for it.

Server-sent events: html.spec.whatwg.org, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from cloud_hub import events
from cloud_hub.api import context, fleet, health, problems, snapshots, streams
from cloud_hub.store import pool
from shared import tasks

CONTENT_TYPE: Final = "text/event-stream"
PACE_S: Final = 0.1
"""Ended tasks are told together, so often at most."""
RETRY_MS: Final = 2000

router = APIRouter(tags=["events"])

_STREAM: Final[problems.Responses] = {
    200: {
        "description": "Server-sent events: `hub` (what the hub stands on), `fleet` (a picture of the fleet, "
        "about once a second), `tasks` (the newest tasks and dead letters, when they change), `ended` (tasks "
        "that ended, and how many were left out because this client was too slow)",
        "content": {CONTENT_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/v1/events",
    summary="Live events",
    response_class=Response,
    responses=_STREAM | problems.documented(problems.BUSY),
)
async def live(hub: context.Dependency, request: Request) -> Response:
    """A stream without end; a client that reads slowly gets fewer pictures, and never holds up others."""
    return streams.Stream(
        _watched(hub, fleet.of(request)),
        media_type=CONTENT_TYPE,
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


def event(name: str, data: bytes) -> bytes:
    """One event; `data` is JSON without line breaks."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


@asynccontextmanager
async def _watched(hub: context.Hub, taken: snapshots.Snapshots) -> AsyncIterator[AsyncIterator[bytes]]:
    with hub.watchers.enter(), hub.events.subscribe(events.TaskEnded) as mailbox:
        async with aclosing(_told(hub, taken, mailbox)) as chunks:
            yield chunks


async def _told(
    hub: context.Hub, taken: snapshots.Snapshots, mailbox: events.Subscription
) -> AsyncGenerator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    lists = b""
    while not mailbox.closed:
        snapshot = await _picture(taken)
        postgresql = health.Part.OK if snapshot else health.Part.DOWN
        yield event("hub", health.parts(hub, postgresql).model_dump_json().encode())
        pause = snapshots.EVERY_S
        if snapshot:
            pause = snapshot.picture.every_s
            yield event("fleet", snapshot.picture_json)
            if snapshot.lists_json != lists:
                lists = snapshot.lists_json
                yield event("tasks", lists)
        async for chunk in _ended(mailbox, time.monotonic() + pause):
            yield chunk


async def _picture(taken: snapshots.Snapshots) -> snapshots.Snapshot | None:
    """The current picture; None while PostgreSQL gives none in time, which a watcher is told instead."""
    try:
        async with asyncio.timeout(health.CHECK_TIMEOUT_S):
            return await taken.get()
    except pool.UNAVAILABLE:
        return None
    except TimeoutError:
        return None


async def _ended(mailbox: events.Subscription, until: float) -> AsyncIterator[bytes]:
    """Tasks that end before `until`, a few events a second however many they are."""
    while (left := until - time.monotonic()) > 0 and not mailbox.closed:
        if await mailbox.changed(left) and (told := mailbox.take()):
            ended = [
                {
                    "task_id": tasks.format_id(one.task_id),
                    "state": one.state,
                    "reason": one.reason,
                    "model": one.model,
                }
                for one in told
                if isinstance(one, events.TaskEnded)
            ]
            yield event("ended", msgspec.json.encode({"tasks": ended, "lost": mailbox.lost}))
            await asyncio.sleep(min(PACE_S, max(0.0, until - time.monotonic())))
