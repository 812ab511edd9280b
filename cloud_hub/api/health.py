"""Whether the hub lives, whether it can be given requests, and what it stands on."""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cloud_hub.api import context, problems
from cloud_hub.store import pool

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S: Final = 2.0

router = APIRouter(prefix="/healthz", tags=["health"])


class Part(enum.StrEnum):
    """The state of something that the hub stands on."""

    OK = "ok"
    DOWN = "down"
    NONE = "none"
    """Not used by this hub."""


class Parts(BaseModel):
    """What the hub stands on."""

    postgresql: Part = Field(description="The truth: nothing goes without it", examples=[Part.OK])
    broker: Part = Field(description="The link to the agents", examples=[Part.OK])
    redis: Part = Field(description="Hot state; away, things are slower", examples=[Part.OK])


class Live(BaseModel):
    """The process answers."""

    status: str = Field(description="`ok`", examples=["ok"])


class Ready(BaseModel):
    """The hub can do its work."""

    status: str = Field(description="`ok`, or `degraded` while Redis is away", examples=["ok"])
    parts: Parts = Field(description="What it stands on")


@router.get("/live", summary="Is the process alive")
async def live() -> Live:
    """Answers as long as the event loop turns."""
    return Live(status="ok")


@router.get("/ready", summary="Can it be given requests", responses=problems.documented())
async def ready(hub: context.Dependency) -> Ready:
    """Ready while PostgreSQL answers and the broker is connected. Redis may be away."""
    found = parts(hub, await _postgresql(hub))
    wrong = [
        (name, "cannot be reached") for name in ("postgresql", "broker") if getattr(found, name) is Part.DOWN
    ]
    if wrong:
        raise problems.Problem(
            problems.UNAVAILABLE,
            "; ".join(f"{name} {what}" for name, what in wrong),
            faults=wrong,
            retry_after_s=problems.UNAVAILABLE_RETRY_S,
        )
    return Ready(status="degraded" if found.redis is Part.DOWN else "ok", parts=found)


def parts(hub: context.Hub, postgresql: Part) -> Parts:
    """The state of each part, with what was seen of PostgreSQL."""
    return Parts(postgresql=postgresql, broker=_part(hub.broker()), redis=_part(hub.redis()))


async def _postgresql(hub: context.Hub) -> Part:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), hub.database.connection() as connection:
            await connection.execute("SELECT 1")
    except pool.UNAVAILABLE as error:
        log.warning("PostgreSQL cannot be used: %s", error)
        return Part.DOWN
    except TimeoutError:
        log.warning("PostgreSQL did not answer within %g s", CHECK_TIMEOUT_S)
        return Part.DOWN
    return Part.OK


def _part(up: bool | None) -> Part:
    if up is None:
        return Part.NONE
    return Part.OK if up else Part.DOWN
