"""Requests and responses of the protocol: JSON, and behind it the bytes of tensors that travel as such.

How long the JSON is says the HTTP header `Inference-Header-Content-Length`. In the agent's journal, where
there are no HTTP headers, the length stands before the JSON (`pack`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from edge_agent.oip import tensors

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
CONTENT_TYPE: Final = "application/vnd.backhaul.tensors"
"""Of what `pack` makes: the form in which requests and their answers are kept. It never leaves the agent."""

SIZE: Final = "binary_data_size"
"""The parameter of a tensor that travels as bytes."""

_LENGTH: Final = struct.Struct("<I")
_encoder: Final = msgspec.json.Encoder()


class BadMessage(ValueError):
    """Bytes that are no message of the protocol; the words are for whoever sent them."""


class Body(NamedTuple):
    """A message as it travels."""

    bytes: bytes
    header: int | None
    """Bytes of JSON, if others follow."""

    @property
    def content_type(self) -> str:
        return JSON if self.header is None else BINARY

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.header is None else {HEADER_LENGTH: str(self.header)}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class Wanted(msgspec.Struct):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[Wanted] = []
    id: str | None = None
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[_Tensor]


class Request(NamedTuple):
    """What a client asks of a model."""

    id: str | None
    parameters: Mapping[str, Any]
    inputs: Sequence[tensors.Tensor]
    outputs: Sequence[Wanted]


_Form = TypeVar("_Form")
_requests: Final = msgspec.json.Decoder(_Request)
_responses: Final = msgspec.json.Decoder(_Response)


def request(body: bytes, header: int | None) -> Request:
    """Read a request, of which the first `header` bytes are JSON, or all; BadMessage if it is none."""
    told, rest = _read(_requests, body, header)
    return Request(told.id, told.parameters, _arrays(told.inputs, rest), told.outputs)


def response(body: bytes, header: int | None) -> list[tensors.Tensor]:
    """Read the tensors of a response; BadMessage if it is none."""
    told, rest = _read(_responses, body, header)
    return _arrays(told.outputs, rest)


def write(
    fields: Mapping[str, Any], given: Mapping[str, Sequence[tensors.Tensor]], *, binary: Sequence[bool] | bool
) -> Body:
    """A message with `fields`, and the tensors of `given` under the field's name that they have there.

    `binary` says which of them travel as bytes. Raises tensors.NotInJson.
    """
    ((field, listed),) = given.items()
    heads: list[dict[str, Any]] = []
    parts: list[bytes] = []
    choice = [binary] * len(listed) if isinstance(binary, bool) else binary
    for tensor, as_bytes in zip(listed, choice, strict=True):
        head: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if as_bytes:
            parts.append(tensors.to_bytes(tensor.array))
            head["parameters"] = {SIZE: len(parts[-1])}
        else:
            try:
                head["data"] = tensors.to_json(tensor.array)
            except tensors.NotInJson as error:
                raise tensors.NotInJson(f"{tensor.name!r} does not go into JSON: {error}") from None
        heads.append(head)
    text = _encoder.encode({**fields, field: heads})
    return Body(b"".join([text, *parts]), len(text) if parts else None)


def pack(body: Body) -> bytes:
    """A message with the length of its JSON before it."""
    return _LENGTH.pack(len(body.bytes) if body.header is None else body.header) + body.bytes


def unpack(packed: bytes) -> Body:
    """What `pack` was given; BadMessage if it cannot be that."""
    if len(packed) < _LENGTH.size:
        raise BadMessage("the message is cut off")
    (header,) = _LENGTH.unpack_from(packed)
    return Body(packed[_LENGTH.size :], header)


def _read(decoder: msgspec.json.Decoder[_Form], body: bytes, header: int | None) -> tuple[_Form, memoryview]:
    size = len(body) if header is None else header
    if not 0 < size <= len(body):
        raise BadMessage(f"{HEADER_LENGTH} is {size}, and the body has {len(body)} bytes")
    view = memoryview(body)
    try:
        return decoder.decode(view[:size]), view[size:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"the JSON cannot be read: {error}") from None


def _arrays(heads: Sequence[_Tensor], rest: memoryview) -> list[tensors.Tensor]:
    found: list[tensors.Tensor] = []
    at = 0
    for head in heads:
        size = head.parameters.get(SIZE)
        try:
            if size is None:
                array = _in_json(head)
            else:
                if not isinstance(size, int) or not 0 <= size <= len(rest) - at:
                    raise tensors.BadTensor(f"{SIZE} is {size!r}, and {len(rest) - at} bytes are left")
                array = tensors.from_bytes(head.datatype, head.shape, rest[at : at + size])
                at += size
        except tensors.BadTensor as error:
            raise BadMessage(f"tensor {head.name!r}: {error}") from None
        found.append(tensors.Tensor(head.name, array))
    if at != len(rest):
        raise BadMessage(f"{len(rest) - at} bytes follow the last tensor")
    return found


def _in_json(head: _Tensor) -> tensors.Array:
    if any(name.startswith("shared_memory") for name in head.parameters):
        raise tensors.BadTensor("shared memory is not taken: send the data")
    if not bytes(head.data):
        raise tensors.BadTensor("it has no data")
    return tensors.from_json(head.datatype, head.shape, head.data)
