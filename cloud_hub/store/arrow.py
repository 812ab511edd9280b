"""Rows of PostgreSQL into Arrow: fetched in binary, turned into columns."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import adapt, pq

_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01, from which PostgreSQL counts, in microseconds since 1970."""

_INT64: Final = struct.Struct("!q")


class _Microseconds(adapt.Loader):
    """An instant as microseconds since 1970: Arrow takes it as it is, and a datetime costs ten times that."""

    format = pq.Format.BINARY

    def load(self, data: adapt.Buffer) -> int:
        (since_2000,) = _INT64.unpack(data)
        return int(since_2000) + _EPOCH_US


def prepare(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> None:
    """Make a binary cursor fetch rows as `batch` takes them."""
    cursor.adapters.register_loader("timestamptz", _Microseconds)


def batch(schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows of a prepared cursor, in the columns of `schema` and their order."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [_array(field.type, values) for field, values in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)
