"""How big an Arrow IPC stream is, read from its headers alone: nothing is unpacked, pyarrow is not needed.

A compressed stream of a kilobyte may unpack to gigabytes. Each compressed buffer says its unpacked
length in its first eight bytes, and readers allocate by that number; so a payload can be refused
before any memory is spent on it.

Sources: the Arrow columnar format ("Encapsulated message format", "Compression") and its
`Message.fbs`; the binary layout of tables and vectors is that of FlatBuffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_CONTINUATION: Final = 0xFFFFFFFF
_DICTIONARY_BATCH: Final = 2
_RECORD_BATCH: Final = 3
_NOT_COMPRESSED: Final = -1


class BadStream(ValueError):
    """Bytes that are not an Arrow IPC stream, or one that was cut off."""


class Extent(NamedTuple):
    """What a stream holds."""

    rows: int
    unpacked_bytes: int
    """Bytes of all buffers once decompressed; those that are not compressed count as they are."""


def measure(payload: bytes | memoryview) -> Extent:
    """The rows and the unpacked size of a stream; BadStream if its framing is broken.

    The column data itself is not looked at: a reader must still validate it.
    """
    view = memoryview(payload)
    rows = unpacked = 0
    try:
        for kind, header, body in _messages(view):
            if kind == _RECORD_BATCH:
                rows += header.int64(0)
                unpacked += _unpacked(header, body)
            elif kind == _DICTIONARY_BATCH:
                unpacked += _unpacked(header.table(1), body)
    except (struct.error, IndexError, ValueError) as error:
        raise BadStream(f"not an Arrow IPC stream: {error}") from None
    return Extent(rows, unpacked)


class _Table:
    """A FlatBuffers table at `position`: fields by their number in the schema, 0 where absent."""

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view
        self._position = position
        self._fields = position - _read("<i", view, position)
        self._end = self._fields + _read("<H", view, self._fields)

    def int64(self, field: int) -> int:
        place = self._place(field)
        value = _read("<q", self._view, place) if place else 0
        if value < 0:
            raise ValueError(f"a length of {value}")
        return value

    def byte(self, field: int) -> int:
        place = self._place(field)
        return self._view[place] if place else 0

    def has(self, field: int) -> bool:
        return self._place(field) != 0

    def table(self, field: int) -> _Table:
        return _Table(self._view, self._target(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two int64."""
        if not self.has(field):
            return
        start = self._target(field)
        count = _read("<I", self._view, start)
        for place in range(start + 4, start + 4 + 16 * count, 16):
            yield _read("<q", self._view, place), _read("<q", self._view, place + 8)

    def _place(self, field: int) -> int:
        entry = self._fields + 4 + 2 * field
        offset = _read("<H", self._view, entry) if entry < self._end else 0
        return self._position + offset if offset else 0

    def _target(self, field: int) -> int:
        place = self._place(field)
        if not place:
            raise ValueError("a header without its parts")
        return place + _read("<I", self._view, place)


def _messages(view: memoryview) -> Iterator[tuple[int, _Table, memoryview]]:
    """Each message's kind, header and body, up to the end-of-stream mark or the end of the bytes."""
    position = 0
    while position < len(view):
        if _read("<I", view, position) != _CONTINUATION:
            raise ValueError(f"no message begins at byte {position}")
        size = _read("<I", view, position + 4)
        if size == 0:
            return
        head = view[position + 8 : position + 8 + size]
        message = _Table(head, _read("<I", head, 0))
        position += 8 + size
        end = position + message.int64(3)
        if end > len(view):
            raise ValueError(f"cut off: {end - len(view)} bytes are missing")
        if message.has(2):
            yield message.byte(1), message.table(2), view[position:end]
        position = end


def _unpacked(batch: _Table, body: memoryview) -> int:
    if not batch.has(3):
        return len(body)
    total = 0
    for offset, length in batch.pairs(2):
        size = _read("<q", body, offset) if length >= 8 else _NOT_COMPRESSED
        total += length if size == _NOT_COMPRESSED else size
        if size < _NOT_COMPRESSED or length < 0:
            raise ValueError(f"a buffer of {min(size, length)} bytes")
    return total


def _read(form: str, view: memoryview, place: int) -> int:
    if place < 0:  # struct would count from the end
        raise ValueError("an offset out of bounds")
    value: int = struct.unpack_from(form, view, place)[0]
    return value
