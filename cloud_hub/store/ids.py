"""Task ids between Python and PostgreSQL: 16 bytes here, `uuid` there."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import adapt, pq


class Id(bytes):
    """A task id on its way into a statement; plain bytes would go as `bytea`."""


_UUID: Final = 2950
"""The type's object id, the same in every PostgreSQL."""


class _TextDumper(adapt.Dumper):
    format = pq.Format.TEXT
    oid = _UUID

    def dump(self, obj: bytes) -> bytes:
        return obj.hex().encode()


class _BinaryDumper(adapt.Dumper):
    format = pq.Format.BINARY
    oid = _UUID

    def dump(self, obj: bytes) -> bytes:
        return obj


class _BinaryLoader(adapt.Loader):
    format = pq.Format.BINARY

    def load(self, data: adapt.Buffer) -> bytes:
        return bytes(data)


class _TextLoader(adapt.Loader):
    format = pq.Format.TEXT

    def load(self, data: adapt.Buffer) -> bytes:
        return bytes.fromhex(bytes(data).decode().replace("-", ""))


def register(connection: psycopg.AsyncConnection[Any]) -> None:
    """Make `uuid` columns of a connection load as 16 bytes, and `Id` go as `uuid`."""
    connection.adapters.register_dumper(Id, _TextDumper)
    connection.adapters.register_dumper(Id, _BinaryDumper)
    connection.adapters.register_loader("uuid", _BinaryLoader)
    connection.adapters.register_loader("uuid", _TextLoader)


def lowest(instant: datetime) -> Id:
    """The lowest UUIDv7 of an instant: where its ids begin (RFC 9562, 5.7: 48 bits of milliseconds)."""
    milliseconds = max(0, int(instant.timestamp() * 1000))
    return Id(milliseconds.to_bytes(6, "big") + bytes(10))
