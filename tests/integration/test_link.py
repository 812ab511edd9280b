"""The link on a real broker: its promises in good weather, and when the broker refuses, stalls or dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from demo import servers
from shared import backoff, link

pytestmark = pytest.mark.usefixtures("broker")  # which skips, or fails, where there is no Mosquitto

WAIT = 10.0
"""Seconds until a test gives up on what should come at once."""


def address(broker: servers.Mosquitto) -> link.Address:
    return link.Address(broker.host, broker.port)


def new_link(broker: servers.Mosquitto, client_id: str, **options: object) -> link.Link:
    """A link that loses no time between its tries."""
    settings = {"backoff": backoff.Backoff(0.01, 0.05), **options}
    return link.Link(address(broker), client_id, **settings)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(*links: link.Link, connected: bool = True) -> AsyncIterator[None]:
    """The links, running and connected; cancelled at the end."""
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(each.run(), name=f"run {each}") for each in links]
        try:
            async with asyncio.timeout(3 * WAIT):
                if connected:
                    for each in links:
                        await each.wait_connected()
                yield
        finally:
            for run in runs:
                run.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what raises no event: a line in the broker's log, a count that a handler keeps."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def stalled(broker: servers.Mosquitto) -> Iterator[None]:
    """The broker, reachable but silent, as behind a link that swallows everything."""
    pid = broker.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if broker.running:
            os.kill(pid, signal.SIGCONT)


# In good weather


@pytest.mark.parametrize("qos", [0, 1])
async def test_every_property_makes_the_round_trip(broker: servers.Mosquitto, qos: link.QoS) -> None:
    """What MQTT 5 lets a publication say reaches the subscriber, at either quality of service."""
    inbox = link.Inbox(10)
    ours = new_link(broker, "ours")
    ours.subscribe("jobs/+/detect", qos, inbox.put)
    async with running(ours):
        await ours.publish(
            "jobs/caméra/detect",
            b"\x00\xff" * 1000,
            qos=qos,
            content_type="image/jpeg",
            response_topic="replies/1",
            correlation=b"\x00\x01",
            expiry_s=60,
            properties={"traceparent": "00-ab", "name": "größer"},
        )
        (message,) = await inbox.take(10)
        ours.ack(message)
    assert message.topic == "jobs/caméra/detect"
    assert message.payload == b"\x00\xff" * 1000
    assert (message.qos, message.retain, message.duplicate) == (qos, False, False)
    assert (message.content_type, message.response_topic) == ("image/jpeg", "replies/1")
    assert message.correlation == b"\x00\x01"
    assert message.expiry_s in (59, 60)
    assert message.properties == {"traceparent": "00-ab", "name": "größer"}
    assert (ours.counters.messages_in, ours.counters.messages_out) == (1, 1)
    assert (ours.counters.bytes_in, ours.counters.bytes_out) == (2000, 2000)


async def test_mqtt_3_1_1_works_without_properties(broker: servers.Mosquitto) -> None:
    """A link of the older version publishes and receives; asked for a property, it says that it has none."""
    inbox = link.Inbox(10)
    ours = new_link(broker, "ours", version=4)
    ours.subscribe("#", 1, inbox.put)
    async with running(ours):
        await ours.publish("t", b"payload", qos=1)
        (message,) = await inbox.take(10)
        ours.ack(message)
        assert (message.topic, message.payload, message.properties) == ("t", b"payload", {})
        with pytest.raises(ValueError, match=r"3\.1\.1"):
            await ours.publish("t", b"payload", qos=1, content_type="text/plain")
        assert ours.connected


async def test_a_retained_message_is_marked(broker: servers.Mosquitto) -> None:
    """Who subscribes later gets the retained message, and can tell it from a live one."""
    async with running(early := new_link(broker, "early")):
        await early.publish("presence", b"online", qos=1, retain=True)
    inbox = link.Inbox(10)
    late = new_link(broker, "late")
    late.subscribe("presence", 1, inbox.put)
    async with running(late):
        (message,) = await inbox.take(1)
    assert (message.payload, message.retain) == (b"online", True)


async def test_a_large_message_does_not_stop_the_loop(broker: servers.Mosquitto) -> None:
    """Fifteen megabytes go out and come back whole."""
    inbox = link.Inbox(10)
    ours = new_link(broker, "ours")
    ours.subscribe("t", 1, inbox.put)
    payload = random.Random(1).randbytes(15_000_000)
    async with running(ours):
        await ours.publish("t", payload, qos=1)
        (message,) = await inbox.take(1)
    assert message.payload == payload


async def test_publish_returns_at_the_acknowledgement(broker: servers.Mosquitto) -> None:
    """At QoS 1 nothing counts as published before the broker has said so."""
    async with running(ours := new_link(broker, "ours")):
        with stalled(broker):
            publishing = asyncio.create_task(ours.publish("t", b"", qos=1))
            later = asyncio.create_task(asyncio.sleep(0.05))
            await asyncio.wait([publishing, later], return_when=asyncio.FIRST_COMPLETED)
            assert not publishing.done()
            assert ours.in_flight == 1
        await publishing
        assert ours.in_flight == 0


async def test_messages_go_to_the_handler_of_their_filter(broker: servers.Mosquitto) -> None:
    """Each subscription gets its own messages."""
    leases, commands = link.Inbox(10), link.Inbox(10)
    ours = new_link(broker, "ours")
    ours.subscribe("down/leases", 1, leases.put)
    ours.subscribe("down/+/now", 1, commands.put)
    with pytest.raises(ValueError, match="already"):
        ours.subscribe("down/leases", 1, commands.put)
    async with running(ours):
        await ours.publish("down/commands/now", b"command", qos=1)
        await ours.publish("down/leases", b"lease", qos=1)
        assert [message.payload for message in await commands.take(10)] == [b"command"]
        assert [message.payload for message in await leases.take(10)] == [b"lease"]


async def test_a_subscription_may_come_while_the_link_runs(broker: servers.Mosquitto) -> None:
    """It holds for all that is published after it, also over the same link, and at later connections."""
    early, late = link.Inbox(10), link.Inbox(10)
    ours = new_link(broker, "ours")
    ours.subscribe("early", 1, early.put)
    async with running(ours):
        ours.subscribe("late/+", 1, late.put)
        await ours.publish("late/1", b"", qos=1)
        (message,) = await late.take(10)
        ours.ack(message)
        await broker.restart()
        await until(lambda: ours.counters.connects == 2)
        await ours.wait_connected()
        await ours.publish("late/2", b"", qos=1)
        (message,) = await late.take(10)
    assert message.topic == "late/2"


async def test_what_a_subscription_brings_ends_with_it(broker: servers.Mosquitto) -> None:
    """After `unsubscribe` nothing comes to its handler, nor at later connections; it may be made anew."""
    ended, going_on = link.Inbox(10), link.Inbox(10)
    ours = new_link(broker, "ours")
    ours.subscribe("ended/+", 1, ended.put)
    ours.subscribe("on", 1, going_on.put)
    async with running(ours):
        for again in (False, True):
            ours.unsubscribe("ended/+")
            if again:
                await broker.restart()
                await until(lambda: ours.counters.connects == 2)
                await ours.wait_connected()
            await ours.publish("ended/1", b"", qos=1)
            await ours.publish("on", b"", qos=1)
            (message,) = await going_on.take(10)
            ours.ack(message)
            assert not len(ended)
            ours.subscribe("ended/+", 1, ended.put)
            await ours.publish("ended/2", b"", qos=1)
            (message,) = await ended.take(10)
            ours.ack(message)
            assert message.topic == "ended/2"
        with pytest.raises(KeyError):
            ours.unsubscribe("never")
    assert ours.counters.unclaimed == 0


async def test_many_subscriptions_are_taken_up_again(broker: servers.Mosquitto) -> None:
    """Hundreds of filters come back with the connection, whatever a broker takes in one packet."""
    inbox = link.Inbox(1000)
    ours = new_link(broker, "ours")
    async with running(ours):
        for number in range(300):
            ours.subscribe(f"t/{number}", 1, inbox.put)
        await broker.restart()
        await until(lambda: ours.counters.connects == 2)
        await ours.wait_connected()
        for number in (0, 63, 64, 299):
            await ours.publish(f"t/{number}", b"", qos=1)
        seen: list[str] = []
        while len(seen) < 4:
            seen += [message.topic for message in await inbox.take(10)]
    assert seen == ["t/0", "t/63", "t/64", "t/299"]


async def test_an_error_in_a_handler_ends_the_link(broker: servers.Mosquitto) -> None:
    """A handler's mistake is not hidden: `run` raises it."""

    def fail(message: link.Message) -> None:
        raise ZeroDivisionError(message.topic)

    ours = new_link(broker, "ours")
    ours.subscribe("t", 1, fail)
    publisher = new_link(broker, "publisher")
    async with running(publisher):
        failing = asyncio.create_task(ours.run())
        await ours.wait_connected()
        await publisher.publish("t", b"", qos=1)
        with pytest.raises(ZeroDivisionError, match="t"):
            await failing
    assert not ours.connected


# Bounds


async def test_acknowledgements_reach_the_broker_in_order_of_arrival(tmp_path: Path) -> None:
    """Work finishes in any order; the broker, which may insist on it, sees the order of arrival."""
    inbox = link.Inbox(100)
    async with servers.Mosquitto(tmp_path / "verbose", extra=["log_type all"]) as broker:
        worker, device = new_link(broker, "worker"), new_link(broker, "device")
        worker.subscribe("jobs", 1, inbox.put)
        async with running(worker, device):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(50):
                    tasks.create_task(device.publish("jobs", b"", qos=1))
            messages: list[link.Message] = []
            while len(messages) < 50:
                messages += await inbox.take(50)
            for message in random.Random(3).sample(messages, 50):
                worker.ack(message)
                await asyncio.sleep(0)
            line = "Received PUBACK from worker (Mid: "
            await until(lambda: broker.log.read_text().count(line) == 50)
        order = [
            int(entry.split(line)[1].split(",")[0])
            for entry in broker.log.read_text().splitlines()
            if line in entry
        ]
    assert order == [message.packet_id for message in messages]


@pytest.mark.parametrize("version", [4, 5])
async def test_what_waits_for_our_acknowledgement_is_bounded(broker: servers.Mosquitto, version: int) -> None:
    """Whoever is slow is not run over: beyond the limit nothing is read, though the broker sends it all."""
    arrived: list[link.Message] = []
    worker = new_link(broker, "worker", version=version, receive_maximum=5)
    worker.subscribe("jobs", 1, arrived.append)
    async with running(worker, device := new_link(broker, "device")):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(500):
                tasks.create_task(device.publish("jobs", b"", qos=1))
        for acknowledged in range(500):
            await until(lambda: len(arrived) > acknowledged)  # noqa: B023 - awaited within the turn
            assert len(arrived) <= acknowledged + 5 + 1
            worker.ack(arrived[acknowledged])
        await worker.publish("elsewhere", b"", qos=1)
        assert len(arrived) == 500
        assert worker.counters.connects == 1


async def test_what_is_in_flight_stays_within_the_brokers_receive_maximum(tmp_path: Path) -> None:
    """A broker that takes five at a time is never sent a sixth, however many wait to publish."""
    async with (
        servers.Mosquitto(tmp_path / "narrow", max_inflight=5) as broker,
        running(ours := new_link(broker, "ours", in_flight_limit=64)),
    ):
        assert ours.in_flight_limit == 5
        most = 0

        async def publish() -> None:
            nonlocal most
            for _ in range(10):
                sent = asyncio.create_task(ours.publish("t", b"", qos=1))
                await asyncio.sleep(0)
                most = max(most, ours.in_flight)
                await sent

        async with asyncio.TaskGroup() as tasks:
            for _ in range(40):
                tasks.create_task(publish())
        assert most == 5
        assert ours.counters.messages_out == 400
        assert ours.counters.connects == 1


async def test_publishing_without_waiting_keeps_the_limit_too(broker: servers.Mosquitto) -> None:
    """`publish_nowait` refuses what would exceed the limit, and `room` waits until it need not."""
    async with running(ours := new_link(broker, "ours", in_flight_limit=3)):
        first = [ours.publish_nowait("t", b"", qos=1) for _ in range(3)]
        with pytest.raises(link.NoRoom, match="limit is 3"):
            ours.publish_nowait("t", b"", qos=1)
        await ours.room()
        last = ours.publish_nowait("t", b"", qos=1)
        for acknowledged in (*first, last):
            assert acknowledged is not None
            await acknowledged
        assert ours.publish_nowait("t", b"", qos=0) is None


async def test_a_publisher_that_is_overtaken_waits_on(broker: servers.Mosquitto) -> None:
    """Whoever waits for room and finds it taken by a quicker one waits again, and does not fail."""
    async with running(ours := new_link(broker, "ours", in_flight_limit=1)):
        first = ours.publish_nowait("t", b"", qos=1)
        assert first is not None
        quicker: list[object] = []
        first.add_done_callback(lambda _: quicker.append(ours.publish_nowait("t", b"", qos=1)))
        await ours.publish("t", b"", qos=1)
        assert len(quicker) == 1
        assert ours.counters.messages_out == 3


async def test_a_publisher_that_gives_up_makes_room_for_others(broker: servers.Mosquitto) -> None:
    """Those who stop waiting, in the queue or in flight, leave no place taken and nobody stuck."""
    async with running(ours := new_link(broker, "ours", in_flight_limit=2)):
        with stalled(broker):
            publishing = [asyncio.create_task(ours.publish("t", b"", qos=1)) for _ in range(10)]
            await until(lambda: ours.in_flight == 2)
            for impatient in publishing[::2]:
                impatient.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(WAIT):
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, type(None)] * 5
        assert ours.in_flight == 0


async def test_a_packet_that_the_broker_would_not_take_is_refused_at_the_door(tmp_path: Path) -> None:
    """What is too large for this broker fails at once, instead of costing the connection."""
    async with servers.Mosquitto(tmp_path / "small", max_packet_size=1000) as broker:
        inbox = link.Inbox(10)
        ours = new_link(broker, "ours")
        ours.subscribe("t", 1, inbox.put)
        async with running(ours):
            assert ours.max_packet_size == 1000
            overhead = 1 + 2 + 2 + len("t") + 2 + 1  # header, length, topic, packet id, no properties
            with pytest.raises(link.PacketTooLarge, match="1001 bytes"):
                await ours.publish("t", bytes(1001 - overhead), qos=1)
            await ours.publish("t", bytes(1000 - overhead), qos=1)
            (message,) = await inbox.take(1)
            assert len(message.payload) == 1000 - overhead
            assert ours.counters.connects == 1


async def test_what_no_broker_takes_does_not_cost_the_connection(broker: servers.Mosquitto) -> None:
    """A line's end in a property, for which Mosquitto would hang up at every try, never leaves."""
    async with running(ours := new_link(broker, "ours")):
        with pytest.raises(link.Unpublishable, match="character"):
            await ours.publish("t", b"", qos=1, properties={"error": "line 1\nline 2"})
        with pytest.raises(link.Unpublishable, match="wildcard"):
            await ours.publish("replies/#", b"", qos=1)
        await ours.publish("t", b"", qos=1)
        assert ours.counters.connects == 1


async def test_a_strange_property_does_not_cut_the_receivers_connection(broker: servers.Mosquitto) -> None:
    """U+FEFF, which the standard allows, arrives: no device can have a connection cut, time and again."""
    inbox = link.Inbox(10)
    worker = new_link(broker, "worker", session_expiry_s=60)
    worker.subscribe("jobs", 1, inbox.put)
    async with running(worker, device := new_link(broker, "device")):
        await device.publish("jobs", b"", qos=1, content_type="\ufefftext", properties={"\ufeff": "\ufeff"})
        (message,) = await inbox.take(1)
        assert (message.content_type, message.properties) == ("\ufefftext", {"\ufeff": "\ufeff"})
        assert worker.counters.connects == 1


async def test_telemetry_is_dropped_rather_than_piled_up(broker: servers.Mosquitto) -> None:
    """QoS 0 never waits and never fails: with no connection, or a full one, it is dropped, and counted."""
    ours = new_link(broker, "ours")
    await ours.publish("t", b"", qos=0)
    assert (ours.counters.dropped, ours.counters.messages_out) == (1, 0)
    async with running(ours):
        with stalled(broker):
            for _ in range(2000):
                await ours.publish("t", bytes(10_000), qos=0)
                await asyncio.sleep(0)
        taken = ours.counters.messages_out
        assert ours.counters.dropped == 1 + 2000 - taken
        assert 0 < taken < 1000  # what the sockets hold, and a megabyte
        await ours.publish("t", b"", qos=1)


# Refusals


async def test_a_refused_connection_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """A link that the broker refuses is not connected and says why; let in at last, it comes up by itself."""
    async with servers.Mosquitto(tmp_path / "closed", extra=["allow_anonymous false"]) as strict:
        ours = new_link(strict, "ours")
        async with running(ours, connected=False):
            await until(lambda: ours.error is not None)
            refusal = ours.error
            assert isinstance(refusal, link.Refused)
            assert refusal.reason == "Not authorized"
            assert not ours.connected
            assert ours.counters.connects == 0
            with pytest.raises(link.LinkDown, match="Not authorized"):
                await ours.publish("t", b"", qos=1)
            await strict.stop()
            async with servers.Mosquitto(tmp_path / "open", port=strict.port):
                await ours.wait_connected()
                assert ours.error is None
                await ours.publish("t", b"", qos=1)


@pytest.mark.parametrize(("version", "word"), [(4, "subscribe us to jobs/#"), (5, "QoS 0 only")])
async def test_less_than_qos_1_is_a_refusal(tmp_path: Path, version: int, word: str) -> None:
    """A broker that would lose our messages counts as refusing us, and it is said what it did not grant."""
    async with servers.Mosquitto(tmp_path / "lossy", extra=["max_qos 0"]) as broker:
        ours = new_link(broker, "ours", version=version)
        ours.subscribe("jobs/#", 1, lambda message: None)
        async with running(ours, connected=False):
            await until(lambda: ours.error is not None)
            assert isinstance(ours.error, link.Refused)
            assert word in str(ours.error)
            assert ours.counters.connects == 0


async def test_a_subscription_refused_while_the_link_runs_ends_the_connection(tmp_path: Path) -> None:
    """As at a connect: a link is connected with all its subscriptions or not at all."""
    async with (
        servers.Mosquitto(tmp_path / "lossy", extra=["max_qos 0"]) as broker,
        running(ours := new_link(broker, "ours", version=4)),
    ):
        ours.subscribe("jobs/#", 1, lambda message: None)
        await ours.wait_disconnected()
        await until(lambda: ours.error is not None)
        assert isinstance(ours.error, link.Refused)
        assert "subscribe us to jobs/#" in str(ours.error)
        ours.unsubscribe("jobs/#")
        await ours.wait_connected()


async def test_a_refused_publication_is_not_taken_for_published(tmp_path: Path) -> None:
    """MQTT 5: a topic that the access list closes to us raises Refused, and the connection stays."""
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite open/#\n")
    # Where its queues are unlimited, Mosquitto 2.0.11 closes the connection instead of saying no.
    options = [f"acl_file {rules}", "max_queued_messages 10000"]
    async with (
        servers.Mosquitto(tmp_path / "guarded", extra=options) as broker,
        running(ours := new_link(broker, "ours")),
    ):
        with pytest.raises(link.Refused, match="Not authorized"):
            await ours.publish("closed/t", b"", qos=1)
        await ours.publish("open/t", b"", qos=1)
        assert ours.in_flight == 0
        assert ours.counters.connects == 1


# Loss


async def test_a_killed_broker_fails_what_is_in_flight(broker: servers.Mosquitto) -> None:
    """Nothing that was not acknowledged counts as published; the link comes back, with its subscriptions."""
    inbox = link.Inbox(100)
    ours = new_link(broker, "ours", in_flight_limit=8)
    ours.subscribe("t", 1, inbox.put)
    changes: list[bool] = []
    ours.watch(changes.append)
    async with running(ours):
        with stalled(broker):
            publishing = [asyncio.create_task(ours.publish("t", b"lost", qos=1)) for _ in range(20)]
            await until(lambda: ours.in_flight == 8)
            await broker.kill()
            async with asyncio.timeout(WAIT):
                outcomes = await asyncio.gather(*publishing, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {link.LinkDown}
        await ours.wait_disconnected()
        assert not ours.connected
        with pytest.raises(link.LinkDown, match="not connected"):
            await ours.publish("t", b"", qos=1)
        with pytest.raises(link.LinkDown, match="not connected"):
            await ours.room()
        await broker.start()
        await ours.wait_connected()
        await ours.publish("t", b"again", qos=1)
        (message,) = await inbox.take(10)
        assert message.payload == b"again"
        assert ours.counters.connects == 2
    assert changes == [True, False, True, False]


async def test_what_was_acknowledged_arrived_and_the_rest_failed(broker: servers.Mosquitto) -> None:
    """Over many cuts, a receiver misses none of the publications that returned; some may come twice."""
    got: set[bytes] = set()
    inbox = link.Inbox(1000)
    worker = new_link(broker, "worker", session_expiry_s=600)
    worker.subscribe("t", 1, inbox.put)
    device = new_link(broker, "device")
    published: list[bytes] = []
    failed = 0

    async def receive() -> None:
        while True:
            for message in await inbox.take(10):
                got.add(message.payload)
                worker.ack(message)

    async def publish(lane: int) -> None:
        nonlocal failed
        for number in range(200):
            payload = b"%d-%d" % (lane, number)
            try:
                await device.publish("t", payload, qos=1)
                published.append(payload)
            except link.LinkDown:
                failed += 1
                await device.wait_connected()

    async with running(worker, device):
        receiving = asyncio.create_task(receive())
        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(publish(lane)) for lane in range(8)]
            while not all(lane.done() for lane in lanes):
                await asyncio.sleep(0.05)
                await device.wait_connected()
                # The same client id again: the broker ends the older connection.
                async with running(new_link(broker, "device")):
                    await device.wait_disconnected()
        await until(lambda: got >= set(published))
        receiving.cancel()
    assert device.counters.connects > 1
    assert failed
    assert len(published) + failed == 1600


async def test_a_silent_broker_is_given_up(broker: servers.Mosquitto) -> None:
    """A line that swallows everything is noticed within twice the keepalive, and those who wait are told."""
    async with running(ours := new_link(broker, "ours", keepalive_s=1)):
        with stalled(broker):
            async with asyncio.timeout(5):
                with pytest.raises(link.LinkDown):
                    await ours.publish("t", b"", qos=1)
                await ours.wait_disconnected()
        await ours.wait_connected()


async def test_a_quiet_line_is_kept_up(broker: servers.Mosquitto) -> None:
    """Pings keep a connection on which nothing happens."""
    async with running(ours := new_link(broker, "ours", keepalive_s=1)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await ours.wait_disconnected()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    """A port that accepts and says nothing is an error after the time-out, while the loop goes on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = link.Link(link.Address(*server.getsockname()), "ours", timeout_s=0.1)
        async with running(ours, connected=False):
            await until(lambda: ours.error is not None)
    assert "no answer to CONNECT" in str(ours.error)


async def test_nonsense_from_a_server_is_an_error_and_no_more() -> None:
    """Bytes that are no MQTT end the connection, not the link."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x00")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        ours = link.Link(link.Address(*server.sockets[0].getsockname()), "ours", timeout_s=WAIT)
        async with running(ours, connected=False):
            await until(lambda: ours.error is not None)
            assert not ours.connected


async def test_a_link_can_be_cancelled_while_it_connects() -> None:
    """Cancellation does not wait for a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = link.Link(link.Address(*server.getsockname()), "ours", timeout_s=60)
        async with asyncio.timeout(WAIT), running(ours, connected=False):
            await asyncio.sleep(0.05)


# Sessions and wills


async def test_a_kept_session_collects_while_we_are_away(broker: servers.Mosquitto) -> None:
    """With a session expiry, QoS 1 jobs published while an agent restarts are there when it is back."""
    inbox = link.Inbox(10)

    def worker() -> link.Link:
        new = new_link(broker, "worker", session_expiry_s=600)
        new.subscribe("jobs", 1, inbox.put)
        return new

    async with running(first := worker()):
        assert not first.session_present
    async with running(device := new_link(broker, "device")):
        await device.publish("jobs", b"while away", qos=1)
    async with running(second := worker()):
        (message,) = await inbox.take(10)
        assert second.session_present
        assert message.payload == b"while away"


async def test_what_was_not_acknowledged_comes_again(broker: servers.Mosquitto) -> None:
    """A message that was being worked on when the connection was lost is sent again, marked.

    Its first copy can no longer be acknowledged, and trying to does no harm.
    """
    arrived: list[link.Message] = []
    worker = new_link(broker, "worker", session_expiry_s=600)
    worker.subscribe("jobs", 1, arrived.append)
    async with running(worker, device := new_link(broker, "device")):
        await device.publish("jobs", b"job", qos=1)
        await until(lambda: len(arrived) == 1)
        usurper = new_link(broker, "worker", session_expiry_s=600)
        usurper.subscribe("jobs", 1, lambda message: None)
        async with running(usurper):  # takes the session over
            await worker.wait_disconnected()
        await until(lambda: len(arrived) == 2)
        first, second = arrived
        assert (first.stale, second.stale) == (True, False)
        assert (first.duplicate, second.duplicate) == (False, True)
        worker.ack(first)
        worker.ack(second)
        await worker.wait_connected()  # a kept session's messages come before the answer to SUBSCRIBE
        await worker.publish("elsewhere", b"", qos=1)
    async with running(worker):
        await worker.publish("elsewhere", b"", qos=1)  # its answer would come after a third copy
    assert len(arrived) == 2


async def test_what_an_earlier_program_subscribed_to_does_not_clog(broker: servers.Mosquitto) -> None:
    """Messages for a subscription that only the kept session remembers are acknowledged and counted."""
    former = new_link(broker, "worker", session_expiry_s=600)
    former.subscribe("old", 1, lambda message: None)
    async with running(former):
        pass
    current = new_link(broker, "worker", session_expiry_s=600, receive_maximum=1)
    inbox = link.Inbox(10)
    current.subscribe("new", 1, inbox.put)
    async with running(current, device := new_link(broker, "device")):
        for topic in ("old", "old", "new"):
            await device.publish(topic, b"", qos=1)
        (message,) = await inbox.take(10)
        assert message.topic == "new"
    assert current.counters.unclaimed == 2


async def test_a_cancelled_link_says_goodbye(broker: servers.Mosquitto) -> None:
    """Cancelling `run` disconnects cleanly: no will, even with messages in the socket that nobody reads."""
    presence = link.Inbox(10)
    observer = new_link(broker, "observer")
    observer.subscribe("presence", 1, presence.put)
    async with running(observer):
        async with running(device := new_link(broker, "device")):
            will = link.Publication("presence", b"offline", qos=1)
            ours = new_link(broker, "ours", receive_maximum=20, will=will)
            arrived: list[link.Message] = []
            ours.subscribe("jobs", 1, arrived.append)
            async with running(ours):
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(300):
                        tasks.create_task(device.publish("jobs", bytes(3000), qos=1))
                await until(lambda: len(arrived) == 20)
                ours.ack(arrived[0])  # for which this broker sends twenty more
                await until(lambda: len(arrived) == 22)
        await observer.publish("presence", b"no will came before this", qos=1)
        (message,) = await presence.take(10)
        assert message.payload == b"no will came before this"


async def test_a_killed_process_leaves_its_will(broker: servers.Mosquitto) -> None:
    """When a process dies without a goodbye, the broker publishes its will, properties and all."""
    presence = link.Inbox(10)
    observer = new_link(broker, "observer")
    observer.subscribe("presence", 1, presence.put)
    program = f"""
import asyncio
from shared import link
will = link.Publication("presence", b"offline", qos=1, properties={{"epoch": "7"}})
ours = link.Link(link.Address({broker.host!r}, {broker.port}), "mortal", will=will)
async def main():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ours.run())
        await ours.wait_connected()
        await ours.publish("presence", b"online", qos=1)
asyncio.run(main())
"""
    async with running(observer):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        try:
            (birth,) = await presence.take(1)
            assert birth.payload == b"online"
        finally:
            process.kill()
            await process.wait()
        (message,) = await presence.take(1)
    assert (message.payload, message.properties) == (b"offline", {"epoch": "7"})


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority `ca.pem`, and `server` and `client` certificates signed by it."""
    place = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        try:
            subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is missing: install it (Debian: apt-get install openssl)")

    new_key = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new_key, "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    for name in ("server", "client"):
        openssl(*new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (place / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        )
    return place


async def test_the_link_is_encrypted_and_both_sides_show_who_they_are(
    tmp_path: Path, certificates: Path
) -> None:
    """With certificates, messages of all sizes pass over TLS; with none or the wrong ones, nothing does."""
    tls = [
        f"cafile {certificates / 'ca.pem'}",
        f"certfile {certificates / 'server.pem'}",
        f"keyfile {certificates / 'server.key'}",
        "require_certificate true",
    ]
    async with servers.Mosquitto(tmp_path / "secure", extra=tls) as broker:

        def to_broker(**files: str) -> link.Address:
            return link.Address(
                broker.host, broker.port, **{name: str(certificates / file) for name, file in files.items()}
            )

        inbox = link.Inbox(1000)
        known = link.Link(to_broker(ca_file="ca.pem", cert_file="client.pem", key_file="client.key"), "known")
        known.subscribe("t", 1, inbox.put)
        async with running(known):
            sizes = [0, 1, 100, 16_384, 2_000_000, *range(200)]
            async with asyncio.TaskGroup() as tasks:
                for size in sizes:
                    tasks.create_task(known.publish("t", bytes(size), qos=1))
            received: list[int] = []
            while len(received) < len(sizes):
                for message in await inbox.take(1000):
                    received.append(len(message.payload))
                    known.ack(message)
            assert sorted(received) == sorted(sizes)
            assert known.counters.connects == 1

        for stranger in (
            link.Link(to_broker(ca_file="ca.pem"), "no certificate"),
            link.Link(to_broker(ca_file="client.pem"), "another authority"),
            link.Link(to_broker(ca_file="missing.pem"), "missing file"),
            link.Link(to_broker(), "no TLS", timeout_s=0.2),
        ):
            async with running(stranger, connected=False):
                await until(lambda: stranger.error is not None)  # noqa: B023 - awaited within the turn
                assert stranger.counters.connects == 0


async def test_many_packets_in_one_tls_record_all_arrive(certificates: Path) -> None:
    """What TLS has already taken out of the socket is read too, though the socket has no more to say."""
    accept, message = b"\x20\x03\x00\x00\x00", b"\x30\x04\x00\x01t\x00"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(accept + 500 * message)
        await reader.read()
        writer.close()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        host, port = server.sockets[0].getsockname()
        ours = link.Link(link.Address(host, port, ca_file=str(certificates / "ca.pem")), "ours")
        async with running(ours):
            await until(lambda: ours.counters.unclaimed == 500)
