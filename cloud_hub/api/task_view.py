"""Tasks as the API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from cloud_hub.store import tasks as task_store
from shared import tasks

ID = "01990d8a-6f2b-7c41-9d3e-5b8f0a1c2d3e"


class Submitted(BaseModel):
    """A task that is stored: it will not be lost."""

    task_id: str = Field(description="The task's id, a UUIDv7", examples=[ID])
    state: tasks.State = Field(description="Where it is in its life", examples=[tasks.State.QUEUED])
    repeated: bool = Field(
        description="The idempotency key was seen before: this is the task of that time", examples=[False]
    )


class SubmittedOne(BaseModel):
    """One task of a batch."""

    task_id: str = Field(description="The task's id, a UUIDv7", examples=[ID])
    repeated: bool = Field(
        description="The idempotency key was seen before: this is the task of that time", examples=[False]
    )


class SubmittedBatch(BaseModel):
    """Tasks that are stored, in the order of the batch."""

    tasks: list[SubmittedOne] = Field(description="One for each task of the batch, in its order")


class Attempt(BaseModel):
    """One execution of a task by one agent."""

    attempt: int = Field(description="Its number; 0 is the origin's own", examples=[1])
    site: str = Field(description="The site of the agent", examples=["lyon-press"])
    agent: str = Field(description="The agent", examples=["press-a"])
    state: tasks.State = Field(
        description="PROCESSING while it runs; QUEUED if it was put back or lost",
        examples=[tasks.State.COMPLETED],
    )
    reason: str | None = Field(description="Why it ended, where there is more to say", examples=[None])
    error: str | None = Field(description="What failed", examples=[None])
    items_done: int = Field(description="Items done in it", examples=[1])
    run_us: int | None = Field(description="Microseconds of execution", examples=[8210])
    granted_at: datetime | None = Field(description="When the hub leased it")
    ended_at: datetime | None = Field(description="When the hub learned of its end")


class Task(BaseModel):
    """A task as the hub knows it."""

    task_id: str = Field(description="The task's id, a UUIDv7", examples=[ID])
    state: tasks.State = Field(description="Where it is in its life", examples=[tasks.State.COMPLETED])
    reason: tasks.Reason | None = Field(description="Why it was TERMINATED", examples=[None])
    error: str | None = Field(description="What failed last", examples=[None])
    model: str = Field(description="The model to run", examples=["surface-defects"])
    version: str | None = Field(description="Its version; null: the newest an agent has", examples=["3"])
    priority: int = Field(description="0 to 9; a higher number goes first", examples=[5])
    queue: str = Field(description="The fair-share class", examples=["default"])
    selector: str = Field(
        description="Labels that an agent must have to run it; empty: any agent may",
        examples=["site=lyon-press"],
    )
    device: str | None = Field(description="The device it is of", examples=["camera-7"])
    content_type: str = Field(description="The form of its body", examples=["image/png"])
    payload_bytes: int = Field(description="Bytes of its body; 0 once it is completed", examples=[48211])
    items: int = Field(description="Inputs in it", examples=[1])
    items_done: int = Field(description="Of these, how many are done", examples=[1])
    attempt: int = Field(description="The number of the latest attempt; 0: none yet", examples=[1])
    failures: int = Field(description="Attempts that failed or were lost", examples=[0])
    max_attempts: int = Field(description="So many may fail", examples=[3])
    timeout_ms: int | None = Field(description="How long one attempt may run", examples=[None])
    deadline_at: datetime | None = Field(description="When its answer is of no use any more")
    not_before: datetime | None = Field(description="While it waits after a failed attempt")
    idempotency_key: str | None = Field(description="The key it was submitted with", examples=["part-88121"])
    client_id: str | None = Field(
        description="The `id` of an Open Inference Protocol request", examples=[None]
    )
    origin: str | None = Field(
        description="SITE/NAME of the agent that handed it over; null: submitted to the hub",
        examples=["lyon-press/press-a"],
    )
    agent: str | None = Field(description="SITE/NAME of the agent that runs it now", examples=[None])
    observed_at: datetime = Field(description="When it was accepted, by the clock of whoever accepted it")
    submitted_at: datetime = Field(description="When the hub got it")
    finished_at: datetime | None = Field(description="When it reached its final state")


class TaskDetail(Task):
    """A task and the attempts at it."""

    attempts: list[Attempt] = Field(description="Oldest first")


class TaskPage(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[Task] = Field(description="Newest first")
    next: str | None = Field(
        description="Ask again with this as `cursor` for the next page; null: there is none", examples=[ID]
    )


def task(row: task_store.Task) -> Task:
    return Task.model_construct(**_fields(row))


def detail(row: task_store.Task, attempts: Sequence[task_store.Attempt]) -> TaskDetail:
    return TaskDetail.model_construct(**_fields(row), attempts=[_attempt(one) for one in attempts])


def _fields(row: task_store.Task) -> dict[str, Any]:
    return {
        "task_id": tasks.format_id(row.task_id),
        "state": row.state,
        "reason": row.reason,
        "error": row.error,
        "model": row.model,
        "version": row.version,
        "priority": row.priority,
        "queue": row.queue,
        "selector": row.selector,
        "device": row.device,
        "content_type": row.content_type,
        "payload_bytes": row.payload_bytes,
        "items": row.items,
        "items_done": row.items_done,
        "attempt": row.attempt,
        "failures": row.failures,
        "max_attempts": row.max_attempts,
        "timeout_ms": row.timeout_ms,
        "deadline_at": row.deadline_at,
        "not_before": row.not_before,
        "idempotency_key": row.idempotency_key,
        "client_id": row.client_id,
        "origin": str(row.origin) if row.origin else None,
        "agent": str(row.agent) if row.agent else None,
        "observed_at": row.observed_at,
        "submitted_at": row.submitted_at,
        "finished_at": row.finished_at,
    }


def _attempt(row: task_store.Attempt) -> Attempt:
    return Attempt.model_construct(
        attempt=row.attempt,
        site=row.agent.site,
        agent=row.agent.name,
        state=row.state,
        reason=row.reason,
        error=row.error,
        items_done=row.items_done,
        run_us=row.run_us,
        granted_at=row.granted_at,
        ended_at=row.ended_at,
    )
