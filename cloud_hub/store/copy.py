"""Arrow into PostgreSQL: a record batch becomes the bytes of a binary COPY, columns matched by name."""

from __future__ import annotations

import functools
from typing import Any, Final

import pgpq
import pyarrow as pa
from psycopg import sql

from cloud_hub.store import pool

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


async def copy_in(connection: pool.Connection, table: str, batch: pa.RecordBatch) -> None:
    """COPY a batch into the columns of `table` that are called as the batch's are.

    The types must be those that the columns take in binary: `binary(16)` for uuid, `timestamp[us, UTC]`
    for timestamptz. Text that PostgreSQL cannot hold is mended (see `mend`).
    """
    if not batch.num_rows:
        return
    batch = mend(batch)
    encoder = pgpq.ArrowToPostgresBinaryEncoder(batch.schema)
    statement = _statement(table, tuple(batch.schema.names))
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for part in (encoder.write_header(), encoder.write_batch(batch), encoder.finish()):
            await copy.write(part)


@functools.cache
def _statement(table: str, columns: tuple[str, ...]) -> bytes:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(table), names).as_bytes()


def with_constant(batch: pa.RecordBatch, name: str, value: Any, kind: pa.DataType) -> pa.RecordBatch:
    """The batch with a further column that has `value` in every row."""
    column = pa.repeat(pa.scalar(value, kind), batch.num_rows)
    return batch.append_column(pa.field(name, kind), column)


def mend(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with text that PostgreSQL can hold: a NUL, or a byte that is no UTF-8, becomes U+FFFD.

    A camera that reads such a thing off a label is no reason to refuse its verdicts.
    """
    for index, field in enumerate(batch.schema):
        if pa.types.is_string(field.type) and not _is_sound(batch.column(index)):
            texts = [
                None if raw is None else raw.decode(errors="replace").replace("\0", _REPLACEMENT)
                for raw in batch.column(index).cast(pa.binary()).to_pylist()
            ]
            batch = batch.set_column(index, field, pa.array(texts, field.type))
    return batch


def _is_sound(column: pa.Array) -> bool:
    """Whether all texts are UTF-8 without a NUL. The buffer is looked through as a whole: what stands in it
    beside a slice's own texts may cost time and does no harm."""
    buffer = column.buffers()[2]
    data = b"" if buffer is None else buffer.to_pybytes()
    if b"\0" in data:
        return False
    if data.isascii():
        return True
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
