"""What a link publishes to a real broker arrives whole, keeps within bounds, or is known to have failed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from demo import servers
from shared import link
from tests.integration import links

pytestmark = pytest.mark.usefixtures("broker")  # which skips, or fails, where there is no Mosquitto


# In good weather


@pytest.mark.parametrize("qos", [0, 1])
async def test_every_property_makes_the_round_trip(broker: servers.Mosquitto, qos: link.QoS) -> None:
    """What MQTT 5 lets a publication say reaches the subscriber, at either quality of service."""
    inbox = link.Inbox(10)
    ours = links.new_link(broker, "ours")
    ours.subscribe("jobs/+/detect", qos, inbox.put)
    async with links.running(ours):
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
    ours = links.new_link(broker, "ours", version=4)
    ours.subscribe("#", 1, inbox.put)
    async with links.running(ours):
        await ours.publish("t", b"payload", qos=1)
        (message,) = await inbox.take(10)
        ours.ack(message)
        assert (message.topic, message.payload, message.properties) == ("t", b"payload", {})
        with pytest.raises(ValueError, match=r"3\.1\.1"):
            await ours.publish("t", b"payload", qos=1, content_type="text/plain")
        assert ours.connected


async def test_a_large_message_does_not_stop_the_loop(broker: servers.Mosquitto) -> None:
    """Fifteen megabytes go out and come back whole."""
    inbox = link.Inbox(10)
    ours = links.new_link(broker, "ours")
    ours.subscribe("t", 1, inbox.put)
    payload = random.Random(1).randbytes(15_000_000)
    async with links.running(ours):
        await ours.publish("t", payload, qos=1)
        (message,) = await inbox.take(1)
    assert message.payload == payload


async def test_publish_returns_at_the_acknowledgement(broker: servers.Mosquitto) -> None:
    """At QoS 1 nothing counts as published before the broker has said so."""
    async with links.running(ours := links.new_link(broker, "ours")):
        with links.stalled(broker):
            publishing = asyncio.create_task(ours.publish("t", b"", qos=1))
            later = asyncio.create_task(asyncio.sleep(0.05))
            await asyncio.wait([publishing, later], return_when=asyncio.FIRST_COMPLETED)
            assert not publishing.done()
            assert ours.in_flight == 1
        await publishing
        assert ours.in_flight == 0


# Bounds


async def test_what_is_in_flight_stays_within_the_brokers_receive_maximum(tmp_path: Path) -> None:
    """A broker that takes five at a time is never sent a sixth, however many wait to publish."""
    async with (
        servers.Mosquitto(tmp_path / "narrow", max_inflight=5) as broker,
        links.running(ours := links.new_link(broker, "ours", in_flight_limit=64)),
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
    async with links.running(ours := links.new_link(broker, "ours", in_flight_limit=3)):
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
    async with links.running(ours := links.new_link(broker, "ours", in_flight_limit=1)):
        first = ours.publish_nowait("t", b"", qos=1)
        assert first is not None
        quicker: list[object] = []
        first.add_done_callback(lambda _: quicker.append(ours.publish_nowait("t", b"", qos=1)))
        await ours.publish("t", b"", qos=1)
        assert len(quicker) == 1
        assert ours.counters.messages_out == 3


async def test_a_publisher_that_gives_up_makes_room_for_others(broker: servers.Mosquitto) -> None:
    """Those who stop waiting, in the queue or in flight, leave no place taken and nobody stuck."""
    async with links.running(ours := links.new_link(broker, "ours", in_flight_limit=2)):
        with links.stalled(broker):
            publishing = [asyncio.create_task(ours.publish("t", b"", qos=1)) for _ in range(10)]
            await links.until(lambda: ours.in_flight == 2)
            for impatient in publishing[::2]:
                impatient.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(links.WAIT):
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, type(None)] * 5
        assert ours.in_flight == 0


async def test_telemetry_is_dropped_rather_than_piled_up(broker: servers.Mosquitto) -> None:
    """QoS 0 never waits and never fails: with no connection, or a full one, it is dropped, and counted."""
    ours = links.new_link(broker, "ours")
    await ours.publish("t", b"", qos=0)
    assert (ours.counters.dropped, ours.counters.messages_out) == (1, 0)
    async with links.running(ours):
        with links.stalled(broker):
            for _ in range(2000):
                await ours.publish("t", bytes(10_000), qos=0)
                await asyncio.sleep(0)
        taken = ours.counters.messages_out
        assert ours.counters.dropped == 1 + 2000 - taken
        assert 0 < taken < 1000  # what the sockets hold, and a megabyte
        await ours.publish("t", b"", qos=1)


# Refusals and loss


async def test_a_packet_that_the_broker_would_not_take_is_refused_at_the_door(tmp_path: Path) -> None:
    """What is too large for this broker fails at once, instead of costing the connection."""
    async with servers.Mosquitto(tmp_path / "small", max_packet_size=1000) as broker:
        inbox = link.Inbox(10)
        ours = links.new_link(broker, "ours")
        ours.subscribe("t", 1, inbox.put)
        async with links.running(ours):
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
    async with links.running(ours := links.new_link(broker, "ours")):
        with pytest.raises(link.Unpublishable, match="character"):
            await ours.publish("t", b"", qos=1, properties={"error": "line 1\nline 2"})
        with pytest.raises(link.Unpublishable, match="wildcard"):
            await ours.publish("replies/#", b"", qos=1)
        await ours.publish("t", b"", qos=1)
        assert ours.counters.connects == 1


async def test_a_strange_property_does_not_cut_the_receivers_connection(broker: servers.Mosquitto) -> None:
    """U+FEFF, which the standard allows, arrives: no device can have a connection cut, time and again."""
    inbox = link.Inbox(10)
    worker = links.new_link(broker, "worker", session_expiry_s=60)
    worker.subscribe("jobs", 1, inbox.put)
    async with links.running(worker, device := links.new_link(broker, "device")):
        await device.publish("jobs", b"", qos=1, content_type="\ufefftext", properties={"\ufeff": "\ufeff"})
        (message,) = await inbox.take(1)
        assert (message.content_type, message.properties) == ("\ufefftext", {"\ufeff": "\ufeff"})
        assert worker.counters.connects == 1


async def test_a_refused_publication_is_not_taken_for_published(tmp_path: Path) -> None:
    """MQTT 5: a topic that the access list closes to us raises Refused, and the connection stays."""
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite open/#\n")
    # Where its queues are unlimited, Mosquitto 2.0.11 closes the connection instead of saying no.
    options = [f"acl_file {rules}", "max_queued_messages 10000"]
    async with (
        servers.Mosquitto(tmp_path / "guarded", extra=options) as broker,
        links.running(ours := links.new_link(broker, "ours")),
    ):
        with pytest.raises(link.Refused, match="Not authorized"):
            await ours.publish("closed/t", b"", qos=1)
        await ours.publish("open/t", b"", qos=1)
        assert ours.in_flight == 0
        assert ours.counters.connects == 1


async def test_what_was_acknowledged_arrived_and_the_rest_failed(broker: servers.Mosquitto) -> None:
    """Over many cuts, a receiver misses none of the publications that returned; some may come twice."""
    got: set[bytes] = set()
    inbox = link.Inbox(1000)
    worker = links.new_link(broker, "worker", session_expiry_s=600)
    worker.subscribe("t", 1, inbox.put)
    device = links.new_link(broker, "device")
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

    async with links.running(worker, device):
        receiving = asyncio.create_task(receive())
        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(publish(lane)) for lane in range(8)]
            while not all(lane.done() for lane in lanes):
                await asyncio.sleep(0.05)
                await device.wait_connected()
                # The same client id again: the broker ends the older connection.
                async with links.running(links.new_link(broker, "device")):
                    await device.wait_disconnected()
        await links.until(lambda: got >= set(published))
        receiving.cancel()
    assert device.counters.connects > 1
    assert failed
    assert len(published) + failed == 1600
