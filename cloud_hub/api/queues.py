"""Queues over REST: what is in each, and its weight and limits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from cloud_hub.api import context, problems, queue_view
from cloud_hub.store import queues as queue_store
from shared import topics

router = APIRouter(prefix="/v1/queues", tags=["queues"])

Name = Annotated[str, Path(description="The queue", examples=["archive"])]


class Queues(BaseModel):
    """All queues."""

    at: datetime = Field(description="When this was read")
    queues: list[queue_view.Queue] = Field(description="By name")


@router.get("", summary="List queues", responses=problems.documented())
async def list_queues(hub: context.Dependency) -> Queues:
    """Every queue that has settings or something in it. Depths are exact, and cost the same at any depth."""
    async with hub.connection() as connection:
        found = await queue_view.read(hub, connection)
    return Queues.model_construct(at=datetime.now(UTC), queues=found)


@router.get("/{name}", summary="One queue", responses=problems.documented(problems.INVALID))
async def get(hub: context.Dependency, name: Name) -> queue_view.Queue:
    """A queue begins with its first task: one that nobody has named yet is empty and has no limits."""
    _check(name)
    async with hub.connection() as connection:
        return await queue_view.one(hub, connection, name)


@router.put("/{name}", summary="Give a queue its settings", responses=problems.documented(problems.INVALID))
async def put(hub: context.Dependency, name: Name, settings: queue_view.Settings) -> queue_view.Queue:
    """All of them at once: what is not said goes back to its default. Other hubs know it within a second.

    A limit that is lowered refuses what comes; it ends nothing that waits or runs.
    """
    _check(name)
    async with hub.connection() as connection:
        await queue_store.put(connection, queue_store.Queue(name=name, **settings.model_dump()))
    await hub.queues.refresh()
    return await get(hub, name)


@router.delete(
    "/{name}", summary="Forget a queue's settings", responses=problems.documented(problems.INVALID)
)
async def delete(hub: context.Dependency, name: Name) -> queue_view.Queue:
    """It has weight 1 and no limits then; its tasks stay. To do so again changes nothing."""
    _check(name)
    async with hub.connection() as connection:
        await queue_store.remove(connection, name)
    await hub.queues.refresh()
    return await get(hub, name)


def _check(name: str) -> None:
    try:
        topics.check_name(name, "queue")
    except topics.BadTopic as wrong:
        raise problems.Problem(problems.INVALID, str(wrong), where="name") from None
