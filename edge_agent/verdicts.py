"""What an attempt leaves behind: result rows, the device's reply, the word to the hub. Pure.

Every item of an accepted task ends in one row, whatever became of it, and the reply says the same
as the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edge_agent import outcomes
from edge_agent.journal import records
from edge_agent.oip import answers
from shared import jobs, tasks, topics

_encoder: Final = msgspec.json.Encoder()


class Run(msgspec.Struct, frozen=True, gc=False):
    """The circumstances of an attempt."""

    version: str
    """The version of the model that really ran."""
    started_us: int
    """The wall clock at the start of its batch."""
    run_us: int
    clock_offset_us: int | None
    clock_error_us: int | None


def completed(
    task: records.Task, results: Sequence[outcomes.Outcome], run: Run, site: str
) -> records.Finished:
    """The end of an attempt that gave each item an outcome in one batch, good or bad."""
    end = closed(task, rows(task, 0, results, run), run.version, run.run_us, site)
    if answers.here(task):
        return msgspec.structs.replace(end, reply=answers.completed(task, results, run.version))
    return end


def rows(
    task: records.Task, first: int, results: Sequence[outcomes.Outcome], run: Run
) -> list[records.ResultRow]:
    """The rows of items that ran together, from the item `first` on."""
    return [_row(task, item, result, run) for item, result in enumerate(results, first)]


def closed(
    task: records.Task,
    last: Sequence[records.ResultRow],
    version: str,
    run_us: int,
    site: str,
    earlier: Sequence[records.Part] = (),
) -> records.Finished:
    """The end of an attempt after which each item has an outcome: the `last` rows, and `earlier` for the
    reply those whose rows are in the journal's lane already.

    A task whose every item failed is a dead letter: TERMINATED(not_retriable).
    """
    failures = [row.error for row in last if row.outcome != tasks.Outcome.OK]
    errors = [part.error for part in earlier if part.failed] + failures
    all_failed = bool(errors) and sum(part.failed for part in earlier) + len(failures) == task.items
    return records.Finished(
        task_id=task.task_id,
        rows=last,
        reply=_reply(
            task,
            site,
            state=tasks.State.TERMINATED if all_failed else tasks.State.COMPLETED,
            reason=tasks.Reason.NOT_RETRIABLE if all_failed else None,
            error=errors[0] if all_failed else None,
            version=version,
            items=_items(earlier, last),
        ),
        attempt=_attempt(task, tasks.State.COMPLETED, items_done=task.items, run_us=run_us),
    )


def checkpoint(task: records.Task, since: Sequence[records.ResultRow], *, syncs: bool) -> records.Checkpoint:
    """How far a task has come, with the rows of the items `since` its last checkpoint."""
    part = None
    if task.origin is records.Origin.DEVICE:
        failures = [row.error for row in since if row.outcome != tasks.Outcome.OK]
        part = records.Part(
            first=since[0].item,
            failed=len(failures),
            error=failures[0] if failures else None,
            items=_listed(since),
        )
    return records.Checkpoint(task.task_id, task.items_done, since if syncs else (), part)


def failed(
    task: records.Task, error: str, run_us: int, last: Sequence[records.ResultRow] = ()
) -> records.Finished:
    """The end of an attempt at a task of the hub's that another attempt may mend: no row is final yet but
    those of the items that came before."""
    return records.Finished(
        task_id=task.task_id,
        rows=last,
        reply=None,
        attempt=_attempt(task, tasks.State.FAILED, error=error, retriable=True, run_us=run_us),
    )


def put_back(task: records.Task, run_us: int = 0, last: Sequence[records.ResultRow] = ()) -> records.Finished:
    """A task that the hub leased us and that this agent will not run, or not to its end."""
    return records.Finished(
        task_id=task.task_id,
        rows=last,
        reply=None,
        attempt=_attempt(task, tasks.State.QUEUED, retriable=True, run_us=run_us),
        given_back=task.origin is records.Origin.DEVICE,
    )


def terminated(
    task: records.Task,
    reason: tasks.Reason,
    error: str,
    site: str,
    *,
    last: Sequence[records.ResultRow] = (),
    earlier: Sequence[records.Part] = (),
) -> records.Finished:
    """The end of a task that will not run, or not to its end: its deadline passed, it was cancelled, or it
    cannot succeed. Of items that are done, `last` and `earlier` as in `closed`."""
    outcome = {
        tasks.Reason.EXPIRED: tasks.Outcome.EXPIRED,
        tasks.Reason.CANCELLED: tasks.Outcome.CANCELLED,
    }.get(reason, tasks.Outcome.FAILED)
    rest = [
        records.ResultRow(
            task_id=task.task_id,
            item=item,
            attempt=task.attempt,
            device=task.device,
            model=task.model,
            version=task.version or "",
            outcome=outcome,
            label=None,
            score=None,
            output=None,
            error=error,
            observed_at=task.accepted_us,
            clock_offset_us=None,
            clock_error_us=None,
            wait_us=None,
            run_us=None,
        )
        for item in range(task.items_done, task.items)
    ]
    leased = task.origin == records.Origin.HUB
    return records.Finished(
        task_id=task.task_id,
        rows=last if leased else [*last, *rest],
        reply=answers.ended(task, reason, error)
        if answers.here(task)
        else _reply(
            task,
            site,
            state=tasks.State.TERMINATED,
            reason=reason,
            error=error,
            items=_items(earlier, [*last, *rest]) if task.items_done else None,
        ),
        attempt=_attempt(task, tasks.State.TERMINATED, reason=reason, error=error),
    )


def returned(
    task: records.Task,
    rows: Sequence[dict[str, Any]],
    site: str,
    *,
    reason: str | None = None,
    error: str | None = None,
) -> records.Reply | None:
    """The reply to the device for a task that the hub had run: by the rows that came back, or by its end."""
    if rows:
        failures = [row for row in rows if row["outcome"] != tasks.Outcome.OK]
        all_failed = len(failures) == len(rows)
        return _reply(
            task,
            site,
            state=tasks.State.TERMINATED if all_failed else tasks.State.COMPLETED,
            reason=tasks.Reason.NOT_RETRIABLE if all_failed else None,
            error=failures[0]["error"] if all_failed else None,
            version=rows[0]["version"],
            items=[_item(records.ResultRow(**row)) for row in rows],
        )
    return _reply(task, site, state=tasks.State.TERMINATED, reason=reason, error=error)


def rejected(
    *,
    site: str,
    detail: str,
    field: str | None,
    response_topic: str | None,
    correlation: bytes | None,
    client_id: str | None = None,
) -> records.Reply:
    """The reply to a job that was not taken. It gets an id of its own, under which it can be asked about."""
    task_id = tasks.new_id()
    body: dict[str, Any] = {
        "task_id": tasks.format_id(task_id),
        "state": tasks.State.REJECTED,
        "error": detail,
    }
    if field is not None:
        body["field"] = field
    if client_id is not None:
        body["id"] = client_id
    return _address(task_id, site, response_topic, correlation, body)


def _row(task: records.Task, item: int, result: outcomes.Outcome, run: Run) -> records.ResultRow:
    good = result if isinstance(result, outcomes.Prediction) else None
    return records.ResultRow(
        task_id=task.task_id,
        item=item,
        attempt=task.attempt,
        device=task.device,
        model=task.model,
        version=run.version,
        outcome=tasks.Outcome.OK if good is not None else tasks.Outcome.FAILED,
        label=good.label if good is not None else None,
        score=good.score if good is not None else None,
        output=good.output.decode() if good is not None and good.output is not None else None,
        error=None if isinstance(result, outcomes.Prediction) else result.reason,
        observed_at=task.accepted_us,
        clock_offset_us=run.clock_offset_us,
        clock_error_us=run.clock_error_us,
        wait_us=max(0, run.started_us - task.accepted_us),
        run_us=run.run_us,
    )


def _items(
    earlier: Sequence[records.Part], last: Sequence[records.ResultRow]
) -> Sequence[dict[str, Any]] | msgspec.Raw:
    """The items of a reply, in their order."""
    if not earlier:
        return [_item(row) for row in last]
    texts = [part.items for part in earlier] + ([_listed(last)] if last else [])
    return msgspec.Raw(f"[{','.join(texts)}]".encode())


def _listed(rows_: Sequence[records.ResultRow]) -> str:
    """The items of a reply as JSON, without the brackets of the list."""
    return _encoder.encode([_item(row) for row in rows_]).decode()[1:-1]


def _item(row: records.ResultRow) -> dict[str, Any]:
    """One item of a reply; what is not known is left out."""
    item: dict[str, Any] = {"item": row.item, "outcome": row.outcome}
    if row.label is not None:
        item["label"] = row.label
    if row.score is not None:
        item["score"] = row.score
    if row.output is not None:
        item["output"] = msgspec.Raw(row.output.encode())
    if row.error is not None:
        item["error"] = row.error
    return item


def _reply(
    task: records.Task,
    site: str,
    *,
    state: tasks.State,
    reason: str | None = None,
    error: str | None = None,
    version: str | None = None,
    items: Sequence[dict[str, Any]] | msgspec.Raw | None = None,
) -> records.Reply | None:
    if task.origin == records.Origin.HUB or answers.here(task):
        return None  # its origin answers, and who waits for tensors gets them
    body: dict[str, Any] = {"task_id": tasks.format_id(task.task_id), "state": state, "model": task.model}
    known = {"reason": reason, "error": error, "version": version, "id": task.client_id, "items": items}
    body |= {name: value for name, value in known.items() if value is not None}
    return _address(task.task_id, site, task.response_topic, task.correlation, body)


def _address(
    task_id: bytes, site: str, response_topic: str | None, correlation: bytes | None, body: dict[str, Any]
) -> records.Reply:
    if correlation is not None:
        with contextlib.suppress(UnicodeDecodeError):  # MQTT 3.1.1 has no other place for it
            body["correlation"] = correlation.decode()
    return records.Reply(
        task_id=task_id,
        topic=response_topic or topics.result(site, tasks.format_id(task_id)),
        correlation=correlation,
        content_type=jobs.JSON,
        body=_encoder.encode(body),
    )


def _attempt(
    task: records.Task,
    state: tasks.State,
    *,
    reason: str | None = None,
    error: str | None = None,
    retriable: bool = False,
    items_done: int | None = None,
    run_us: int = 0,
) -> records.AttemptRow | None:
    """The word to the hub, if it knows the task: one that it leased, or that was once handed over."""
    if task.hub_attempt is None:
        return None
    return records.AttemptRow(
        task_id=task.task_id,
        attempt=task.hub_attempt,
        state=state,
        reason=reason,
        error=error,
        retriable=retriable,
        items_done=task.items_done if items_done is None else items_done,
        run_us=run_us,
    )
