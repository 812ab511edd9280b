"""Tasks over REST: awaited, listed, cancelled, asked to run again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from cloud_hub.api import context, problems, task_view
from cloud_hub.store import ends
from cloud_hub.store import tasks as task_store
from shared import tasks

POLL_S: Final = 1.0
"""How often a waiting client's task is looked at, should its event never come here."""
MAX_WAIT_S: Final = 60.0
RETRY_PAGE: Final = 1000
"""Dead letters that are requeued in one transaction."""
MAX_PAGES: Final = 200
"""Of dead letters that one request looks through."""

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

TaskId = Annotated[str, Path(description="The task's id", examples=[task_view.ID])]


class Listing(BaseModel):
    """Which tasks."""

    model_config = ConfigDict(extra="forbid")

    state: tasks.State | None = Field(None, description="In this state")
    reason: tasks.Reason | None = Field(None, description="TERMINATED for this reason")
    model: str | None = Field(None, description="Of this model", examples=["surface-defects"])
    queue: str | None = Field(None, description="Of this fair-share class", examples=["default"])
    priority: int | None = Field(None, ge=0, le=9, description="Of this priority", examples=[5])
    device: str | None = Field(None, description="Of this device", examples=["camera-7"])
    site: str | None = Field(
        None, description="Handed over by an agent of this site", examples=["lyon-press"]
    )
    cursor: str | None = Field(None, description="`next` of the page before", examples=[task_view.ID])
    limit: int = Field(100, ge=1, le=1000, description="Tasks of one page")


class Again(BaseModel):
    """Which dead letters."""

    model_config = ConfigDict(extra="forbid")

    reason: tasks.Reason | None = Field(
        None, description="TERMINATED for this reason; if not said, for any but `cancelled`"
    )
    model: str | None = Field(None, description="Of this model", examples=["surface-defects"])
    queue: str | None = Field(None, description="Of this fair-share class", examples=["default"])
    site: str | None = Field(
        None, description="Handed over by an agent of this site", examples=["lyon-press"]
    )
    limit: int = Field(1000, ge=1, le=100_000, description="Tasks that are run again, at most")


class Retried(BaseModel):
    """Dead letters that run again."""

    retried: int = Field(description="How many are in the queue again", examples=[412])
    more: bool = Field(description="There may be more of them: ask again", examples=[False])


@router.get("", summary="List tasks", responses=problems.documented(problems.INVALID))
async def list_tasks(hub: context.Dependency, listing: Annotated[Listing, Query()]) -> task_view.TaskPage:
    """Tasks, newest first, a page at a time. Walking the pages meets each task once, whatever is added."""
    wanted = task_store.Filter(**listing.model_dump(exclude={"cursor", "limit"}))
    before = parse_id(listing.cursor, "cursor") if listing.cursor else None
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
    wanted = parse_id(task_id, "task_id")
    task = await find(hub, wanted)
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
            task = await find(hub, task_id)
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
    wanted = parse_id(task_id, "task_id")
    async with hub.connection() as connection:
        outcome = await task_store.cancel(connection, [wanted])
    hub.tell(outcome)
    task = await find(hub, wanted)
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
    wanted = parse_id(task_id, "task_id")
    async with hub.connection() as connection:
        queued = await task_store.requeue(connection, [wanted])
    task = await find(hub, wanted)
    if not queued:
        raise problems.Problem(
            problems.CONFLICT,
            f"the task is {task.state}: only a dead letter, a task that is TERMINATED, can be run again",
        )
    hub.tell(ends.Outcome(queued={task.model: 1}))
    return task_view.task(task)


@router.post("/retry", summary="Run many dead letters again", responses=problems.documented(problems.INVALID))
async def retry_many(hub: context.Dependency, again: Annotated[Again, Query()]) -> Retried:
    """Put TERMINATED tasks back into their queues, the newest first, whatever the queues' limits are.

    At least one filter must be said. Those that somebody cancelled are meant only by `reason=cancelled`.
    """
    filters = again.model_dump(exclude={"limit", "reason"})
    if again.reason is None and not any(filters.values()):
        raise problems.Problem(
            problems.INVALID, "say which dead letters: reason, model, queue or site", where="reason"
        )
    reasons = (
        [again.reason] if again.reason else [one for one in tasks.Reason if one is not tasks.Reason.CANCELLED]
    )
    retried, more = 0, False
    for reason in reasons:
        wanted = task_store.Filter(state=tasks.State.TERMINATED, reason=reason, **filters)
        count, more = await _retry(hub, wanted, again.limit - retried)
        retried += count
        if more:
            break
    return Retried(retried=retried, more=more)


async def _retry(hub: context.Hub, wanted: task_store.Filter, limit: int) -> tuple[int, bool]:
    """Requeue so many of those that are wanted, a page in a transaction; whether there may be more.

    Some have no body any more, as those that their site ran itself: these are passed over.
    """
    retried, before = 0, None
    for _ in range(MAX_PAGES):
        if retried >= limit:
            return retried, True
        async with hub.connection() as connection:
            page = await task_store.list_page(
                connection, wanted, before=before, limit=min(RETRY_PAGE, limit - retried)
            )
            queued = set(await task_store.requeue(connection, [one.task_id for one in page.tasks]))
        models = Counter(one.model for one in page.tasks if one.task_id in queued)
        hub.tell(ends.Outcome(queued=dict(models)))
        retried += len(queued)
        before = page.next
        if before is None:
            return retried, False
    return retried, True


async def find(hub: context.Hub, task_id: bytes) -> task_store.Task:
    """The task. Raises Problem NOT_FOUND."""
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


def parse_id(text: str, where: str) -> bytes:
    """The id that is written at `where`. Raises Problem INVALID."""
    try:
        return tasks.parse_id(text)
    except ValueError as wrong:
        raise problems.Problem(problems.INVALID, str(wrong), where=where) from None
