"""Tensors as the protocol carries them, and the arrays that they are.

    datatype      array      as bytes (little-endian)             in JSON
    FP32, INT8…   float32…   the numbers as they are in memory    numbers, flat or nested
    BOOL          bool       a byte each, 0 or 1                  true, false
    BYTES         object     4 bytes of length, then the bytes    texts

Nothing is converted: what is not of the datatype that it claims to be is an error, and numbers come out as
they went in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BYTES: Final = "BYTES"
DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    **{f"FP{size}": f"float{size}" for size in (16, 32, 64)},
    **{f"INT{size}": f"int{size}" for size in (8, 16, 32, 64)},
    **{f"UINT{size}": f"uint{size}" for size in (8, 16, 32, 64)},
}
"""numpy's word for each datatype of numbers."""
DATATYPES: Final[Mapping[str, str]] = {dtype: datatype for datatype, dtype in DTYPES.items()}

_LENGTH: Final = struct.Struct("<I")
_DIMENSIONS: Final = 32


class BadTensor(ValueError):
    """A tensor that is not what it claims to be."""


class NotInJson(ValueError):
    """Values that JSON cannot carry."""


class Tensor(NamedTuple):
    """A named array; of BYTES, one of Python's `bytes`."""

    name: str
    array: Array

    @property
    def datatype(self) -> str:
        return datatype(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def datatype(array: Array) -> str:
    """The datatype of an array; BadTensor if the protocol has none for it."""
    if array.dtype == object:
        return BYTES
    name = DATATYPES.get(array.dtype.name)
    if name is None:
        raise BadTensor(f"the protocol has no tensors of {array.dtype.name}")
    return name


def from_bytes(kind: str, shape: Sequence[int], body: memoryview) -> Array:
    """The array of datatype `kind` in a body that holds nothing else; BadTensor if it does not fit.

    The array shares its memory with `body`, and cannot be written to.
    """
    count = _count(shape)
    if kind == BYTES:
        return _array_of_bytes(_elements(body, count), shape)
    dtype = _dtype(kind)
    if len(body) != count * dtype.itemsize:
        raise BadTensor(
            f"{len(body):,} bytes of data for shape {list(shape)}, which takes {count * dtype.itemsize:,}"
        )
    array = np.frombuffer(body, dtype.newbyteorder("<")).reshape(shape)
    if kind == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise BadTensor("a byte of BOOL is neither 0 nor 1")
    return array.astype(dtype, copy=False)


def to_bytes(array: Array) -> bytes:
    """An array as it travels."""
    if array.dtype == object:
        return b"".join(part for one in array.ravel().tolist() for part in (_LENGTH.pack(len(one)), one))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_json(kind: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """The array of datatype `kind` in JSON, flat or nested in its shape; BadTensor if it does not fit."""
    count = _count(shape)
    try:
        values = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadTensor(f"its data cannot be read: {error}") from None
    if not isinstance(values, list):
        raise BadTensor("its data is no list")
    if kind == BYTES:
        return _array_of_bytes(_texts(values, shape, count), shape)
    dtype = _dtype(kind)
    try:
        plain: Array = np.asarray(values) if values else np.empty(0, dtype)
    except (ValueError, OverflowError):
        raise BadTensor("its rows differ in length") from None
    if dtype.kind in "iu" and plain.size and plain.dtype.kind in "fO":
        plain = _large(np.asarray(values, object), kind)
    if plain.shape not in ((count,), tuple(shape)):
        raise BadTensor(f"data of shape {list(plain.shape)} for shape {list(shape)}")
    return _exactly(plain.reshape(shape), dtype, kind)


def to_json(array: Array) -> list[Any]:
    """An array as JSON's flat list; NotInJson for what JSON has no number or text for."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype == object:
        try:
            return [one.decode() for one in values]
        except UnicodeDecodeError:
            raise NotInJson("it holds bytes that are no UTF-8 text") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotInJson("it holds numbers that are not finite")
    return values


def of_bytes(values: Sequence[bytes], shape: Sequence[int] | None = None) -> Array:
    """An array of BYTES, one-dimensional unless a shape is given."""
    return _array_of_bytes(values, (len(values),) if shape is None else shape)


def _count(shape: Sequence[int]) -> int:
    if len(shape) > _DIMENSIONS or any(not 0 <= size < 1 << 31 for size in shape):
        raise BadTensor(f"shape {list(shape)[:_DIMENSIONS]} has a dimension that is negative, or too large")
    return math.prod(shape)


def _dtype(kind: str) -> np.dtype[Any]:
    if kind not in DTYPES:
        raise BadTensor(f"datatype {kind!r} is not taken: use one of {', '.join([*DTYPES, BYTES])}")
    return np.dtype(DTYPES[kind])


def _exactly(plain: Array, dtype: np.dtype[Any], kind: str) -> Array:
    """Numbers as JSON gave them, in the datatype that they claim to be."""
    fits = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    if plain.size and plain.dtype.kind not in fits:
        raise BadTensor(f"its data is not of {kind}")
    if dtype.kind in "iu" and plain.size:
        limits = np.iinfo(dtype)
        if int(plain.min()) < limits.min or int(plain.max()) > limits.max:
            raise BadTensor(f"a number is out of the range of {kind}, {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        made = plain.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(made).all():  # in JSON they were
        raise BadTensor(f"a number is out of the range of {kind}")
    return made


def _large(plain: Array, kind: str) -> Array:
    """Whole numbers of which some are beyond 63 bits: beside others numpy would make them floats."""
    flat = plain.ravel().tolist()
    if not all(type(one) is int for one in flat):
        raise BadTensor(f"its data is not of {kind}")
    if min(flat) < 0 or max(flat) >= 1 << 64:
        raise BadTensor(f"a number is out of the range of {kind}")
    return np.array(flat, np.uint64).reshape(plain.shape)


def _elements(body: memoryview, count: int) -> list[bytes]:
    """The elements of BYTES."""
    found: list[bytes] = []
    at = 0
    while at < len(body):
        if len(body) - at < _LENGTH.size:
            raise BadTensor("its last element is cut off")
        (size,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if len(body) - at < size:
            raise BadTensor("its last element is cut off")
        found.append(bytes(body[at : at + size]))
        at += size
    if len(found) != count:
        raise BadTensor(f"{len(found)} elements of BYTES, and its shape takes {count}")
    return found


def _texts(values: Any, shape: Sequence[int], count: int) -> list[bytes]:
    """The elements of BYTES in JSON."""
    for _ in shape[1:]:
        if values and all(isinstance(one, list) for one in values):
            values = [inner for one in values for inner in one]
    if len(values) != count or not all(isinstance(one, str) for one in values):
        raise BadTensor(f"its data is not the {count} texts that its shape takes")
    return [one.encode() for one in values]


def _array_of_bytes(values: Sequence[bytes], shape: Sequence[int]) -> Array:
    made = np.empty(len(values), object)
    made[:] = values
    return made.reshape(shape)
