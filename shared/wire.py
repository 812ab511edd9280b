"""What crosses the link: the kinds of records, their Arrow schemas, and a batch's header.

A batch is one Arrow IPC stream of one kind, dictionary-encoded and zstd-compressed, one row a
record; its header travels in the message's MQTT 5 user properties. A newer peer's extra columns
are dropped; a missing column is an error that names it, unless the schema lets it be null.

`pack` and `unpack` are the form in which a record batch waits in a journal: the same columns
without schema and compression, small enough for one row and cheap to join into a batch.

Importing this module loads pyarrow (40 MB): an agent imports it with its first record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from shared import arrow_stream, lanes

CONTENT_TYPE: Final = "application/vnd.apache.arrow.stream"
SCHEMA_VERSION: Final = 1

MAX_BATCH_ROWS: Final = 8192
MAX_BATCH_BYTES: Final = 1 << 20
"""What a sender aims at, before compression; a single larger record travels alone."""
MAX_UNPACKED_BYTES: Final = 256 << 20
"""What a receiver allows a batch to become: far more than any sender's, less than its memory."""

DICTIONARY_ROWS: Final = 128
"""From so many rows on, repetitive columns travel as dictionaries."""


class WireError(ValueError):
    """A batch that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record: its name on the wire and its columns."""

    name: str
    schema: pa.Schema
    encoded: pa.Schema
    """The same columns as they travel, with the repetitive ones dictionary-encoded."""


def _kind(
    name: str, columns: Mapping[str, pa.DataType], *, dictionary: Sequence[str], required: Sequence[str]
) -> Kind:
    plain = pa.schema(
        [pa.field(column, kind, nullable=column not in required) for column, kind in columns.items()]
    )
    encoded = pa.schema(
        [
            pa.field(
                f.name, pa.dictionary(pa.int16(), f.type) if f.name in dictionary else f.type, f.nullable
            )
            for f in plain
        ]
    )
    return Kind(name, plain, encoded)


_ID: Final = pa.binary(16)
_INSTANT: Final = pa.timestamp("us", tz="UTC")

RESULTS: Final = _kind(
    "results",
    {
        "task_id": _ID,
        "item": pa.int32(),  # from 0
        "attempt": pa.int16(),
        "device": pa.string(),
        "model": pa.string(),
        "version": pa.string(),
        "outcome": pa.string(),  # shared.tasks.Outcome
        "label": pa.string(),
        "score": pa.float32(),
        "output": pa.string(),  # JSON
        "error": pa.string(),
        "observed_at": _INSTANT,  # the agent's clock, when the job was accepted
        "clock_offset_us": pa.int64(),  # hub's clock minus agent's, when last measured
        "clock_error_us": pa.int64(),  # half the round trip of that measurement
        "wait_us": pa.int64(),  # from acceptance to the start of its batch
        "run_us": pa.int64(),  # of its batch
    },
    dictionary=("device", "model", "version", "outcome", "label", "error"),
    required=("task_id", "item", "attempt", "model", "version", "outcome", "observed_at"),
)
"""One row an item, whatever became of it: a job that was accepted always ends in rows."""

ATTEMPTS: Final = _kind(
    "attempts",
    {
        "task_id": _ID,
        "attempt": pa.int16(),  # 0: the task's origin ran it itself
        "state": pa.string(),  # COMPLETED, FAILED, TERMINATED, or QUEUED for one put back
        "reason": pa.string(),
        "error": pa.string(),
        "retriable": pa.bool_(),
        "items_done": pa.int32(),
        "run_us": pa.int64(),
    },
    dictionary=("state", "reason", "error"),
    required=("task_id", "attempt", "state", "retriable", "items_done"),
)
"""How an attempt at a task of the hub's ended; downwards, how the task itself ended."""

_WORK: Final[dict[str, pa.DataType]] = {
    "task_id": _ID,
    "model": pa.string(),
    "version": pa.string(),
    "priority": pa.int8(),
    "queue": pa.string(),
    "device": pa.string(),
    "content_type": pa.string(),
    "payload": pa.binary(),  # null: withdrawn, the number is all that is left of it
    "items": pa.int32(),
    "timeout_ms": pa.int64(),  # of one attempt
    "deadline_ms": pa.int64(),  # what is left of it when the batch is made, never an instant
    "traceparent": pa.string(),
}

TASKS: Final = _kind(
    "tasks",
    _WORK
    | {
        "max_attempts": pa.int16(),
        "idempotency_key": pa.string(),
        "response_topic": pa.string(),
        "correlation": pa.binary(),
        "observed_at": _INSTANT,
    },
    dictionary=("model", "version", "queue", "device", "content_type", "response_topic"),
    required=(
        "task_id",
        "model",
        "priority",
        "queue",
        "content_type",
        "items",
        "max_attempts",
        "observed_at",
    ),
)
"""A task handed over to the hub: overflow."""

LEASES: Final = _kind(
    "leases",
    _WORK | {"attempt": pa.int16(), "ttl_ms": pa.int64(), "items_done": pa.int32(), "origin": pa.string()},
    dictionary=("model", "version", "queue", "device", "content_type", "origin"),
    required=(
        "task_id",
        "model",
        "priority",
        "queue",
        "content_type",
        "items",
        "attempt",
        "ttl_ms",
        "items_done",
    ),
)
"""A task to run, for a time; one without payload was withdrawn before it was sent."""

COMMANDS: Final = _kind(
    "commands",
    {"command": pa.string(), "task_id": _ID, "body": pa.string()},
    dictionary=("command",),
    required=("command",),
)
"""Something to do now: `cancel` a task, or `preempt` it, which puts it back at its next item boundary with
its checkpoint; or a word that this agent does not know yet, which it ignores. `body`, JSON: `{"attempt": 2}`
says which attempt is meant, and no other. A preemption must say so; a cancellation without it means any."""

KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in (RESULTS, ATTEMPTS, TASKS, LEASES, COMMANDS)}

_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="zstd")

_NUMBERS: Final = range(1 << 63)
"""What a header's numbers may be: a store keeps them in 64 bits with a sign."""


@dataclass(frozen=True, slots=True)
class Header:
    """The numbers that travel beside a batch."""

    epoch: int
    span: lanes.Span
    floor: int
    """The lowest number that the sender still keeps."""
    numbered: int
    """The highest number that the sender has given out, for the receiver's ledger."""
    kind: str
    schema_version: int = SCHEMA_VERSION
    sent_us: int = 0
    """The sender's wall clock, echoed in the acknowledgement so that it can measure its offset."""

    def properties(self) -> dict[str, str]:
        """The header as MQTT 5 user properties."""
        return {
            "epoch": str(self.epoch),
            "first": str(self.span.first),
            "last": str(self.span.last),
            "floor": str(self.floor),
            "numbered": str(self.numbered),
            "kind": self.kind,
            "schema": str(self.schema_version),
            "sent_us": str(self.sent_us),
        }

    @classmethod
    def parse(cls, properties: Mapping[str, str]) -> Header:
        """The header in a message's user properties; WireError names what is missing or wrong."""
        try:
            header = cls(
                epoch=int(properties["epoch"]),
                span=lanes.Span(int(properties["first"]), int(properties["last"])),
                floor=int(properties["floor"]),
                numbered=int(properties["numbered"]),
                kind=properties["kind"],
                schema_version=int(properties["schema"]),
                sent_us=int(properties.get("sent_us", "0")),
            )
        except KeyError as missing:
            raise WireError(f"the batch has no user property {missing}") from None
        except ValueError as wrong:
            raise WireError(f"a user property of the batch is no number: {wrong}") from None
        if not 1 <= header.span.first <= header.span.last <= header.numbered:
            raise WireError(
                f"the batch claims the records {header.span.first} to {header.span.last} "
                f"of {header.numbered} numbered"
            )
        for name, number in (("epoch", header.epoch), ("floor", header.floor), ("numbered", header.numbered)):
            if number not in _NUMBERS:
                raise WireError(f"the user property {name!r} of the batch is out of range: {number}")
        return header


@dataclass(frozen=True, slots=True)
class Batch:
    """Contiguous records of one kind, as a sender's store gives them out: whole chunks."""

    span: lanes.Span
    kind: Kind
    batches: Sequence[pa.RecordBatch]


def build(kind: Kind, columns: Mapping[str, Sequence[Any] | pa.Array]) -> pa.RecordBatch:
    """A record batch of `kind` from one sequence a column; a column not given is null throughout."""
    rows = len(columns["task_id"] if "task_id" in columns else next(iter(columns.values())))
    arrays = []
    for f in kind.schema:
        values = columns.get(f.name)
        if values is None:
            arrays.append(pa.nulls(rows, f.type))
        else:
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, f.type))
    return pa.RecordBatch.from_arrays(arrays, schema=kind.schema)


def pack(batch: pa.RecordBatch) -> bytes:
    """A record batch as it waits in a journal: one IPC message, neither schema nor compression."""
    return bytes(memoryview(batch.serialize()))


def unpack(kind: Kind, body: bytes) -> pa.RecordBatch:
    """The record batch that `pack` made; zero-copy over `body`."""
    return pa.ipc.read_record_batch(pa.py_buffer(body), kind.schema)


def encode(kind: Kind, batches: Sequence[pa.RecordBatch]) -> bytes:
    """Record batches of one kind as the one Arrow IPC stream of a message.

    A column that is null throughout stays at home, and a short batch goes without dictionaries:
    for a few records the description of the columns outweighs what is in them.
    """
    table = pa.Table.from_batches(batches, schema=kind.schema).combine_chunks()
    target = kind.encoded if table.num_rows >= DICTIONARY_ROWS else kind.schema
    columns, fields = [], []
    for column, f in zip(table.columns, target, strict=True):
        if column.null_count == table.num_rows:
            continue
        columns.append(column.dictionary_encode().cast(f.type) if pa.types.is_dictionary(f.type) else column)
        fields.append(f)
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_COMPRESSED) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return bytes(memoryview(sink.getvalue()))


def decode(kind: Kind, payload: bytes | memoryview, rows: int | None = None) -> pa.RecordBatch:
    """The plain record batch in a message, in the columns of `kind`, dictionaries resolved.

    Raises WireError if it is no sound Arrow stream, unpacks to more than MAX_UNPACKED_BYTES, lacks
    a column that may not be null, has one of another type, or does not hold `rows` records.
    """
    table = _read(kind, payload)
    if rows is not None and table.num_rows != rows:
        raise WireError(f"the batch of {kind.name} claims {rows} records and holds {table.num_rows}")
    arrays = []
    for f in kind.schema:
        index = table.schema.get_field_index(f.name)
        if index < 0:
            if not f.nullable:
                raise WireError(f"the batch of {kind.name} has no column {f.name!r} ({f.type})")
            arrays.append(pa.nulls(table.num_rows, f.type))
            continue
        column = table.column(index)
        if column.type != f.type:
            try:
                column = column.cast(f.type)
            except pa.ArrowException as error:
                raise WireError(f"column {f.name!r} of {kind.name} should be {f.type}: {error}") from None
        if column.null_count and not f.nullable:
            raise WireError(f"column {f.name!r} of {kind.name} has {column.null_count} empty values")
        chunk = column.combine_chunks()
        arrays.append(chunk if isinstance(chunk, pa.Array) else pa.concat_arrays(chunk.chunks))
    return pa.RecordBatch.from_arrays(arrays, schema=kind.schema)


def _read(kind: Kind, payload: bytes | memoryview) -> pa.Table:
    """The table in a stream from outside, with every offset and index checked.

    Arrow's readers and kernels trust the numbers in a stream: one flipped bit in a dictionary's
    index makes a cast read outside its buffers, and that is the end of the process.
    """
    try:
        unpacked = arrow_stream.measure(payload).unpacked_bytes
        if unpacked > MAX_UNPACKED_BYTES:
            raise WireError(f"the batch of {kind.name} unpacks to {unpacked:,} bytes, a bomb or a mistake")
        with pa.ipc.open_stream(payload) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (arrow_stream.BadStream, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise WireError(f"not an Arrow IPC stream of {kind.name}: {error}") from None
    return table
