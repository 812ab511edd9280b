"""The size of an Arrow stream is told by its headers, before anything is unpacked."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import arrow_stream


def stream(
    batches: list[list[float]], compression: str | None = None, dictionary: bool = False
) -> tuple[bytes, int]:
    """A stream of one column, and the bytes of its buffers when unpacked."""
    kind = pa.dictionary(pa.int32(), pa.float64()) if dictionary else pa.float64()
    schema = pa.schema([("x", kind), ("text", pa.string())])
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=True)
    size = 0
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for values in batches:
            column = pa.array(values, pa.float64())
            batch = pa.record_batch(
                [column.dictionary_encode() if dictionary else column, pa.nulls(len(values), pa.string())],
                schema=schema,
            )
            writer.write_batch(batch)
            size += batch.nbytes
    return sink.getvalue(), size


@given(
    batches=st.lists(st.lists(st.floats(allow_nan=False), max_size=30), max_size=4),
    compression=st.sampled_from([None, "lz4", "zstd"]),
    dictionary=st.booleans(),
)
def test_rows_are_those_that_pyarrow_reads(
    batches: list[list[float]], compression: str | None, dictionary: bool
) -> None:
    """Rows are counted as pyarrow counts them, compressed or not, with dictionaries or without."""
    payload, _ = stream(batches, compression, dictionary)
    assert arrow_stream.measure(payload).rows == pa.ipc.open_stream(payload).read_all().num_rows


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_bomb_is_told_by_its_header(compression: str) -> None:
    """A small payload that would unpack to many megabytes is told as that."""
    payload, size = stream([[0.0] * 1_000_000], compression)
    assert len(payload) < size / 20
    extent = arrow_stream.measure(payload)
    assert extent.rows == 1_000_000
    assert extent.unpacked_bytes >= size


def test_what_is_not_compressed_counts_as_it_is() -> None:
    """Without compression nothing grows: the unpacked size is within the payload's."""
    payload, size = stream([[1.0, 2.0, 3.0]] * 3)
    assert size <= arrow_stream.measure(payload).unpacked_bytes <= len(payload)


def test_other_bytes_are_no_stream() -> None:
    """What is not Arrow, and what was cut off, is refused with a reason."""
    payload, _ = stream([[1.0] * 100])
    for broken in (b"hello, this is text", payload[:-200], payload[8:], b"\xff\xff\xff\xff"):
        with pytest.raises(arrow_stream.BadStream, match="not an Arrow IPC stream"):
            arrow_stream.measure(broken)


@settings(max_examples=300)
@given(data=st.data())
def test_hostile_headers_are_refused_or_measured(data: st.DataObject) -> None:
    """Whatever bytes are changed, the answer is an extent or BadStream, never another error."""
    payload = bytearray(stream([[1.0, 2.0], [3.0]], "lz4")[0])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    try:
        extent = arrow_stream.measure(bytes(payload))
    except arrow_stream.BadStream:
        return
    assert extent.rows >= 0
    assert extent.unpacked_bytes >= 0
