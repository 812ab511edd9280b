"""A connection to a broker that comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Literal, Unpack

from paho.mqtt.matcher import MQTTMatcher

from shared import backoff as backoffs
from shared.link import packets
from shared.link.address import Address
from shared.link.client import Client, Packed
from shared.link.connection import Connection
from shared.link.counters import Counters
from shared.link.errors import LinkDown, LinkError
from shared.link.messages import Message, Options, Publication, QoS

log = logging.getLogger(__name__)

Handler = Callable[[Message], None]
"""Called in the loop, once for each message; it must not block, but hand on, for example to an `Inbox`."""

_MOST_IN_FLIGHT: Final = 0xFFFF


class Link:
    """A client of one broker: `run` keeps it connected, everything else uses the connection of the moment.

    `version`: 5, or 4 for MQTT 3.1.1, which has no properties.
    `will`: what the broker publishes when we vanish; not when `run` is cancelled.
    `keepalive_s`: silence after which a ping is sent; a dead line is found within twice that.
    `in_flight_limit`: unacknowledged publications under way; the broker's Receive Maximum if that is lower.
    More than a hundred bring little.
    `receive_maximum`: unacknowledged messages of QoS 1 that the broker may send us before it must wait. MQTT
    3.1.1 cannot tell it so, and Mosquitto 2.0.11 forgets it once messages queue up; so if more come, reading
    stops until half of them are acknowledged. The acknowledgements of what we publish are then not read
    either: give a flood a link of its own.
    `session_expiry_s`: how long the broker keeps our subscriptions, and collects QoS 1 messages for us, while
    we are away. 0: not at all; every connection begins anew. In MQTT 3.1.1, any other number: for as long as
    it likes.
    `timeout_s`: for connecting, and for each of the broker's answers until we are connected.
    """

    def __init__(
        self,
        address: Address,
        client_id: str,
        *,
        version: Literal[4, 5] = 5,
        will: Publication | None = None,
        keepalive_s: int = 20,
        in_flight_limit: int = 64,
        receive_maximum: int = 100,
        session_expiry_s: int = 0,
        timeout_s: float = 5.0,
        backoff: backoffs.Backoff | None = None,
    ) -> None:
        if not (1 <= in_flight_limit <= _MOST_IN_FLIGHT and 1 <= receive_maximum <= _MOST_IN_FLIGHT):
            raise ValueError(f"in_flight_limit and receive_maximum must lie between 1 and {_MOST_IN_FLIGHT}")
        if session_expiry_s and not client_id:
            raise ValueError("a session that outlives its connection needs a client id to be known by")
        self.address = address
        self.client_id = client_id
        self.counters = Counters()
        self.error: LinkError | None = None
        """Why there is no connection; None while there is one, and before the first try has failed."""
        self._version = version
        self._will = will
        self._keepalive_s = keepalive_s
        self._in_flight_limit = in_flight_limit
        self._receive_maximum = receive_maximum
        self._session_expiry_s = session_expiry_s
        self._timeout_s = timeout_s
        self._backoff = backoff or backoffs.Backoff()
        self._filters: dict[str, QoS] = {}
        self._handlers = MQTTMatcher()  # type: ignore[no-untyped-call]
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._watchers: list[Callable[[bool], None]] = []

    def __str__(self) -> str:
        return f"{self.client_id} at {self.address}"

    # The life of the link

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost, until cancelled: then disconnect
        cleanly.

        Never ends by itself, whatever the broker does. An error in a handler is an error here.
        """
        while True:
            self.error = await self._live()
            delay = self._backoff.next()
            log.warning("%s: %s; next try in %.1f s", self, self.error, delay)
            await asyncio.sleep(delay)

    async def _live(self) -> LinkError:
        """One connection, from its beginning to its end; returns why it ended."""
        try:
            client = await asyncio.to_thread(self._new_client)
        except OSError as error:
            return LinkDown(f"the TLS files cannot be used: {error}")
        connection = self._connection = Connection(
            client,
            in_flight_limit=self._in_flight_limit,
            receive_maximum=self._receive_maximum,
            counters=self.counters,
            deliver=self._dispatch,
            on_end=self._disconnected,
        )
        since: float | None = None
        try:
            await connection.open(self._timeout_s)
            if self._filters:
                await connection.subscribe(list(self._filters.items()), self._timeout_s)
            since = time.monotonic()
            self._connected()
            return await connection.ended()
        except LinkError as error:
            return error
        finally:
            if since is not None:
                self._backoff.succeeded(time.monotonic() - since)
            await connection.close()
            self._connection = None

    def _new_client(self) -> Client:
        """A client for one connection: what paho would carry over to the next is ours to decide."""
        kept = self._session_expiry_s > 0
        client = Client(self.client_id, self._version, clean=not kept)
        client.connect_timeout = self._timeout_s
        if self.address.username is not None:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.encrypted:
            client.tls_set_context(self.address.tls())
        if (will := self._will) is not None:
            properties = Packed(packets.pack(will)) if will.needs_mqtt5 else None
            client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        if self._version == 5:
            hello = packets.pack_connect(self._receive_maximum, self._session_expiry_s)
            client.connect_async(
                self.address.host,
                self.address.port,
                self._keepalive_s,
                clean_start=not kept,
                properties=Packed(hello),
            )
        else:
            client.connect_async(self.address.host, self.address.port, self._keepalive_s)
        return client

    # Being connected

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and every subscription, and the connection stands."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Return as soon as the link is connected."""
        await self._up.wait()

    async def wait_disconnected(self) -> None:
        """Return as soon as the link is not connected; `counters.connects` tells of what was missed."""
        await self._down.wait()

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Have `watcher` called, in the loop, with True at each connect and False at each disconnect.

        It must not block. At a disconnect, the publications that it fails have not been told yet.
        """
        self._watchers.append(watcher)

    def _connected(self) -> None:
        self.counters.connects += 1
        self.error = None
        log.info("%s: connected", self)
        self._tell(self._up, self._down)

    def _disconnected(self) -> None:
        if self.connected:
            self._tell(self._down, self._up)

    def _tell(self, now: asyncio.Event, no_longer: asyncio.Event) -> None:
        no_longer.clear()
        now.set()
        for watcher in self._watchers:
            watcher(now is self._up)

    # What the broker told us

    @property
    def session_present(self) -> bool:
        """Whether the broker still had our session at the last connect."""
        return self._connection is not None and self._connection.session_present

    @property
    def in_flight(self) -> int:
        """Publications of QoS 1 that are not yet acknowledged."""
        return 0 if self._connection is None else len(self._connection.window)

    @property
    def in_flight_limit(self) -> int:
        """How many that may be: our own limit, or the connected broker's Receive Maximum if that is lower."""
        return self._in_flight_limit if self._connection is None else self._connection.window.limit

    @property
    def max_packet_size(self) -> int | None:
        """The bytes of the largest packet that the connected broker takes; None if it named no limit."""
        return None if self._connection is None else self._connection.max_packet_size

    # Messages

    def subscribe(self, topics: str, qos: QoS, handler: Handler) -> None:
        """Have each message on `topics`, a filter, given to `handler`; at this and every later connection.

        May be called at any time. On a standing connection the broker is asked before anything else that is
        published from now on; if it refuses, the connection ends, as it does at a connect.

        Filters may overlap: a message goes to the handler of one of them. But a broker may send it once for
        each (MQTT 5.0, 3.3.4; Mosquitto does), and then it comes so often. Every QoS 1 message must be
        acknowledged at some time, since all later acknowledgements wait for it.
        """
        if topics in self._filters:
            raise ValueError(f"{self} has a subscription to {topics} already")
        self._filters[topics] = qos
        self._handlers[topics] = handler
        if self._connection is not None and self._connection.accepted:
            self._connection.subscribe_nowait([(topics, qos)], self._timeout_s)

    def unsubscribe(self, topics: str) -> None:
        """End the subscription to `topics`. What is still on its way is acknowledged and handed to nobody.

        Raises KeyError if there is none.
        """
        del self._filters[topics]
        del self._handlers[topics]  # type: ignore[no-untyped-call]
        if self._connection is not None and self._connection.accepted:
            self._connection.unsubscribe(topics)

    def ack(self, message: Message) -> None:
        """Tell the broker that it may forget `message`, as soon as it may forget all that came before it.

        Does nothing for QoS 0, nor when the connection over which it came is over: it may then come again.
        """
        if self._connection is not None:
            self._connection.acknowledge(message)

    def _dispatch(self, message: Message) -> None:
        handler: Handler | None = next(
            self._handlers.iter_match(message.topic),  # type: ignore[no-untyped-call]
            None,
        )
        if handler is not None:
            handler(message)
        else:
            log.debug("%s: no subscription covers %s", self, message.topic)
            self.counters.unclaimed += 1
            self.ack(message)

    # Publications

    async def publish(self, topic: str, payload: bytes = b"", **options: Unpack[Options]) -> None:
        """Publish; with QoS 1, return when the broker has acknowledged it, having waited for room in flight
        before.

        Raises LinkDown when there is no connection or it ends before the acknowledgement (the broker may have
        the message all the same), Refused when the broker does not take it, PacketTooLarge and Unpublishable
        when no try could succeed. With QoS 0, returns at once: without a connection, or one that is too slow,
        it is dropped.
        """
        publication = Publication(topic, payload, **options)
        if publication.qos:
            await self._standing().window.room()
        acknowledged = self._send(publication)
        if acknowledged is not None:
            await acknowledged

    def publish_nowait(
        self, topic: str, payload: bytes = b"", **options: Unpack[Options]
    ) -> asyncio.Future[None] | None:
        """Publish, and return what to await for the broker's acknowledgement: None with QoS 0.

        As `publish`, but NoRoom is raised, of which `room` keeps clear:

            await link.room()
            acknowledged = link.publish_nowait(topic, payload, qos=1)
        """
        return self._send(Publication(topic, payload, **options))

    async def room(self) -> None:
        """Wait until there is room in flight for one publication of QoS 1. Raises LinkDown."""
        await self._standing().window.room()

    def _send(self, publication: Publication) -> asyncio.Future[None] | None:
        if self._version != 5 and publication.needs_mqtt5:
            raise ValueError(f"{self} speaks MQTT 3.1.1, which cannot carry properties: {publication.topic}")
        if publication.qos == 0 and not self.connected:
            self.counters.dropped += 1
            return None
        return self._standing().publish(publication)

    def _standing(self) -> Connection:
        """The connection, if there is one to publish over."""
        if self._connection is None or not self.connected:
            raise LinkDown(f"{self} is not connected" + (f": {self.error}" if self.error else ""))
        return self._connection
