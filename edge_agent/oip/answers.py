"""What becomes of a task that came by the protocol: tensors, or why there are none. Pure.

The answer is kept in the journal for whoever repeats the request, so it says all that the graph gave: the
same answer serves clients that ask for other outputs, or in another form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from edge_agent import outcomes
from edge_agent.journal import records
from edge_agent.oip import messages, tensors
from shared import tasks

_FAILED: Final = f"{messages.CONTENT_TYPE}.failed"
"""The content type of an answer that says why there are no tensors."""
_STATUS: Final = {tasks.Reason.EXPIRED: 504, tasks.Reason.CANCELLED: 409}
"""Of tasks that ended without having run; 500 for other reasons."""


class Made(NamedTuple):
    """What a model gave."""

    version: str
    outputs: Sequence[tensors.Tensor]


class Failed(msgspec.Struct, frozen=True):
    """Why it gave nothing, with an HTTP status."""

    status: int
    error: str


OTHER_WAY: Final = Failed(409, "the idempotency key is that of a job that came another way")


class _Version(msgspec.Struct):
    version: str


def here(task: records.Task) -> bool:
    """Whether the task came by the protocol: whoever waits for its end does so at the local port."""
    return task.content_type == messages.CONTENT_TYPE


def asked_here(known: records.Accepted) -> bool:
    """Whether the first job with an idempotency key came by the protocol: no device can be told its end."""
    if known.task is not None:
        return here(known.task)
    return known.reply is not None and known.reply.content_type in (messages.CONTENT_TYPE, _FAILED)


def completed(task: records.Task, results: Sequence[outcomes.Outcome], version: str) -> records.Reply:
    """The answer when all items have run. They are one tensor, so one that failed fails them all."""
    rows = []
    for item, one in enumerate(results):
        if isinstance(one, outcomes.ItemFailed):
            status = 400 if one.kind is outcomes.Failure.INVALID_INPUT else 500
            return _failed(task, status, f"item {item}: {one.reason}" if task.items > 1 else one.reason)
        rows.append(one.raw or {})
    try:
        outputs = [tensors.Tensor(name, np.stack([row[name] for row in rows])) for name in rows[0]]
        body = messages.write({"version": version}, {"outputs": outputs}, binary=True)
    except (ValueError, KeyError) as error:  # what one item gave is not of the shape of another's
        return _failed(task, 500, f"the items' outputs do not go together, ask for one at a time: {error}")
    return _reply(task, messages.CONTENT_TYPE, messages.pack(body))


def ended(task: records.Task, reason: tasks.Reason, error: str) -> records.Reply:
    """The answer when the task did not run."""
    return _failed(task, _STATUS.get(reason, 500), error)


def read(reply: records.Reply) -> Made | Failed:
    """What an answer says."""
    if reply.content_type == messages.CONTENT_TYPE:
        body = messages.unpack(reply.body)
        version = msgspec.json.decode(body.bytes[: body.header], type=_Version).version
        return Made(version, messages.response(body.bytes, body.header))
    if reply.content_type == _FAILED:
        return msgspec.json.decode(reply.body, type=Failed)
    return OTHER_WAY


def _failed(task: records.Task, status: int, error: str) -> records.Reply:
    return _reply(task, _FAILED, msgspec.json.encode(Failed(status, error)))


def _reply(task: records.Task, content_type: str, body: bytes) -> records.Reply:
    return records.Reply(
        task_id=task.task_id, topic=records.NOWHERE, correlation=None, content_type=content_type, body=body
    )
