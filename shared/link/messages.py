"""What is sent over a link, what is received, and which of it still waits for our acknowledgement."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

QoS = Literal[0, 1]
"""At most once, or at least once. QoS 2 is not used: the lanes make exactly once out of at least once."""


class Options(TypedDict, total=False):
    """What a publication may say beside its topic and payload. All but the first two need MQTT 5."""

    qos: QoS
    retain: bool
    content_type: str | None
    response_topic: str | None
    correlation: bytes | None
    expiry_s: int | None
    """Seconds that the broker keeps it for those who are away; None: for ever."""
    properties: Mapping[str, str] | None
    """User properties."""


@dataclass(slots=True)
class Publication:
    """What we send; see `Options`."""

    topic: str
    payload: bytes = b""
    qos: QoS = 0
    retain: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    properties: Mapping[str, str] | None = None

    @property
    def needs_mqtt5(self) -> bool:
        return (
            self.content_type is not None
            or self.response_topic is not None
            or self.correlation is not None
            or self.expiry_s is not None
            or bool(self.properties)
        )


@dataclass(slots=True, eq=False)
class Message:
    """What we received. `duplicate`: the broker may have sent it before. `expiry_s`: what is left of it."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    packet_id: int = 0
    deliveries: Deliveries | None = field(default=None, repr=False)
    acknowledged: bool = False
    arrived: float = field(default_factory=time.monotonic, compare=False)
    """When it was there whole (s, monotonic)."""

    @property
    def stale(self) -> bool:
        """Whether the connection that brought it is over: it cannot be acknowledged any more, and if the
        broker kept our session, it sends it again.
        """
        return self.deliveries is not None and self.deliveries.over


class Deliveries:
    """The QoS 1 messages of one connection that wait for our acknowledgement, in order of arrival.

    MQTT wants acknowledgements in that order (MQTT 5.0, 4.6, [MQTT-4.6.0-2]), and some brokers drop a client
    that does otherwise; but work is finished in any order. So an acknowledgement waits here for those before
    it.
    """

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self.over = False

    def __len__(self) -> int:
        return len(self._waiting)

    def arrived(self, message: Message) -> None:
        message.deliveries = self
        self._waiting.append(message)

    def acknowledge(self, message: Message) -> list[int]:
        """The packet ids that may now be acknowledged to the broker, in this order.

        None of them if `message` came over another connection, or this one is over: nobody waits for it
        there.
        """
        message.acknowledged = True
        due: list[int] = []
        if message.deliveries is self and not self.over:
            while self._waiting and self._waiting[0].acknowledged:
                due.append(self._waiting.popleft().packet_id)
        return due

    def end(self) -> None:
        """The connection is over."""
        self.over = True
        self._waiting.clear()
