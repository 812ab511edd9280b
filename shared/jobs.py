"""The forms in which work may be handed in, by a device over MQTT or by a client over REST.

A body is one of

- a raw `image/png` or `image/jpeg`: one item, its metadata beside it (MQTT user properties, or the
  query of a URL);
- JSON with `{"image": "<base64>"}` and the metadata as further fields: one item;
- an Open Inference Protocol v2 request, `{"inputs": [{"name", "shape", "datatype", "data"}]}`, the
  metadata under `parameters`: as many items as the first dimension of its inputs;
- an Arrow IPC stream, one row an item, the metadata beside it.

`parse` checks a body at the door and makes it canonical, so that journals, lanes and engines know
three content types only: image/png or image/jpeg, application/json (OIP), and Arrow's.

Open Inference Protocol v2: github.com/kserve/open-inference-protocol, inference_rest.md.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from shared import arrow_stream, selectors, tasks, topics

PNG: Final = "image/png"
JPEG: Final = "image/jpeg"
JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
CONTENT_TYPES: Final = (PNG, JPEG, JSON, ARROW)

MAX_PAYLOAD: Final = 8 << 20
"""Bytes that one job may have, unless the settings say otherwise."""
MAX_ITEMS: Final = 100_000
MAX_UNPACKED: Final = 256 << 20
"""Bytes to which an Arrow stream may unpack: a compressed kilobyte can claim gigabytes."""
MAX_TEXT: Final = 65_535
"""Bytes of each text in the metadata: what an MQTT string or a topic can have."""

MAX_TAG: Final = 256
"""Characters of a user property by which a version may be chosen."""


class Rejected(ValueError):
    """A job that cannot be taken: what is wrong, where, and what to do about it."""

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field
        """The field of the job that is wrong, where it is one."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What may be said about a job beside its body; every field is optional."""

    version: str | None = None
    """Of the model; if none is named, the one that the hub wants served, else the newest that is there."""
    priority: int | None = None
    """0 to 9; a higher number goes first. Default: 5."""
    queue: str = tasks.DEFAULT_QUEUE
    """The weight class, for the fair share among tasks of one priority."""
    timeout_ms: int | None = None
    """How long one attempt may run."""
    deadline_ms: int | None = None
    """How long from now the answer is of use; an expired task is not run, and its reply says so."""
    max_attempts: int = 3
    """Attempts that may fail before the task is given up."""
    idempotency_key: str | None = None
    """The same key again is the same task again."""
    response_topic: str | None = None
    """Where the reply goes, for devices that speak MQTT 3.1.1."""
    correlation: str | None = None
    """Comes back in the reply, for devices that speak MQTT 3.1.1."""
    traceparent: str | None = None
    """W3C trace context."""
    stream: str | None = None
    """The stream it belongs to, of a model that carries a state from item to item; its device's unless one
    is named."""
    selector: str | None = None
    """Which agents may run it, by their labels: `site=plant-a,gpu=h100`; for tasks submitted to the hub."""


DEFAULT_PRIORITY: Final = 5


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose form is known and checked."""

    model: str
    metadata: Metadata
    content_type: str
    payload: bytes
    items: int
    beside: Mapping[str, Any] = {}
    """All that was said beside the body, what is no metadata included."""
    client_id: str | None = None
    """The `id` of an Open Inference Protocol request, said again in the reply."""

    @property
    def priority(self) -> int:
        return DEFAULT_PRIORITY if self.metadata.priority is None else self.metadata.priority

    def tags(self, keys: Collection[str]) -> dict[str, str]:
        """The user properties with these names, as text. A field of the metadata is none, nor is what is
        neither text nor a whole number, or is too long for a label: no rollout can ask for it.
        """
        found = {key: self.beside[key] for key in keys if key in self.beside and key not in _FIELDS}
        return {
            key: str(value)
            for key, value in found.items()
            if isinstance(value, str | int) and len(str(value)) <= MAX_TAG
        }


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw


class _Body(msgspec.Struct):
    """Either JSON form; which one is told by the field that is there."""

    id: str | None = None
    model_name: str | None = None
    image: str | None = None
    inputs: list[_Tensor] | None = None
    parameters: dict[str, Any] | None = None


_SIZES: Final = ("8", "16", "32", "64")
DATATYPES: Final = frozenset(
    {"BOOL", "FP16", "FP32", "FP64", "BYTES"} | {sign + size for sign in ("INT", "UINT") for size in _SIZES}
)
"""Of Open Inference Protocol v2's tensors."""

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bad JSON, bad UTF-8 and bottomless nesting."""
_PLACE: Final = re.compile(r"`\$\.(\w+)")
"""The field that msgspec names in an error, as in "at `$.inputs[0].shape`"."""
_FIELDS: Final = {field.name for field in msgspec.structs.fields(Metadata)}
_NOTHING_SAID: Final = Metadata()
_body_decoder: Final = msgspec.json.Decoder(_Body)
_fields_decoder: Final = msgspec.json.Decoder(dict[str, Any])


def split_model(text: str) -> tuple[str, str | None]:
    """`model` or `model@version`, as a topic or a URL names it."""
    model, at, version = text.partition("@")
    try:
        topics.check_name(model, "model")
        if at:
            topics.check_name(version, "version")
    except topics.BadTopic as wrong:
        raise Rejected(str(wrong), "model") from None
    return model, version if at else None


def parse(
    model: str,
    payload: bytes,
    content_type: str | None = None,
    properties: Mapping[str, Any] | None = None,
    *,
    max_payload: int = MAX_PAYLOAD,
) -> Job:
    """The job in a message or a request.

    `model` is what its address names, `model` or `model@version`; `content_type` may be unknown
    (MQTT 3.1.1), then the payload's first bytes tell; `properties` is the metadata beside the body.
    Raises Rejected with words for whoever sent it.
    """
    if not payload:
        raise Rejected("the job has no body: send an image, a JSON request or an Arrow stream")
    if len(payload) > max_payload:
        raise Rejected(f"the job has {len(payload):,} bytes; at most {max_payload:,} are taken here")
    name, version = split_model(model)
    kind = (content_type or "").partition(";")[0].strip().lower() or sniff(payload)
    beside = dict(properties or {})
    client_id: str | None = None
    items = 1
    if kind == JSON:
        body, fields = _json(payload)
        client_id = body.id
        beside = {**fields, **beside}
        if body.image is not None:
            payload = _base64(body.image)
            kind = sniff(payload)
            if kind not in (PNG, JPEG):
                raise Rejected("'image' holds neither a PNG nor a JPEG image in base64", "image")
        else:
            items = _oip_items(body)
    elif kind == ARROW:
        items = _arrow_rows(payload)
    elif kind not in (PNG, JPEG):
        raise Rejected(
            f"content type {kind or 'unknown'!r} is not taken: use one of {', '.join(CONTENT_TYPES)}",
            "content_type",
        )
    elif sniff(payload) != kind:
        raise Rejected(f"the body is no {kind.removeprefix('image/').upper()} image", "content_type")
    if not 1 <= items <= MAX_ITEMS:
        raise Rejected(f"the job has {items} items; between 1 and {MAX_ITEMS:,} are taken")
    metadata = read_metadata(beside)
    if version is not None:
        if metadata.version not in (None, version):
            raise Rejected(f"the address names version {version}, the job {metadata.version}", "version")
        metadata = msgspec.structs.replace(metadata, version=version)
    return Job(
        model=name,
        metadata=metadata,
        content_type=kind,
        payload=payload,
        items=items,
        beside=beside,
        client_id=client_id,
    )


def sniff(payload: bytes) -> str:
    """The content type that the first bytes tell, or an empty string."""
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if payload.startswith(b"\xff\xd8\xff"):
        return JPEG
    if payload.startswith(b"\xff\xff\xff\xff"):  # the continuation mark of an Arrow IPC message
        return ARROW
    if payload.lstrip()[:1] == b"{":
        return JSON
    return ""


def _json(payload: bytes) -> tuple[_Body, dict[str, Any]]:
    """A JSON body and the metadata in it: its `parameters`, or the fields beside `image`."""
    try:
        body = _body_decoder.decode(payload)
        if body.image is None:
            return body, body.parameters or {}
        fields = _fields_decoder.decode(payload)
    except _UNREADABLE as error:
        raise Rejected(f"the JSON body cannot be read: {error}", _place(error)) from None
    for own in ("image", "id", "model_name", "inputs", "parameters"):
        fields.pop(own, None)
    return body, {**(body.parameters or {}), **fields}


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(f"'image' is not base64: {error}", "image") from None


def _oip_items(body: _Body) -> int:
    """How many items an Open Inference Protocol request has; Rejected if its inputs disagree."""
    if not body.inputs:
        raise Rejected(
            "the JSON body has neither 'image' nor 'inputs' (Open Inference Protocol v2)", "inputs"
        )
    for tensor in body.inputs:
        if tensor.datatype not in DATATYPES:
            raise Rejected(
                f"input {tensor.name!r}: datatype {tensor.datatype!r} is none of the protocol's", "inputs"
            )
        if not tensor.shape or min(tensor.shape) < 0:
            raise Rejected(
                f"input {tensor.name!r}: shape {tensor.shape} has no first dimension to count items by",
                "inputs",
            )
    counts = {tensor.shape[0] for tensor in body.inputs}
    if len(counts) > 1:
        raise Rejected(
            f"the inputs disagree on the number of items: first dimensions {sorted(counts)}", "inputs"
        )
    return counts.pop()


def _arrow_rows(payload: bytes) -> int:
    """The rows of a stream, read from its headers: nothing is unpacked at the door."""
    try:
        extent = arrow_stream.measure(payload)
    except arrow_stream.BadStream as error:
        raise Rejected(f"the body is {error}") from None
    if extent.unpacked_bytes > MAX_UNPACKED:
        raise Rejected(
            f"the stream unpacks to {extent.unpacked_bytes:,} bytes; at most {MAX_UNPACKED:,} are taken here"
        )
    return extent.rows


def read_metadata(fields: Mapping[str, Any]) -> Metadata:
    """The metadata among `fields`, of which values may be text, as in a query. Raises Rejected."""
    said = {name: value for name, value in fields.items() if name in _FIELDS}
    if not said:
        return _NOTHING_SAID
    try:
        metadata = msgspec.convert(said, Metadata, strict=False)
    except msgspec.ValidationError as error:
        raise Rejected(f"the metadata cannot be read: {error}", _place(error)) from None
    for field in said:
        _check_text(field, getattr(metadata, field))
    if metadata.priority is not None and metadata.priority not in tasks.PRIORITIES:
        raise Rejected(f"priority {metadata.priority} is not between 0 and 9", "priority")
    for field in ("timeout_ms", "deadline_ms", "max_attempts"):
        value = getattr(metadata, field)
        if value is not None and not 1 <= value <= 10**10:
            raise Rejected(f"{field} {value} is not between 1 and {10**10:,}", field)
    if metadata.max_attempts > 100:
        raise Rejected(f"max_attempts {metadata.max_attempts} is more than 100", "max_attempts")
    if metadata.idempotency_key is not None and not 1 <= len(metadata.idempotency_key) <= 200:
        raise Rejected("idempotency_key must have 1 to 200 characters", "idempotency_key")
    if metadata.stream is not None and not 1 <= len(metadata.stream) <= 200:
        raise Rejected("stream must have 1 to 200 characters", "stream")
    if metadata.response_topic is not None and (
        not metadata.response_topic or set("+#\0") & set(metadata.response_topic)
    ):
        raise Rejected(
            f"response_topic {metadata.response_topic!r} is no topic to publish to", "response_topic"
        )
    for field, name in (("queue", metadata.queue), ("version", metadata.version)):
        try:
            if name is not None:
                topics.check_name(name, field)
        except topics.BadTopic as wrong:
            raise Rejected(str(wrong), field) from None
    if metadata.selector is not None:
        try:
            normal = selectors.normal(metadata.selector)
        except selectors.BadSelector as wrong:
            raise Rejected(str(wrong), "selector") from None
        metadata = msgspec.structs.replace(metadata, selector=normal or None)
    return metadata


def _check_text(field: str, value: object) -> None:
    """Rejected if a reply, a journal or a database could not hold the text."""
    if not isinstance(value, str):
        return
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Rejected(f"{field} holds half a character (a lone surrogate)", field) from None
    if "\0" in value:
        raise Rejected(f"{field} contains a zero byte", field)
    if size > MAX_TEXT:
        raise Rejected(f"{field} has {size:,} bytes; at most {MAX_TEXT:,} are taken", field)


def _place(error: Exception) -> str | None:
    """The field that an error of msgspec is about, if it names one."""
    found = _PLACE.search(str(error))
    return found.group(1) if found else None
