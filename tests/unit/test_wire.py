"""Batches cross the link whole, tolerant of newer peers and safe from broken ones."""

from __future__ import annotations

import datetime
import random
import re
import string
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import lanes, wire

KINDS: Final = sorted(wire.KINDS.values(), key=lambda kind: kind.name)
EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
VALUES: Final[dict[pa.DataType, Callable[[random.Random], Any]]] = {
    pa.binary(16): lambda rng: rng.randbytes(16),
    pa.binary(): lambda rng: rng.randbytes(rng.choice([0, 1, 300])),
    pa.string(): lambda rng: "".join(rng.choices(string.printable + "äß漢🙂", k=rng.choice([0, 1, 12]))),
    pa.bool_(): lambda rng: rng.random() < 0.5,
    pa.int8(): lambda rng: rng.choice([-128, 127, rng.randrange(10)]),
    pa.int16(): lambda rng: rng.choice([-(2**15), 2**15 - 1, rng.randrange(10)]),
    pa.int32(): lambda rng: rng.choice([-(2**31), 2**31 - 1, rng.randrange(10)]),
    pa.int64(): lambda rng: rng.choice([-(2**63), 2**63 - 1, rng.randrange(10)]),
    pa.float32(): lambda rng: rng.choice([0.0, 1.5, -(2.0**100), float("inf")]),
    pa.timestamp("us", tz="UTC"): lambda rng: EPOCH + datetime.timedelta(microseconds=rng.randrange(2**52)),
}
"""A value of each type, extremes included, that is read back as it was written."""


def records(kind: wire.Kind, rows: int, seed: int = 0, nulls: float = 0.3) -> pa.RecordBatch:
    """A batch of so many random records; a nullable value is null with probability `nulls`."""
    rng = random.Random(seed)
    columns = {}
    for f in kind.schema:
        value = VALUES[f.type]
        columns[f.name] = [None if f.nullable and rng.random() < nulls else value(rng) for _ in range(rows)]
    return wire.build(kind, columns)


def stream(table: pa.Table | pa.RecordBatch) -> bytes:
    """A plain Arrow IPC stream, as any peer might write it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def travelled(payload: bytes) -> pa.Schema:
    """The schema in a message."""
    return pa.ipc.open_stream(payload).schema


def plain(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


# There and back


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 127, 128, 300]), min_size=1, max_size=3), seed=st.integers(0, 2**32)
)
def test_records_arrive_as_they_were(kind: wire.Kind, sizes: list[int], seed: int) -> None:
    """Whatever is in them and however they are cut, the records of every kind come back equal."""
    batches = [records(kind, rows, seed + index) for index, rows in enumerate(sizes)]
    arrived = wire.decode(kind, wire.encode(kind, batches), rows=sum(sizes))
    assert arrived.schema == kind.schema
    assert arrived.to_pylist() == pa.Table.from_batches(batches).to_pylist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_records_wait_in_a_journal_as_they_were(kind: wire.Kind) -> None:
    """A packed batch, or a slice of one, is unpacked to what it was, and joins others in a message."""
    whole = records(kind, 40)
    parts = [whole.slice(0, 15), whole.slice(15)]
    unpacked = [wire.unpack(kind, wire.pack(part)) for part in parts]
    assert [part.to_pylist() for part in unpacked] == [part.to_pylist() for part in parts]
    assert wire.decode(kind, wire.encode(kind, unpacked)).to_pylist() == whole.to_pylist()
    assert len(wire.pack(whole.slice(0, 1))) < len(wire.pack(whole)), "a slice leaves the rest behind"


def test_a_full_batch_of_texts_that_all_differ_travels() -> None:
    """The largest batch fits its dictionaries even where no two values are equal."""
    rows = wire.MAX_BATCH_ROWS
    names = [f"name-{row}" for row in range(rows)]
    batch = records(wire.RESULTS, rows, nulls=1.0)
    for name in ("device", "label", "error"):
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, batch.schema.field(at), pa.array(names))
    assert wire.decode(wire.RESULTS, wire.encode(wire.RESULTS, [batch]), rows).equals(batch)


def test_columns_that_are_not_given_are_empty() -> None:
    """`build` takes what there is; the rest is null, in every row."""
    batch = wire.build(wire.COMMANDS, {"command": ["cancel", "cancel"]})
    assert batch.to_pylist() == [{"command": "cancel", "task_id": None, "body": None}] * 2
    assert batch.schema == wire.COMMANDS.schema


# What travels


@pytest.mark.parametrize(
    ("rows", "encoded"), [(wire.DICTIONARY_ROWS - 1, False), (wire.DICTIONARY_ROWS, True)]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_repetitive_columns_travel_as_dictionaries_in_long_batches(
    kind: wire.Kind, rows: int, encoded: bool
) -> None:
    """From DICTIONARY_ROWS records on, and not before, the columns named so are dictionaries."""
    schema = travelled(wire.encode(kind, [records(kind, rows)]))
    assert {f.name for f in schema if pa.types.is_dictionary(f.type)} == (
        {f.name for f in kind.encoded if pa.types.is_dictionary(f.type)} if encoded else set()
    )


@pytest.mark.parametrize("rows", [1, wire.DICTIONARY_ROWS])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_column_that_is_empty_throughout_stays_at_home(kind: wire.Kind, rows: int) -> None:
    """Only columns with a value in them travel, and the others come back empty."""
    batch = records(kind, rows, nulls=1.0)
    payload = wire.encode(kind, [batch])
    assert travelled(payload).names == [f.name for f in kind.schema if not f.nullable]
    assert wire.decode(kind, payload).to_pylist() == batch.to_pylist()


def test_results_are_small_on_the_wire() -> None:
    """A thousand ordinary result rows take at most 40 bytes each, of which 16 are the task's id."""
    rows, rng = 1000, random.Random(1)
    batch = wire.build(
        wire.RESULTS,
        {
            "task_id": [rng.randbytes(16) for _ in range(rows)],
            "item": [0] * rows,
            "attempt": [0] * rows,
            "device": [f"camera-{rng.randrange(8)}" for _ in range(rows)],
            "model": ["surface-defects"] * rows,
            "version": ["3"] * rows,
            "outcome": ["ok"] * rows,
            "label": [rng.choice(["ok", "scratch", "dent"]) for _ in range(rows)],
            "score": [rng.random() for _ in range(rows)],
            "observed_at": [EPOCH + datetime.timedelta(milliseconds=250 * row) for row in range(rows)],
            "wait_us": [rng.randrange(2000) for _ in range(rows)],
            "run_us": [rng.randrange(300, 400) for _ in range(rows)],
        },
    )
    assert len(wire.encode(wire.RESULTS, [batch])) < 40 * rows


# Peers of other versions


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_newer_peers_columns_are_dropped(kind: wire.Kind) -> None:
    """Columns unknown here, of any type and in any place, change nothing about the known ones."""
    batch = records(kind, 5)
    newer = (
        plain(batch)
        .add_column(0, "confidence_interval", pa.array([[0.1, 0.2]] * 5))
        .append_column("hint", pa.array([{"a": 1}] * 5))
        .append_column("site", pa.array(["x"] * 5).dictionary_encode())
    )
    assert wire.decode(kind, stream(newer), rows=5).to_pylist() == batch.to_pylist()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, f.name) for kind in KINDS for f in kind.schema],
    ids=lambda it: getattr(it, "name", it),
)
def test_a_column_that_does_not_come(kind: wire.Kind, name: str) -> None:
    """A missing column is filled with nulls if it may be null, and else an error that names it."""
    batch = records(kind, 3)
    older = stream(plain(batch).drop_columns([name]))
    if kind.schema.field(name).nullable:
        assert wire.decode(kind, older).column(name).null_count == 3
    else:
        with pytest.raises(wire.WireError, match=f"{kind.name} has no column '{name}'"):
            wire.decode(kind, older)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, f.name) for kind in KINDS for f in kind.schema if not f.nullable],
    ids=lambda it: getattr(it, "name", it),
)
def test_a_value_that_must_be_there(kind: wire.Kind, name: str) -> None:
    """A null where none may be is an error that names the column."""
    table = plain(records(kind, 3))
    at = table.schema.get_field_index(name)
    values = [*table.column(name).to_pylist()[:2], None]
    broken = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    with pytest.raises(wire.WireError, match=f"'{name}' of {kind.name} has 1 empty"):
        wire.decode(kind, stream(broken))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("item", pa.array(["first"])),
        ("item", pa.array([2**40])),
        ("score", pa.array([[1.0]])),
        ("task_id", pa.array([b"short"])),
        ("observed_at", pa.array(["yesterday"])),
        ("label", pa.array([b"\xff"])),
    ],
)
def test_a_column_of_another_type(name: str, values: pa.Array) -> None:
    """What cannot be what the schema says is an error that names the column and the type it should have."""
    table = plain(records(wire.RESULTS, 1, nulls=0.0))
    broken = table.set_column(table.schema.get_field_index(name), name, values)
    wanted = re.escape(f"'{name}' of results should be {wire.RESULTS.schema.field(name).type}")
    with pytest.raises(wire.WireError, match=wanted):
        wire.decode(wire.RESULTS, stream(broken))


def test_a_column_in_a_wider_or_narrower_dress() -> None:
    """A type that holds the same values is taken: another width, another index, a dictionary or none."""
    batch = records(wire.ATTEMPTS, 3, nulls=0.0)
    table = plain(batch)
    for name, values in {
        "items_done": batch.column("items_done").cast(pa.int64()),
        "state": batch.column("state").dictionary_encode(),
        "reason": batch.column("reason").cast(pa.large_string()),
        "task_id": batch.column("task_id").cast(pa.binary()),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    assert wire.decode(wire.ATTEMPTS, stream(table)).to_pylist() == batch.to_pylist()


# Broken messages


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_a_batch_must_hold_what_it_claims(rows: int) -> None:
    """Another number of records than the header's is an error with both numbers."""
    payload = wire.encode(wire.COMMANDS, [records(wire.COMMANDS, 3)])
    with pytest.raises(wire.WireError, match=f"claims {rows} records and holds 3"):
        wire.decode(wire.COMMANDS, payload, rows)


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff\xff\xff\xff", b"\x00" * 64, b"\xff" * 64])
def test_what_is_no_stream(payload: bytes) -> None:
    """Bytes that are no Arrow stream are an error that says what they should have been."""
    with pytest.raises(wire.WireError, match="not an Arrow IPC stream of tasks"):
        wire.decode(wire.TASKS, payload)


@pytest.mark.parametrize("rows", [3, wire.DICTIONARY_ROWS])
def test_a_stream_that_was_cut_off(rows: int) -> None:
    """Wherever a message ends too early, it is an error: a part is never taken for the whole."""
    payload = wire.encode(wire.RESULTS, [records(wire.RESULTS, rows)])
    whole = len(payload) - 8  # the end-of-stream mark may be missing
    for length in range(0, whole, 11):
        with pytest.raises(wire.WireError):
            wire.decode(wire.RESULTS, payload[:length], rows)


@pytest.mark.parametrize("rows", [3, wire.DICTIONARY_ROWS])
def test_a_stream_with_flipped_bytes(rows: int) -> None:
    """Whatever a byte is turned to, decoding gives sound records or a WireError, and the process lives."""
    payload = wire.encode(wire.RESULTS, [records(wire.RESULTS, rows)])
    rng = random.Random(rows)
    refused = 0
    for _ in range(1500):
        broken = bytearray(payload)
        for _ in range(rng.choice([1, 1, 1, 4])):
            broken[rng.randrange(len(broken))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        try:
            wire.decode(wire.RESULTS, bytes(broken)).validate(full=True)
        except wire.WireError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_index_beyond_its_dictionary(kind: wire.Kind) -> None:
    """A dictionary's index that points outside is refused before anything follows it."""
    name = next(f.name for f in kind.encoded if pa.types.is_dictionary(f.type))
    table = plain(records(kind, 4))
    indices = pa.array([0, 0, 1_000_000, -5], pa.int32())
    outside = pa.DictionaryArray.from_arrays(indices, pa.array(["only"]), safe=False)
    broken = table.set_column(table.schema.get_field_index(name), name, outside)
    with pytest.raises(wire.WireError, match=f"not an Arrow IPC stream of {kind.name}"):
        wire.decode(kind, stream(broken))


def test_text_that_is_no_utf_8() -> None:
    """Text from outside is checked, so that nobody later stumbles over it."""
    raw = pa.array([b"fine", b"\xff\xfe"])
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = plain(records(wire.COMMANDS, 2)).set_column(2, "body", text)
    with pytest.raises(wire.WireError, match="UTF8"):
        wire.decode(wire.COMMANDS, stream(table))


def test_a_bomb() -> None:
    """A message that would unpack beyond all measure is refused by its headers, before it does."""
    zeros = pa.py_buffer(bytes(wire.MAX_UNPACKED_BYTES + 1))
    bomb = pa.table({"payload": pa.Array.from_buffers(pa.binary(len(zeros)), 1, [None, zeros])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, bomb.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write(bomb)
    payload = sink.getvalue().to_pybytes()
    assert len(payload) < wire.MAX_UNPACKED_BYTES / 1000
    before = pa.total_allocated_bytes()
    with pytest.raises(wire.WireError, match="unpacks to"):
        wire.decode(wire.TASKS, payload)
    assert pa.total_allocated_bytes() <= before


# The header

numbers = st.integers(1, 2**63 - 1)


@st.composite
def headers(draw: st.DrawFn) -> wire.Header:
    first, last, numbered = sorted((draw(numbers), draw(numbers), draw(numbers)))
    return wire.Header(
        epoch=draw(numbers),
        span=lanes.Span(first, last),
        floor=draw(numbers),
        numbered=numbered,
        kind=draw(st.text(max_size=20)),
        schema_version=draw(st.integers(0, 99)),
        sent_us=draw(st.integers()),
    )


@given(header=headers())
def test_a_header_arrives_as_it_was(header: wire.Header) -> None:
    """All of a header's numbers and words travel as user properties, whatever a newer peer adds to them."""
    properties = header.properties()
    assert all(isinstance(value, str) for value in properties.values())
    assert wire.Header.parse(properties | {"traceparent": "00-…", "shard": "7"}) == header


PROPERTIES: Final = wire.Header(7, lanes.Span(5, 9), 5, 20, "results").properties()


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_a_property_that_is_missing(name: str) -> None:
    """A header without one of its properties is an error that names it, but for the time of sending."""
    properties = {key: value for key, value in PROPERTIES.items() if key != name}
    if name == "sent_us":
        assert wire.Header.parse(properties).sent_us == 0
    else:
        with pytest.raises(wire.WireError, match=f"no user property '{name}'"):
            wire.Header.parse(properties)


@pytest.mark.parametrize("value", ["", "x", "1.5", "0x10", "9" * 5000])
@pytest.mark.parametrize("name", sorted(set(PROPERTIES) - {"kind"}))
def test_a_property_that_is_no_number(name: str, value: str) -> None:
    """What should be a number and is none is an error, not a crash."""
    with pytest.raises(wire.WireError, match="is no number"):
        wire.Header.parse(PROPERTIES | {name: value})


@pytest.mark.parametrize(
    "properties",
    [
        {"first": "0"},
        {"first": "-3"},
        {"first": "10"},
        {"last": "21"},
        {"numbered": "8"},
        {"numbered": str(2**63)},
        {"floor": "-1"},
        {"floor": str(2**63)},
        {"epoch": "-1"},
        {"epoch": str(2**64)},
    ],
    ids=str,
)
def test_numbers_that_cannot_be(properties: dict[str, str]) -> None:
    """Records before the first or beyond the last, and numbers that no store can keep, are refused."""
    with pytest.raises(wire.WireError, match=r"claims the records|is out of range"):
        wire.Header.parse(PROPERTIES | properties)
