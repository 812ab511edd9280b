"""One MQTT connection, from its first packet to its last: a paho client driven by the asyncio loop.

All calls to paho are made in the loop's thread, but for the one that connects the socket, so its locks are
never contended. Its callbacks hand over and return: nothing is published, awaited or given to a handler
within them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from shared.link import packets
from shared.link.client import Client, Packed
from shared.link.counters import Counters
from shared.link.errors import LinkDown, LinkError, PacketTooLarge, Refused
from shared.link.messages import Deliveries, Message, Publication
from shared.link.window import Window, fail

log = logging.getLogger(__name__)

GOODBYE_S: Final = 2.0
"""How long the last packets, and the DISCONNECT behind them, may take to leave."""

_TICK_S: Final = 1.0
"""Between looks at the keepalive."""

_READS_PER_TURN: Final = 64
"""Packets read before the loop gets its turn again. (Of acknowledgements, paho reads as many for one as there
are publications in flight.)"""

_BACKLOG: Final = 1 << 20
"""Bytes that may wait for a socket that takes no more, before publications of QoS 0 are dropped."""

_UNLIMITED: Final = 0xFFFF
"""The Receive Maximum of a broker that names none (MQTT 5.0, 3.2.2.3.3)."""

_FILTERS: Final = 64
"""In one SUBSCRIBE packet."""

_T = TypeVar("_T")


class Connection:
    """The connection of `client`, which is fresh and knows where to connect to.

    `in_flight_limit`: publications of QoS 1 under way at once; lowered to what the broker takes, once it says
    so.
    `receive_maximum`: messages of QoS 1 that wait for our acknowledgement; beyond it, nothing more is read.
    `deliver`: given each message, soon after it arrived; it must not block. What it raises, `ended` raises.
    `on_end`: called at the end, before those are told who wait for an acknowledgement.
    """

    def __init__(
        self,
        client: Client,
        *,
        in_flight_limit: int,
        receive_maximum: int,
        counters: Counters,
        deliver: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self.window = Window(in_flight_limit)
        self.max_packet_size: int | None = None
        self.session_present = False
        self.deliveries = Deliveries()

        self._loop = asyncio.get_running_loop()
        self._client = client
        self._version = int(client.protocol)
        self._receive_maximum = receive_maximum
        self._counters = counters
        self._deliver = deliver
        self._on_end = on_end
        self._socket: socket.socket | None = None
        self._reading = False
        self._blocked = False
        self._backlog = 0
        self._timer: asyncio.TimerHandle | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._granted: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._subscribing: set[asyncio.Task[None]] = set()
        self._farewell: LinkError | None = None
        self._ended: asyncio.Future[Exception] = self._loop.create_future()

        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_socket_close = self._on_socket_close
        # With this callback in place paho only queues its packets, and never writes by itself.
        client.on_socket_register_write = self._on_packet_queued

    # From the first packet to the last

    async def open(self, timeout_s: float) -> None:
        """Connect and introduce ourselves. Raises LinkDown without an answer, Refused when it is a no."""
        # Name resolution, TCP and TLS block. The CONNECT packet leaves later, in `_attach`.
        dialling = self._loop.run_in_executor(None, self._client.reconnect)
        try:
            await asyncio.shield(dialling)
        except OSError as error:
            raise LinkDown(f"cannot connect: {error}") from error
        except asyncio.CancelledError:
            dialling.add_done_callback(self._hang_up)
            raise
        self._attach()
        await self._answer(self._accepted, timeout_s, "CONNECT")

    async def subscribe(self, filters: Sequence[tuple[str, int]], timeout_s: float) -> None:
        """Subscribe to each of `filters` with its QoS. Raises Refused when one is not granted in full."""
        parts = [filters[at : at + _FILTERS] for at in range(0, len(filters), _FILTERS)]
        asked = [(part, self._ask(part)) for part in parts]
        for part, granted in asked:
            await self._check(part, granted, timeout_s)

    def subscribe_nowait(self, filters: Sequence[tuple[str, int]], timeout_s: float) -> None:
        """As `subscribe`, before anything that is published from now on; the connection ends if the broker
        does not grant it.
        """
        try:
            granted = self._ask(filters)
        except LinkDown:
            return  # whoever connects next subscribes
        checking = self._loop.create_task(self._check(filters, granted, timeout_s), name="link: subscribe")
        self._subscribing.add(checking)
        checking.add_done_callback(self._subscribed)

    def unsubscribe(self, topics: str) -> None:
        """Ask for no more messages on `topics`; those that are on their way still come."""
        self._client.unsubscribe(topics)

    def _ask(self, filters: Sequence[tuple[str, int]]) -> asyncio.Future[list[ReasonCode]]:
        code, packet_id = self._client.subscribe(list(filters))
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            raise LinkDown(f"cannot subscribe: {code.name}")
        granted = self._granted[packet_id] = self._loop.create_future()
        return granted

    async def _check(
        self,
        filters: Sequence[tuple[str, int]],
        granted: asyncio.Future[list[ReasonCode]],
        timeout_s: float,
    ) -> None:
        answers = await self._answer(granted, timeout_s, "SUBSCRIBE")
        for (topics, qos), answer in zip(filters, answers, strict=True):
            if answer.value != qos:
                raise Refused(f"the broker refused to subscribe us to {topics} at QoS {qos}", str(answer))

    def _subscribed(self, checking: asyncio.Task[None]) -> None:
        self._subscribing.discard(checking)
        if not checking.cancelled() and (error := checking.exception()) is not None:
            self._end(error if isinstance(error, Exception) else LinkDown(repr(error)))

    async def ended(self) -> LinkError:
        """Wait for the end; returns why it came, or raises what a handler raised."""
        why = await asyncio.shield(self._ended)
        if isinstance(why, LinkError):
            return why
        raise why

    async def close(self) -> None:
        """Write what is queued, and a DISCONNECT behind it, so that the broker sends no will; then end."""
        if self.alive and self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            await asyncio.wait([self._ended], timeout=GOODBYE_S)
        self._end(LinkDown("the link was closed"))

    @property
    def alive(self) -> bool:
        """Whether packets can be sent."""
        return self._socket is not None

    @property
    def accepted(self) -> bool:
        """Whether the broker has taken us in, and the connection stands."""
        return self.alive and self._accepted.done() and not self._ended.done()

    async def _answer(self, answer: asyncio.Future[_T], timeout_s: float, question: str) -> _T:
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise LinkDown(f"no answer to {question} within {timeout_s:g} s") from None

    def _attach(self) -> None:
        connected = cast(socket.socket, self._client.socket())
        # A window of small packets must not wait for the acknowledgement of the first.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._reading = True
        self._loop.add_reader(connected, self._read)
        self._timer = self._loop.call_later(_TICK_S, self._look_after)
        self._write()

    def _detach(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket = None
            self._reading = False
        if self._timer is not None:
            self._timer.cancel()

    def _hang_up(self, dialling: asyncio.Future[Any]) -> None:
        """Nobody waits for this socket any more."""
        if dialling.exception() is None:
            cast(socket.socket, self._client.socket()).close()

    def _end(self, why: Exception) -> None:
        """It is over: tell all who wait. Only the first reason counts."""
        if self._ended.done():
            return
        self._ended.set_result(why)
        if self._socket is not None:  # paho has not closed it
            abandoned = self._socket
            self._detach()
            abandoned.close()
        self._settle()
        self.deliveries.end()
        self._on_end()
        fail(self._accepted, why)
        for answer in self._granted.values():
            fail(answer, why)
        self.window.end(why)

    # Publications

    def publish(self, publication: Publication) -> asyncio.Future[None] | None:
        """Send; the future is done at the broker's acknowledgement. None for QoS 0, which may be dropped.

        Raises LinkDown without a connection, NoRoom when too much is in flight, PacketTooLarge and
        Unpublishable. The future fails with LinkDown when the connection ends first, with Refused when the
        broker does not take it.
        """
        if not self.alive:
            raise LinkDown("there is no connection to the broker")
        if publication.qos:
            self.window.check()
        properties = packets.pack(publication) if publication.needs_mqtt5 else b"\x00"
        topic = packets.check_topic(publication.topic)
        size = packets.size(topic, publication.payload, publication.qos, properties)
        if self.max_packet_size is not None and size > self.max_packet_size:
            raise PacketTooLarge(
                f"a packet of {size} bytes for {publication.topic}: this broker takes {self.max_packet_size}"
            )
        if not publication.qos and self._backlog and self._backlog + size > _BACKLOG:
            self._counters.dropped += 1
            return None
        sent = self._client.publish(
            publication.topic,
            publication.payload,
            publication.qos,
            publication.retain,
            Packed(properties) if publication.needs_mqtt5 else None,
        )
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkDown(f"cannot publish: {sent.rc.name}")
        self._backlog += size
        self._counters.messages_out += 1
        self._counters.bytes_out += len(publication.payload)
        return self.window.sent(sent.mid) if publication.qos else None

    def _settle(self) -> None:
        """Tell the publishers of what has been acknowledged."""
        acknowledged, self._client.acknowledged = self._client.acknowledged, []
        for packet_id, code in acknowledged:
            self.window.acknowledged(packet_id, code)
        self.window.settled()

    # Messages

    def acknowledge(self, message: Message) -> None:
        """The message is done with. Its PUBACK leaves after those of the messages that came before it."""
        for packet_id in self.deliveries.acknowledge(message):
            self._client.ack(packet_id, 1)
        self._read_on()

    def _hand_over(self) -> None:
        """Give what has arrived to `deliver`, even after the connection's end: it may not come again."""
        arrived, self._client.arrived = self._client.arrived, []
        for header, body in arrived:
            try:
                message = packets.parse(header, body, self._version)
            except ValueError as error:
                self._end(LinkDown(f"the broker sent nonsense: {error}"))
                return
            self._counters.messages_in += 1
            self._counters.bytes_in += len(message.payload)
            if message.qos:
                self.deliveries.arrived(message)
            try:
                self._deliver(message)
            except Exception as error:  # noqa: BLE001 - not swallowed: `ended` raises it
                self._end(error)
                return

    # Driving paho

    def _read(self) -> None:
        """Read what is there, but not for ever, and hand it on."""
        if not self._reading:
            return
        client, room = self._client, self._receive_maximum - len(self.deliveries)
        for _ in range(_READS_PER_TURN):
            before = len(client.arrived) + len(client.acknowledged)
            self._step(client.loop_read)
            if not self.alive or len(client.arrived) > room:
                break
            if len(client.arrived) + len(client.acknowledged) == before:
                break
        self._settle()
        self._hand_over()
        if self._socket is None:
            return
        if len(self.deliveries) > self._receive_maximum:
            self._reading = False
            self._loop.remove_reader(self._socket)
        # The loop sees what is in the socket, not what was taken out of it already.
        elif self._client.unread or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            self._loop.call_soon(self._read)

    def _read_on(self) -> None:
        """Read again, once enough of what was too much is acknowledged."""
        if (
            self._socket is not None
            and not self._reading
            and 2 * len(self.deliveries) <= self._receive_maximum
        ):
            self._reading = True
            self._loop.add_reader(self._socket, self._read)
            self._loop.call_soon(self._read)

    def _write(self) -> None:
        """Write what is queued, and come back when the socket takes more."""
        if not self.alive:
            return
        self._step(self._client.loop_write)
        if self._socket is None:
            return
        blocked = self._client.want_write()
        if not blocked:
            self._backlog = 0
        if blocked and not self._blocked:
            self._loop.add_writer(self._socket, self._write)
        elif self._blocked and not blocked:
            self._loop.remove_writer(self._socket)
        self._blocked = blocked

    def _look_after(self) -> None:
        """Ping when the line was quiet; end the connection when there is no answer."""
        self._step(self._client.loop_misc)
        if self.alive:
            self._timer = self._loop.call_later(_TICK_S, self._look_after)

    def _step(self, work: Callable[[], MQTTErrorCode]) -> None:
        """Let paho work, and see whether the connection is still there afterwards."""
        try:
            work()
        except Exception as error:
            log.exception("paho failed; the connection is closed")
            self._end(LinkDown(f"paho failed: {error!r}"))
        if self._client.socket() is None:
            self._end(self._farewell or LinkDown("the connection was lost"))

    # paho's callbacks: they hand over and return

    def _on_packet_queued(self, client: object, userdata: object, sock: object) -> None:
        if self.alive:  # not yet so while a thread dials
            self._loop.call_soon(self._write)

    def _on_socket_close(self, client: object, userdata: object, sock: object) -> None:
        self._detach()

    def _on_connect(
        self,
        client: object,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._farewell = Refused("the broker refused the connection", str(reason))
        elif getattr(properties, "MaximumQoS", 1) < 1:
            self._farewell = Refused("the broker is of no use to us", "it takes QoS 0 only")
            fail(self._accepted, self._farewell)
        elif not self._accepted.done():
            self.session_present = flags.session_present
            self.max_packet_size = getattr(properties, "MaximumPacketSize", None)
            self.window.limit = min(self.window.limit, getattr(properties, "ReceiveMaximum", _UNLIMITED))
            self._accepted.set_result(None)

    def _on_disconnect(
        self,
        client: object,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._farewell is None:
            if flags.is_disconnect_packet_from_server:
                self._farewell = LinkDown(f"the broker ended the connection: {reason}")
            elif reason != "Unspecified error":  # paho's word for a socket that was closed
                self._farewell = LinkDown(f"the connection was given up: {reason}")

    def _on_subscribe(
        self,
        client: object,
        userdata: object,
        packet_id: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        granted = self._granted.pop(packet_id, None)
        if granted is not None and not granted.done():
            granted.set_result(reasons)
