"""What a link subscribes to on a real broker: handlers, acknowledgements, refusals, kept sessions."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from demo import servers
from shared import link
from tests.integration import links

pytestmark = pytest.mark.usefixtures("broker")  # which skips, or fails, where there is no Mosquitto


# Handlers


async def test_messages_go_to_the_handler_of_their_filter(broker: servers.Mosquitto) -> None:
    """Each subscription gets its own messages."""
    leases, commands = link.Inbox(10), link.Inbox(10)
    ours = links.new_link(broker, "ours")
    ours.subscribe("down/leases", 1, leases.put)
    ours.subscribe("down/+/now", 1, commands.put)
    with pytest.raises(ValueError, match="already"):
        ours.subscribe("down/leases", 1, commands.put)
    async with links.running(ours):
        await ours.publish("down/commands/now", b"command", qos=1)
        await ours.publish("down/leases", b"lease", qos=1)
        assert [message.payload for message in await commands.take(10)] == [b"command"]
        assert [message.payload for message in await leases.take(10)] == [b"lease"]


async def test_a_subscription_may_come_while_the_link_runs(broker: servers.Mosquitto) -> None:
    """It holds for all that is published after it, also over the same link, and at later connections."""
    early, late = link.Inbox(10), link.Inbox(10)
    ours = links.new_link(broker, "ours")
    ours.subscribe("early", 1, early.put)
    async with links.running(ours):
        ours.subscribe("late/+", 1, late.put)
        await ours.publish("late/1", b"", qos=1)
        (message,) = await late.take(10)
        ours.ack(message)
        await broker.restart()
        await links.until(lambda: ours.counters.connects == 2)
        await ours.wait_connected()
        await ours.publish("late/2", b"", qos=1)
        (message,) = await late.take(10)
    assert message.topic == "late/2"


async def test_what_a_subscription_brings_ends_with_it(broker: servers.Mosquitto) -> None:
    """After `unsubscribe` nothing comes to its handler, nor at later connections; it may be made anew."""
    ended, going_on = link.Inbox(10), link.Inbox(10)
    ours = links.new_link(broker, "ours")
    ours.subscribe("ended/+", 1, ended.put)
    ours.subscribe("on", 1, going_on.put)
    async with links.running(ours):
        for again in (False, True):
            ours.unsubscribe("ended/+")
            if again:
                await broker.restart()
                await links.until(lambda: ours.counters.connects == 2)
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
    ours = links.new_link(broker, "ours")
    async with links.running(ours):
        for number in range(300):
            ours.subscribe(f"t/{number}", 1, inbox.put)
        await broker.restart()
        await links.until(lambda: ours.counters.connects == 2)
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

    ours = links.new_link(broker, "ours")
    ours.subscribe("t", 1, fail)
    publisher = links.new_link(broker, "publisher")
    async with links.running(publisher):
        failing = asyncio.create_task(ours.run())
        await ours.wait_connected()
        await publisher.publish("t", b"", qos=1)
        with pytest.raises(ZeroDivisionError, match="t"):
            await failing
    assert not ours.connected


async def test_a_retained_message_is_marked(broker: servers.Mosquitto) -> None:
    """Who subscribes later gets the retained message, and can tell it from a live one."""
    async with links.running(early := links.new_link(broker, "early")):
        await early.publish("presence", b"online", qos=1, retain=True)
    inbox = link.Inbox(10)
    late = links.new_link(broker, "late")
    late.subscribe("presence", 1, inbox.put)
    async with links.running(late):
        (message,) = await inbox.take(1)
    assert (message.payload, message.retain) == (b"online", True)


# Acknowledgements


async def test_acknowledgements_reach_the_broker_in_order_of_arrival(tmp_path: Path) -> None:
    """Work finishes in any order; the broker, which may insist on it, sees the order of arrival."""
    inbox = link.Inbox(100)
    async with servers.Mosquitto(tmp_path / "verbose", extra=["log_type all"]) as broker:
        worker, device = links.new_link(broker, "worker"), links.new_link(broker, "device")
        worker.subscribe("jobs", 1, inbox.put)
        async with links.running(worker, device):
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
            await links.until(lambda: broker.log.read_text().count(line) == 50)
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
    worker = links.new_link(broker, "worker", version=version, receive_maximum=5)
    worker.subscribe("jobs", 1, arrived.append)
    async with links.running(worker, device := links.new_link(broker, "device")):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(500):
                tasks.create_task(device.publish("jobs", b"", qos=1))
        for acknowledged in range(500):
            await links.until(lambda: len(arrived) > acknowledged)  # noqa: B023 - awaited within the turn
            assert len(arrived) <= acknowledged + 5 + 1
            worker.ack(arrived[acknowledged])
        await worker.publish("elsewhere", b"", qos=1)
        assert len(arrived) == 500
        assert worker.counters.connects == 1


# Refusals


@pytest.mark.parametrize(("version", "word"), [(4, "subscribe us to jobs/#"), (5, "QoS 0 only")])
async def test_less_than_qos_1_is_a_refusal(tmp_path: Path, version: int, word: str) -> None:
    """A broker that would lose our messages counts as refusing us, and it is said what it did not grant."""
    async with servers.Mosquitto(tmp_path / "lossy", extra=["max_qos 0"]) as broker:
        ours = links.new_link(broker, "ours", version=version)
        ours.subscribe("jobs/#", 1, lambda message: None)
        async with links.running(ours, connected=False):
            await links.until(lambda: ours.error is not None)
            assert isinstance(ours.error, link.Refused)
            assert word in str(ours.error)
            assert ours.counters.connects == 0


async def test_a_subscription_refused_while_the_link_runs_ends_the_connection(tmp_path: Path) -> None:
    """As at a connect: a link is connected with all its subscriptions or not at all."""
    async with (
        servers.Mosquitto(tmp_path / "lossy", extra=["max_qos 0"]) as broker,
        links.running(ours := links.new_link(broker, "ours", version=4)),
    ):
        ours.subscribe("jobs/#", 1, lambda message: None)
        await ours.wait_disconnected()
        await links.until(lambda: ours.error is not None)
        assert isinstance(ours.error, link.Refused)
        assert "subscribe us to jobs/#" in str(ours.error)
        ours.unsubscribe("jobs/#")
        await ours.wait_connected()


# Sessions


async def test_a_kept_session_collects_while_we_are_away(broker: servers.Mosquitto) -> None:
    """With a session expiry, QoS 1 jobs published while an agent restarts are there when it is back."""
    inbox = link.Inbox(10)

    def worker() -> link.Link:
        new = links.new_link(broker, "worker", session_expiry_s=600)
        new.subscribe("jobs", 1, inbox.put)
        return new

    async with links.running(first := worker()):
        assert not first.session_present
    async with links.running(device := links.new_link(broker, "device")):
        await device.publish("jobs", b"while away", qos=1)
    async with links.running(second := worker()):
        (message,) = await inbox.take(10)
        assert second.session_present
        assert message.payload == b"while away"


async def test_what_was_not_acknowledged_comes_again(broker: servers.Mosquitto) -> None:
    """A message that was being worked on when the connection was lost is sent again, marked.

    Its first copy can no longer be acknowledged, and trying to does no harm.
    """
    arrived: list[link.Message] = []
    worker = links.new_link(broker, "worker", session_expiry_s=600)
    worker.subscribe("jobs", 1, arrived.append)
    async with links.running(worker, device := links.new_link(broker, "device")):
        await device.publish("jobs", b"job", qos=1)
        await links.until(lambda: len(arrived) == 1)
        usurper = links.new_link(broker, "worker", session_expiry_s=600)
        usurper.subscribe("jobs", 1, lambda message: None)
        async with links.running(usurper):  # takes the session over
            await worker.wait_disconnected()
        await links.until(lambda: len(arrived) == 2)
        first, second = arrived
        assert (first.stale, second.stale) == (True, False)
        assert (first.duplicate, second.duplicate) == (False, True)
        worker.ack(first)
        worker.ack(second)
        await worker.wait_connected()  # a kept session's messages come before the answer to SUBSCRIBE
        await worker.publish("elsewhere", b"", qos=1)
    async with links.running(worker):
        await worker.publish("elsewhere", b"", qos=1)  # its answer would come after a third copy
    assert len(arrived) == 2


async def test_what_an_earlier_program_subscribed_to_does_not_clog(broker: servers.Mosquitto) -> None:
    """Messages for a subscription that only the kept session remembers are acknowledged and counted."""
    former = links.new_link(broker, "worker", session_expiry_s=600)
    former.subscribe("old", 1, lambda message: None)
    async with links.running(former):
        pass
    current = links.new_link(broker, "worker", session_expiry_s=600, receive_maximum=1)
    inbox = link.Inbox(10)
    current.subscribe("new", 1, inbox.put)
    async with links.running(current, device := links.new_link(broker, "device")):
        for topic in ("old", "old", "new"):
            await device.publish(topic, b"", qos=1)
        (message,) = await inbox.take(10)
        assert message.topic == "new"
    assert current.counters.unclaimed == 2
