"""paho's client, as this package needs it."""

from __future__ import annotations

from typing import Final, Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties

_CHUNK: Final = 1 << 16
"""Bytes read at a time."""
_DISCONNECT: Final = 0xE0
"""The first byte of that packet: MQTT 5.0, 2.1.2."""


class Packed(Properties):
    """Properties that are packed already, in place of paho's, which cost 55 µs a message."""

    packed: bytes

    def __init__(self, packed: bytes) -> None:
        # Properties' own __init__ and __setattr__ build and search tables that we have no use for.
        object.__setattr__(self, "packed", packed)

    def pack(self) -> bytes:
        return self.packed

    def __str__(self) -> str:
        return repr(self.packed)


class Client(paho.Client):
    """A client for one connection. It hands over the packets of the hot path as they came: `packets` says
    why. And it reads and writes many packets with one call: paho takes three for each that comes and one
    for each that goes, and on a small one the call costs more than all that paho does with it.

    `arrived`: first byte and body of each PUBLISH, none of which paho acknowledges by itself.
    `acknowledged`: packet id and reason code of each PUBACK.
    Both oldest first; whoever takes from them clears them.
    """

    def __init__(self, client_id: str, version: int, *, clean: bool) -> None:
        mqtt5 = version == 5
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if mqtt5 else clean,
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311,
            # Else, refused under MQTT 3.1.1, it would connect again by itself, and block the loop meanwhile.
            reconnect_on_failure=False,
            manual_ack=True,
        )
        # No limit of its own: with one, it searches all that is in flight at every acknowledgement.
        self.max_inflight_messages_set(0)
        self.arrived: list[tuple[int, bytearray]] = []
        self.acknowledged: list[tuple[int, int]] = []
        self._received = b""
        self._taken = 0
        """How much of `_received` paho has had."""
        self._unsent = bytearray()

    @property
    def unread(self) -> bool:
        """Whether something was read from the socket that paho has not had yet."""
        return self._taken < len(self._received)

    def _sock_recv(self, bufsize: int) -> bytes:
        if not self.unread:
            self._received, self._taken = super()._sock_recv(_CHUNK), 0
        taken = self._received[self._taken : self._taken + bufsize]
        self._taken += len(taken)
        return taken

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if buf[0] & 0xF0 == _DISCONNECT:  # paho closes the socket behind it: all else must have gone before
            self._flush()
            return super()._sock_send(buf)
        self._unsent += buf
        return len(buf)

    def _flush(self) -> None:
        """Write what paho took for written. Raises BlockingIOError when the socket takes no more."""
        while self._unsent:
            sent = super()._sock_send(self._unsent)
            del self._unsent[:sent]

    def loop_write(self) -> MQTTErrorCode:
        outcome = super().loop_write()
        try:
            self._flush()
        except BlockingIOError:
            return outcome  # `want_write` says so
        except OSError:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        if self._sock is not None:  # else it would not say when the next packet is queued
            self._call_socket_unregister_write()
        return outcome

    def want_write(self) -> bool:
        return bool(self._unsent) or super().want_write()

    def _handle_publish(self) -> MQTTErrorCode:
        # paho begins a new buffer for the next packet, so this one is ours.
        self.arrived.append((self._in_packet["command"], self._in_packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if cmd != "PUBACK" or len(body) < 2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        packet_id = int.from_bytes(body[:2], "big")
        self._out_messages.pop(packet_id, None)
        self.acknowledged.append((packet_id, body[2] if len(body) > 2 else 0))
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _check() -> None:
    """Fail at import, and not by losing messages, under a paho that works otherwise inside."""
    overridden = {
        "_handle_publish",
        "_handle_pubackcomp",
        "_sock_recv",
        "_sock_send",
        "loop_write",
        "want_write",
    }
    used = set(paho.Client.__init__.__code__.co_names)
    if not (overridden <= vars(paho.Client).keys() and {"_in_packet", "_out_messages"} <= used):
        raise ImportError("this paho-mqtt is not one that the link knows: use version 2.1 or 2.2")


_check()
