"""From the body of a request to jobs: checked, complete, or refused with all that is wrong.

A batch is many tasks in one body: JSON `{"tasks": [...]}`, each as a single JSON task would be, or an
Arrow IPC stream with one row a task. It is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from cloud_hub.api import problems
from shared import arrow_stream, jobs, topics

MAX_FAULTS: Final = 100
"""Faults that an answer lists."""

UNSAID: Final = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
"""Content types that clients send when they were told none: the body's first bytes say what it is."""

METADATA: Final = frozenset(field.name for field in msgspec.structs.fields(jobs.Metadata))
"""The names of the metadata: fields of JSON, columns of an Arrow batch."""

_SAID: Final = METADATA | {"model", "model_name", "device"}


class _Batch(msgspec.Struct):
    tasks: list[msgspec.Raw]


class Raw(NamedTuple):
    """One task as it was sent."""

    body: bytes
    content_type: str
    model: str | None
    device: str | None
    properties: dict[str, Any]
    """Metadata beside the body."""


class Taken(NamedTuple):
    """A job that may become a task."""

    job: jobs.Job
    device: str | None


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bad JSON, bad UTF-8 and bottomless nesting."""
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_batch: Final = msgspec.json.Decoder(_Batch)


def one(raw: Raw, max_bytes: int) -> Taken:
    """The job in one task. Raises Problem REJECTED."""
    try:
        return _take(raw, max_bytes)
    except jobs.Rejected as wrong:
        raise problems.Problem(problems.REJECTED, str(wrong), where=wrong.field) from None


def batch(body: bytes, content_type: str, *, max_tasks: int, max_bytes: int) -> list[Taken]:
    """The jobs in a batch, in its order. Raises Problem REJECTED with the faults of all its tasks."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in UNSAID:
        kind = jobs.sniff(body)
    if kind == jobs.JSON:
        raws: Iterable[Raw] = _json_tasks(body, max_tasks)
    elif kind == jobs.ARROW:
        raws = _arrow_tasks(body, max_tasks)
    else:
        raise problems.Problem(
            problems.UNSUPPORTED,
            f"a batch is {jobs.JSON} or {jobs.ARROW}, not {kind or 'of an unknown kind'}",
            where="content-type",
        )
    taken, faults, failed = [], [], 0
    for place, raw in enumerate(raws):
        try:
            taken.append(_take(raw, max_bytes))
        except jobs.Rejected as wrong:
            failed += 1
            if failed <= MAX_FAULTS:
                faults.append((f"tasks/{place}" + (f"/{wrong.field}" if wrong.field else ""), str(wrong)))
    if failed:
        raise problems.Problem(
            problems.REJECTED,
            f"{failed} of {failed + len(taken)} tasks cannot be taken, so none of them was stored; "
            f"the first: {faults[0][0]}: {faults[0][1]}",
            faults=faults,
        )
    if not taken:
        raise problems.Problem(problems.REJECTED, "the batch has no tasks", where="tasks")
    return taken


def _take(raw: Raw, max_bytes: int) -> Taken:
    kind = raw.content_type.partition(";")[0].strip().lower()
    if kind in UNSAID:
        kind = jobs.sniff(raw.body)
    model, device, beside = raw.model, raw.device, raw.properties
    if kind == jobs.JSON:
        said = _said(raw.body)
        model = _agree(model, said.get("model"), said.get("model_name"))
        device = device or said.get("device")
        beside = {name: value for name, value in said.items() if name in METADATA} | beside
    if model is None:
        raise jobs.Rejected(
            "no model is named: say ?model=NAME or ?model=NAME@VERSION, or 'model' in a JSON body", "model"
        )
    if device is not None:
        try:
            topics.check_name(device, "device")
        except topics.BadTopic as wrong:
            raise jobs.Rejected(str(wrong), "device") from None
    return Taken(jobs.parse(model, raw.body, kind or None, beside, max_payload=max_bytes), device)


def _agree(*names: str | None) -> str | None:
    """The one model that was named, in whatever places it was."""
    named = {name for name in names if name is not None}
    if len(named) > 1:
        raise jobs.Rejected(f"more than one model is named: {', '.join(sorted(named))}", "model")
    return named.pop() if named else None


def _json_tasks(body: bytes, max_tasks: int) -> Iterator[Raw]:
    try:
        found = _batch.decode(body).tasks
    except _UNREADABLE as error:
        raise problems.Problem(
            problems.REJECTED, f'the body is not {{"tasks": [...]}}: {error}', where="tasks"
        ) from None
    _check_count(len(found), max_tasks)
    return (Raw(bytes(task), jobs.JSON, None, None, {}) for task in found)


def _arrow_tasks(body: bytes, max_tasks: int) -> Iterator[Raw]:
    """The rows of an Arrow batch, refused by its headers before anything of it is unpacked."""
    try:
        extent = arrow_stream.measure(body)
        _check_count(extent.rows, max_tasks)
        # Compression saves a client bandwidth, but must not multiply what the hub holds.
        if extent.unpacked_bytes > 4 * len(body) + (1 << 20):
            raise arrow_stream.BadStream(
                f"it unpacks to {extent.unpacked_bytes:,} bytes; send it uncompressed"
            )
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)  # Arrow trusts the offsets in a stream: a flipped bit would end the process
    except (arrow_stream.BadStream, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise problems.Problem(
            problems.REJECTED, f"the body is not an Arrow IPC stream of tasks: {error}", where="body"
        ) from None
    for name in ("payload", "model"):
        if name not in table.column_names:
            raise problems.Problem(
                problems.REJECTED,
                f"the Arrow stream has no column {name!r}; it has {', '.join(table.column_names)}",
                where=name,
            )
    said = [name for name in table.column_names if name in METADATA]
    return (_row(row, said) for part in table.to_batches(max_chunksize=256) for row in part.to_pylist())


def _row(row: Mapping[str, Any], said: Sequence[str]) -> Raw:
    """`said`: the columns of metadata."""
    properties = {name: row[name] for name in said if row[name] is not None}
    payload = row["payload"]
    if isinstance(payload, str):
        payload = payload.encode()
    return Raw(payload or b"", row.get("content_type") or "", row["model"], row.get("device"), properties)


def _check_count(count: int, max_tasks: int) -> None:
    if count > max_tasks:
        raise problems.Problem(
            problems.TOO_LARGE,
            f"the batch has {count:,} tasks; at most {max_tasks:,} are taken",
            where="tasks",
        )


def _said(body: bytes) -> dict[str, Any]:
    """What a JSON task says of itself outside of `parameters`, of what this module and the metadata know."""
    try:
        fields = _fields.decode(body)
        said = {name: msgspec.json.decode(raw) for name, raw in fields.items() if name in _SAID}
    except _UNREADABLE as error:
        raise jobs.Rejected(f"the JSON body cannot be read: {error}") from None
    for name in ("model", "model_name", "device"):
        if not isinstance(said.get(name), str | None):
            raise jobs.Rejected(f"{name} is no text", name)
    return said
