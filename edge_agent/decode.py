"""A task's payload to the arrays that the graph takes.

`unpack` opens a payload of one of the canonical content types (see `shared.jobs`) as `Items`, which
write any range of items straight into the rows of a batch. Numbers of a whole range are copied at
once; pictures are decoded one by one, only when they are asked for, so that a payload of a thousand
pictures never stands in memory decoded. An item that cannot be read fails alone.

Where the size of an input depends on the picture, the headers of a batch's pictures are read first, and
room is made for the largest.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent import frames, images, models, outcomes
from edge_agent.oip import messages
from shared import jobs, manifests

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Inputs = dict[str, Array]
"""One item: an array for each input of the graph, without the batch dimension."""


class Unreadable(ValueError):
    """A payload of which no item can be read; the message is for whoever sent it."""


class BadValues(ValueError):
    """Values that the graph's input cannot take."""


class Stack(NamedTuple):
    """Items side by side: an array for each input of the graph, its first dimension the batch.

    `frames` says where their pictures lie, if the manifest has an output that speaks of places.
    """

    arrays: dict[str, Array]
    frames: frames.Frames | None = None

    def take(self, items: Sequence[int]) -> Stack:
        """Some of the items, in that order."""
        return Stack(
            {name: array[items] for name, array in self.arrays.items()},
            self.frames and self.frames.take(items),
        )


class Column(Protocol):
    """One input of the graph, for all items of a payload."""

    def __len__(self) -> int: ...

    def fill(self, start: int, stop: int, out: Array, placed: frames.Rows | None = None) -> Mapping[int, str]:
        """Write items `start` to `stop` into the rows of `out`; why not, by row, for those that can't.

        Where pictures lie is written into the rows of `placed`.
        """
        ...


class Items(Protocol):
    """The items of one payload. Reading keeps no state: ranges may be read in any order, by any thread."""

    def __len__(self) -> int: ...

    def shapes(self, start: int, stop: int) -> Mapping[str, Shape]:
        """The smallest shape that holds each of items `start` to `stop`, of the inputs whose size varies."""
        ...

    def read(self, start: int, stop: int, into: Stack, row: int = 0) -> dict[int, str]:
        """Write items `start` to `stop` into `into`, from `row` on, and return why some are not there.

        The reasons are by row of `into`; what a failed row then holds is undefined.
        """
        ...


class Span(NamedTuple):
    """A range of the items of one payload."""

    items: Items
    start: int
    stop: int


class Columns:
    """Items of which each input of the graph has a column."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._count = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._count

    def shapes(self, start: int, stop: int) -> Mapping[str, Shape]:
        return {
            name: column.shape(start, stop)
            for name, column in self._columns.items()
            if isinstance(column, Pictures) and column.varies
        }

    def read(self, start: int, stop: int, into: Stack, row: int = 0) -> dict[int, str]:
        failed: dict[int, str] = {}
        rows = slice(row, row + stop - start)
        for name, column in self._columns.items():
            framed = into.frames
            placed = framed.rows[rows] if framed is not None and framed.name == name else None
            reasons = column.fill(start, stop, into.arrays[name][rows], placed)
            for position, reason in reasons.items():
                failed.setdefault(row + position, f"input {name!r}: {reason}")
        return failed


class Broken:
    """Items of which none can be read, all for one reason."""

    def __init__(self, count: int, reason: str) -> None:
        self._count = count
        self._reason = reason

    def __len__(self) -> int:
        return self._count

    def shapes(self, start: int, stop: int) -> Mapping[str, Shape]:
        return {}

    def read(self, start: int, stop: int, into: Stack, row: int = 0) -> dict[int, str]:
        return dict.fromkeys(range(row, row + stop - start), self._reason)


class Pictures:
    """A column of encoded pictures, each wrapped in what its payload wraps them in."""

    def __init__(
        self, reader: images.Reader, wrapped: Sequence[Any], unwrap: Callable[[Any], bytes] | None = None
    ) -> None:
        self._reader = reader
        self._wrapped = wrapped
        self._unwrap = unwrap

    def __len__(self) -> int:
        return len(self._wrapped)

    @property
    def varies(self) -> bool:
        """Whether the size of the input depends on the picture."""
        return self._reader.spec.varies

    def shape(self, start: int, stop: int) -> Shape:
        """The smallest shape that holds each of the pictures `start` to `stop`, by their headers."""
        spec = self._reader.spec
        height = width = 1
        for encoded in map(self._wrapped.__getitem__, range(start, stop)):
            with contextlib.suppress(images.BadImage, BadValues):  # when it is read, that is told
                frame = self._reader.frame(self._unwrap(encoded) if self._unwrap else encoded)
                one = frames.extent(spec, frame)
                height, width = max(height, one[0]), max(width, one[1])
        return spec.shaped(height, width)

    def fill(self, start: int, stop: int, out: Array, placed: frames.Rows | None = None) -> Mapping[int, str]:
        failed: dict[int, str] = {}
        for row, position in enumerate(range(start, stop)):
            encoded = self._wrapped[position]
            try:
                self._reader.read(
                    self._unwrap(encoded) if self._unwrap else encoded,
                    out[row],
                    None if placed is None else placed[row],
                )
            except (images.BadImage, BadValues) as error:
                failed[row] = str(error)
        return failed


class Numbers:
    """A column of numbers that stand in an array already; `bad` says why some rows of it don't count."""

    def __init__(self, values: Array, bad: Mapping[int, str]) -> None:
        self._values = values
        self._bad = bad

    def __len__(self) -> int:
        return len(self._values)

    def fill(self, start: int, stop: int, out: Array, placed: frames.Rows | None = None) -> Mapping[int, str]:
        out[...] = self._values[start:stop]
        if not self._bad:
            return {}
        return {row - start: self._bad[row] for row in range(start, stop) if row in self._bad}


def allocate(model: models.Model, count: int, spans: Iterable[Span] = ()) -> Stack:
    """Room for a batch of `count` items, not initialised.

    Inputs whose size varies are as large as the items in `spans` need, or of the usual size without them.
    """
    manifest = model.manifest
    shapes: dict[str, Shape] = {}
    if manifest.varies:
        for items, start, stop in spans:
            for name, shape in items.shapes(start, stop).items():
                shapes[name] = tuple(map(max, shape, shapes.get(name, shape)))
    arrays = {
        spec.name: np.empty((count, *shapes.get(spec.name, spec.shape)), spec.dtype)
        for spec in manifest.inputs
    }
    picture = manifest.picture if manifest.has_boxes else None
    if picture is None:
        return Stack(arrays)
    return Stack(arrays, frames.empty(picture, arrays[picture.name].shape[1:], count))


def unpack(model: models.Model, content_type: str, payload: bytes) -> Items:
    """Open a payload for `model`; Unreadable if it is not of a form that the model's inputs can take."""
    if content_type in (jobs.PNG, jobs.JPEG):
        return _picture(model, payload)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == jobs.JSON:
        return _request(model, payload)
    if kind == jobs.ARROW:
        from edge_agent import rows  # pyarrow takes 40 MB: only agents that are sent Arrow pay for it

        return rows.unpack(model, payload)
    if kind in (jobs.PNG, jobs.JPEG):
        return _picture(model, payload)
    if kind == messages.CONTENT_TYPE:
        from edge_agent.oip import items  # which needs what is here

        return items.unpack(model, payload)
    raise Unreadable(
        f"content type {content_type!r} is not known: use one of {', '.join(jobs.CONTENT_TYPES)}"
    )


def decode(model: models.Model, content_type: str, payload: bytes) -> list[Inputs | outcomes.ItemFailed]:
    """Every item of a payload as arrays of its own; a payload that can't be read is one failed item."""
    try:
        items = unpack(model, content_type, payload)
    except Unreadable as error:
        return [outcomes.ItemFailed(str(error))]
    batch = allocate(model, len(items), [Span(items, 0, len(items))])
    failed = items.read(0, len(items), batch)
    return [
        outcomes.ItemFailed(failed[row])
        if row in failed
        else {name: array[row] for name, array in batch.arrays.items()}
        for row in range(len(items))
    ]


def cast(values: Array, dtype: str) -> Array:
    """`values` as the graph's `dtype`; BadValues where that would change what they say.

    Numbers may lose precision on their way to a float, never range or fraction on their way to an integer.
    """
    wanted = np.dtype(dtype)
    if values.dtype == wanted:
        return values
    if values.dtype.kind not in "biuf":
        raise BadValues("it holds something other than numbers")
    if wanted.kind == "f":
        with np.errstate(
            over="ignore"
        ):  # too large becomes infinite, and what the model makes of it is checked
            return values.astype(wanted)
    if values.dtype.kind == "f" or wanted.kind == "b":
        raise BadValues(f"the model takes {dtype} here, and these are of type {values.dtype}")
    limits = np.iinfo(wanted)
    if values.size and not (limits.min <= int(values.min()) and int(values.max()) <= limits.max):
        raise BadValues(f"a number is out of the range of {dtype}, {limits.min} to {limits.max}")
    return values.astype(wanted)


def _picture(model: models.Model, payload: bytes) -> Items:
    """One picture, for a model that takes nothing else."""
    first, *others = model.manifest.inputs
    if others or not isinstance(first, manifests.ImageInput):
        wanted = ", ".join(repr(spec.name) for spec in model.manifest.inputs)
        raise Unreadable(
            f"{model} does not take a bare image: send JSON or Arrow that names its inputs ({wanted})"
        )
    return Columns({first.name: Pictures(images.reader(first, model.manifest.limits.max_pixels), (payload,))})


# --- JSON: the Open Inference Protocol v2 -------------------------------------------------------


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class _Request(msgspec.Struct):
    inputs: list[_Tensor]


_requests: Final = msgspec.json.Decoder(_Request)


def _request(model: models.Model, payload: bytes) -> Items:
    try:
        request = _requests.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"not an Open Inference Protocol request: {error}") from None
    tensors = {tensor.name: tensor for tensor in request.inputs}
    columns: dict[str, Column] = {}
    for spec in model.manifest.inputs:
        tensor = tensors.get(spec.name)
        if tensor is None:
            sent = ", ".join(repr(name) for name in tensors) or "none"
            raise Unreadable(f"input {spec.name!r} of {model} is missing; sent: {sent}")
        if not tensor.shape or tensor.shape[0] < 1:
            raise Unreadable(
                f"input {spec.name!r}: shape {tensor.shape} has no items; its first dimension counts them"
            )
        columns[spec.name] = _column(tensor, spec, model.manifest.limits.max_pixels)
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{name!r} {len(column)}" for name, column in columns.items())
        raise Unreadable(f"the inputs disagree on the number of items: {counts}")
    return Columns(columns)


def _column(tensor: _Tensor, spec: manifests.Input, max_pixels: int) -> Column:
    """One tensor of a request: base64 pictures (`BYTES`) for an image's input, else the numbers."""
    count, *shape = tensor.shape
    if tensor.datatype == "BYTES" and isinstance(spec, manifests.ImageInput):
        if len(tensor.data) != count:
            raise Unreadable(f"input {tensor.name!r}: {len(tensor.data)} pictures for shape {tensor.shape}")
        return Pictures(images.reader(spec, max_pixels), tensor.data, _unbase64)
    if spec.varies:
        raise Unreadable(
            f"input {tensor.name!r} is as large as its picture: send pictures in base64 (BYTES), not numbers"
        )
    size = manifests.item_size(spec.shape)
    if tuple(shape) != spec.shape and not (size == 1 and not shape):
        raise Unreadable(f"input {tensor.name!r}: shape {tensor.shape}, and {[count, *spec.shape]} is needed")
    nested = isinstance(tensor.data[0], list) if tensor.data else False
    if len(tensor.data) != (count if nested else count * size):
        raise Unreadable(
            f"input {tensor.name!r}: {len(tensor.data)} numbers in data for shape {tensor.shape}"
        )
    whole = (count, *spec.shape)
    try:
        return Numbers(_array(tensor.data, whole, spec.dtype), {})
    except BadValues:
        return _one_by_one(tensor.data if nested else _slices(tensor.data, size), whole, spec.dtype)


def _one_by_one(items: Sequence[Any], shape: tuple[int, ...], dtype: str) -> Numbers:
    """The numbers of each item on its own, for one of them is not what it should be."""
    values = np.zeros(shape, dtype)
    bad: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            values[position] = _array(item, shape[1:], dtype)
        except BadValues as error:
            bad[position] = str(error)
    return Numbers(values, bad)


def _array(data: Any, shape: tuple[int, ...], dtype: str) -> Array:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):
        raise BadValues("its rows differ in length") from None
    if values.dtype.kind not in "biuf":
        raise BadValues("it holds something other than numbers")
    if values.size != manifests.item_size(shape):
        raise BadValues(f"it has {values.size} numbers, and {manifests.item_size(shape)} are needed")
    return cast(values, dtype).reshape(shape)


def _slices(data: list[Any], size: int) -> list[list[Any]]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _unbase64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise BadValues("it is not a picture in base64") from None
