"""Arrow payloads: a stream of record batches, one row an item, one column an input of the graph.

A tensor's column is a list of numbers (of a fixed size or not), or plain numbers where an item has
one; a picture's is binary, or the numbers as the graph takes them. Columns that the model does not
know are passed over.

pyarrow is imported here and nowhere else on the way of a payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from edge_agent import decode, frames, images, models
from shared import arrow_stream, manifests


def unpack(model: models.Model, payload: bytes) -> decode.Items:
    """Open an Arrow payload; Unreadable if its columns are not what the model takes."""
    limit = model.manifest.limits.max_unpacked_bytes
    try:
        extent = arrow_stream.measure(payload)
        if extent.unpacked_bytes > limit:
            raise decode.Unreadable(
                f"the Arrow payload unpacks to {extent.unpacked_bytes:,} bytes, and at most {limit:,} "
                "are taken: send fewer rows, or raise limits.max_unpacked_bytes of the model"
            )
        table = _read(model, payload)
        # Readers trust a batch's lengths and offsets; checked once, no row can point outside its buffers.
        table.validate(full=True)
    except decode.Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - hostile headers make readers raise all kinds, even UnicodeDecodeError
        raise decode.Unreadable(f"the Arrow payload cannot be read: {error}") from None
    if table.num_rows == 0:
        raise decode.Unreadable("the Arrow payload has no rows")
    return decode.Columns(
        {spec.name: _column(table.column(spec.name), spec, model) for spec in model.manifest.inputs}
    )


class NumberRows:
    """A column whose rows are lists of numbers, or plain numbers."""

    def __init__(self, column: pa.ChunkedArray, spec: manifests.Input) -> None:
        self._column = column
        self._spec = spec
        self._size = manifests.item_size(spec.shape)

    def __len__(self) -> int:
        return len(self._column)

    def fill(
        self, start: int, stop: int, out: decode.Array, placed: frames.Rows | None = None
    ) -> Mapping[int, str]:
        lists = _contiguous(self._column.slice(start, stop - start))
        try:
            out[...] = self._numbers(lists)
        except decode.BadValues:
            return self._one_by_one(lists, out)
        return {}

    def _one_by_one(self, lists: pa.Array, out: decode.Array) -> dict[int, str]:
        """Every row on its own, for one of them is not what it should be."""
        failed: dict[int, str] = {}
        for row in range(len(lists)):
            try:
                out[row] = self._numbers(lists.slice(row, 1))[0]
            except decode.BadValues as error:
                failed[row] = str(error)
        return failed

    def _numbers(self, lists: pa.Array) -> decode.Array:
        """All rows of `lists` at once, in the input's shape; BadValues if one of them is not whole."""
        if lists.null_count:
            raise decode.BadValues("it is null")
        values = lists
        if _is_list(lists.type):
            values = lists.flatten()
            if not pa.types.is_fixed_size_list(lists.type):
                lengths = np.diff(lists.offsets.to_numpy())
                wrong = lengths[lengths != self._size]
                if wrong.size:
                    raise decode.BadValues(f"it has {wrong[0]} numbers, and {self._size} are needed")
        if values.null_count:
            raise decode.BadValues("a number in it is null")
        plain = decode.cast(values.to_numpy(zero_copy_only=False), self._spec.dtype)
        return plain.reshape(len(lists), *self._spec.shape)


def _read(model: models.Model, payload: bytes) -> pa.Table:
    """The columns that the model takes, and no others."""
    with pa.ipc.open_stream(payload) as reader:
        schema = reader.schema
    wanted: list[int] = []
    for spec in model.manifest.inputs:
        places = schema.get_all_field_indices(spec.name)
        if len(places) != 1:
            sent = ", ".join(repr(name) for name in schema.names) or "none"
            raise decode.Unreadable(
                f"{model} needs one column {spec.name!r}, and this has {len(places)}; its columns: {sent}"
            )
        wanted.append(places[0])
        _check_type(schema.field(places[0]).type, spec)
    options = pa.ipc.IpcReadOptions(included_fields=wanted)
    with pa.ipc.open_stream(payload, options=options) as reader:
        return reader.read_all()


def _check_type(kind: Any, spec: manifests.Input) -> None:
    """Unreadable unless rows of that type can become the input."""
    kind = _storage(kind)
    if isinstance(spec, manifests.ImageInput) and _is_binary(kind):
        return
    if spec.varies:
        raise decode.Unreadable(
            f"column {spec.name!r} is of type {kind}: the input is as large as its picture, so encoded "
            "pictures (binary) are needed"
        )
    size = manifests.item_size(spec.shape)
    number = kind.value_type if _is_list(kind) else kind
    if not (pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_boolean(number)):
        pictures = ", or binary with encoded pictures" if isinstance(spec, manifests.ImageInput) else ""
        raise decode.Unreadable(
            f"column {spec.name!r} is of type {kind}: lists of {size} numbers are needed{pictures}"
        )
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else size if _is_list(kind) else 1
    if width != size:
        raise decode.Unreadable(f"column {spec.name!r} has {width} numbers a row, and {size} are needed")


def _column(column: pa.ChunkedArray, spec: manifests.Input, model: models.Model) -> decode.Column:
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], type=_storage(column.type))
    if isinstance(spec, manifests.ImageInput) and _is_binary(column.type):
        reader = images.reader(spec, model.manifest.limits.max_pixels)
        return decode.Pictures(reader, column, _picture)
    return NumberRows(column, spec)


def _picture(cell: Any) -> bytes:
    if not cell.is_valid:
        raise decode.BadValues("it is null")
    encoded: bytes = cell.as_py()
    return encoded


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _storage(kind: Any) -> Any:
    """What an extension type, such as Arrow's fixed-shape tensor, is laid out as."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
