"""Columns of values on their way into a statement, as PostgreSQL writes arrays: `{1,2,NULL}`.

psycopg looks at each element of a list before it writes one; for the short lists of a busy hub that costs
five times as much as joining them. Pass what is made here as `%(name)s::int[]`: the cast tells the type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

import pyarrow as pa

_Value = TypeVar("_Value")


def numbers(values: Iterable[float | None]) -> str:
    """For an array of integers or floats."""
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


def ids(task_ids: Iterable[bytes | None]) -> str:
    """For a `uuid[]`."""
    return "{" + ",".join(["NULL" if task_id is None else task_id.hex() for task_id in task_ids]) + "}"


def instants(values: Iterable[datetime | None]) -> str:
    """For a `timestamptz[]`."""
    return "{" + ",".join(["NULL" if value is None else value.isoformat() for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """For a `text[]`; every text is quoted, so that none is taken for a NULL, a number or a brace."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def if_any(write: Callable[[Iterable[_Value | None]], str], values: Sequence[_Value | None]) -> str | None:
    """What `write` makes of the values; None if there are none but NULLs.

    Beside longer arrays `unnest` fills a NULL up with NULLs, which costs nothing.
    """
    return None if values.count(None) == len(values) else write(values)


def of(kind: pa.DataType) -> Callable[..., str]:
    """The writer for a column that has this type in Arrow."""
    if pa.types.is_fixed_size_binary(kind):
        return ids
    if pa.types.is_timestamp(kind):
        return instants
    return texts if pa.types.is_string(kind) else numbers


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
