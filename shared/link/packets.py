"""The bytes of an MQTT PUBLISH: MQTT 5.0, 2.2.2 and 3.3; MQTT 3.1.1 has the same without properties.

paho has this too, but it takes 160 µs to write and read the properties of one message, does not tell how
large the packet will be, and takes U+FEFF in a property, which the standard allows (1.5.4), for a broken
packet. A device could so have the connection cut again and again, for the broker sends what was not
acknowledged once more.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from shared.link.errors import Unpublishable
from shared.link.messages import Message, Publication

_EXPIRY: Final = 0x02
_CONTENT_TYPE: Final = 0x03
_RESPONSE_TOPIC: Final = 0x08
_CORRELATION: Final = 0x09
_USER: Final = 0x26

_PAYLOAD_FORMAT: Final = 0x01
_SUBSCRIPTION: Final = 0x0B
_TOPIC_ALIAS: Final = 0x23

_SESSION_EXPIRY: Final = 0x11
_RECEIVE_MAXIMUM: Final = 0x21

_LONGEST: Final = 0xFFFF
"""Bytes in a string or in binary data, whose length has two bytes."""

_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""U+0000 and surrogates, which 1.5.4 forbids, and what it lets a receiver refuse: control and non-characters.
Mosquitto does, and closes the connection."""


def pack(publication: Publication) -> bytes:
    """The properties of a publication as they stand in its packet, their length in front; Unpublishable."""
    body = bytearray()
    if publication.expiry_s is not None:
        if not 0 <= publication.expiry_s <= 0xFFFFFFFF:
            raise Unpublishable(f"an expiry of {publication.expiry_s} s does not fit into 4 bytes")
        body += struct.pack("!BI", _EXPIRY, publication.expiry_s)
    if publication.content_type is not None:
        body += struct.pack("!B", _CONTENT_TYPE) + _text(publication.content_type, "content type")
    if publication.response_topic is not None:
        body += struct.pack("!B", _RESPONSE_TOPIC) + _text(publication.response_topic, "response topic")
    if publication.correlation is not None:
        body += struct.pack("!B", _CORRELATION) + _binary(publication.correlation, "correlation data")
    if publication.properties:
        for name, value in publication.properties.items():
            body += (
                struct.pack("!B", _USER)
                + _text(name, "a property's name")
                + _text(value, f"property {name!r}")
            )
    return varint(len(body)) + bytes(body)


def pack_connect(receive_maximum: int, session_expiry_s: int) -> bytes:
    """The properties of a CONNECT packet (3.1.2.11)."""
    body = struct.pack("!BHBI", _RECEIVE_MAXIMUM, receive_maximum, _SESSION_EXPIRY, session_expiry_s)
    return varint(len(body)) + body


def check_topic(topic: str) -> bytes:
    """The bytes of a topic to publish to; Unpublishable if no broker would take it."""
    if not topic or "+" in topic or "#" in topic:
        raise Unpublishable(f"{topic!r} is not a topic to publish to: it is empty or has a wildcard")
    return _text(topic, "topic")[2:]


def size(topic: bytes, payload: bytes, qos: int, properties: bytes) -> int:
    """The bytes of the whole PUBLISH packet."""
    remaining = 2 + len(topic) + (2 if qos else 0) + len(properties) + len(payload)
    return 1 + len(varint(remaining)) + remaining


def parse(header: int, body: bytes | bytearray, version: int) -> Message:
    """The message in a PUBLISH packet: its first byte, and all that follows the remaining length.

    ValueError if the packet is cut short. A property that we cannot read ends the reading of properties, not
    the connection: the broker has let it pass and would send it again.
    """
    qos = header >> 1 & 0x03
    view = memoryview(body)
    try:
        (length,) = struct.unpack_from("!H", body)
        topic = str(view[2 : 2 + length], "utf-8", "replace")
        at = 2 + length
        packet_id = 0
        if qos:
            (packet_id,) = struct.unpack_from("!H", body, at)
            at += 2
        message = Message(topic, b"", qos, bool(header & 0x01), bool(header & 0x08), packet_id=packet_id)
        if version == 5:
            if body[at]:
                length, at = read_varint(view, at)
                _unpack(view[at : at + length], message)
                at += length
            else:
                at += 1
    except (struct.error, IndexError):
        raise ValueError(f"a PUBLISH packet of {len(body)} bytes is cut short") from None
    if at > len(body):
        raise ValueError(f"a PUBLISH packet of {len(body)} bytes is cut short")
    message.payload = bytes(view[at:])
    return message


def _unpack(body: memoryview, message: Message) -> None:
    """Set the properties that stand in `body`, their length taken off."""
    user: dict[str, str] = {}
    at = 0
    try:
        while at < len(body):
            kind = body[at]
            at += 1
            if kind == _USER:
                name, at = _read_text(body, at)
                user[name], at = _read_text(body, at)
            elif kind == _CONTENT_TYPE:
                message.content_type, at = _read_text(body, at)
            elif kind == _RESPONSE_TOPIC:
                message.response_topic, at = _read_text(body, at)
            elif kind == _CORRELATION:
                message.correlation, at = _read_binary(body, at)
            elif kind == _EXPIRY:
                (message.expiry_s,) = struct.unpack_from("!I", body, at)
                at += 4
            elif kind == _PAYLOAD_FORMAT:
                at += 1
            elif kind == _SUBSCRIPTION:
                _, at = read_varint(body, at)
            elif kind == _TOPIC_ALIAS:
                at += 2
            else:
                break
    except (struct.error, IndexError):
        pass  # cut short: what came before it stands
    message.properties = user


def varint(value: int) -> bytes:
    """A variable byte integer (1.5.5): seven bits a byte, the lowest first."""
    if value < 0x80:
        return bytes((value,))
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def read_varint(body: memoryview, at: int) -> tuple[int, int]:
    """The value at `at`, and where it ends; IndexError if the bytes end first."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _text(text: str, what: str) -> bytes:
    if _FORBIDDEN.search(text):
        raise Unpublishable(
            f"{what} {text[:100]!r} has a character that MQTT does not carry, such as a line's end"
        )
    return _binary(text.encode(), what)


def _binary(data: bytes, what: str) -> bytes:
    if len(data) > _LONGEST:
        raise Unpublishable(f"{what} of {len(data)} bytes is too long: MQTT carries {_LONGEST}")
    return len(data).to_bytes(2, "big") + data


def _read_text(body: memoryview, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("!H", body, at)
    at += 2
    return str(body[at : at + length], "utf-8", "replace"), at + length


def _read_binary(body: memoryview, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("!H", body, at)
    at += 2
    return bytes(body[at : at + length]), at + length
