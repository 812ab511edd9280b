"""The parts of the link that need no broker: packets, the order of acknowledgements, the inbox."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shared import link
from shared.link import messages, packets

# What MQTT carries in a string: no control characters, surrogates or non-characters.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=40)
TOPICS = TEXT.filter(lambda text: text and "+" not in text and "#" not in text)
PUBLICATIONS = st.builds(
    link.Publication,
    topic=TOPICS,
    payload=st.binary(max_size=300),
    qos=st.sampled_from([0, 1]),
    retain=st.booleans(),
    content_type=st.none() | TEXT,
    response_topic=st.none() | TEXT,
    correlation=st.none() | st.binary(max_size=40),
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    properties=st.none() | st.dictionaries(TEXT, TEXT, max_size=4),
)


def packet(publication: link.Publication, packet_id: int = 7) -> tuple[int, bytes]:
    """The first byte and the body of a PUBLISH of MQTT 5."""
    topic = packets.check_topic(publication.topic)
    body = len(topic).to_bytes(2, "big") + topic
    if publication.qos:
        body += packet_id.to_bytes(2, "big")
    header = 0x30 | publication.qos << 1 | publication.retain
    return header, body + packets.pack(publication) + publication.payload


@given(PUBLICATIONS)
def test_what_is_packed_is_parsed(publication: link.Publication) -> None:
    """A message arrives with every property that its publication had."""
    message = packets.parse(*packet(publication), version=5)
    for name in (
        "topic",
        "payload",
        "qos",
        "retain",
        "content_type",
        "response_topic",
        "correlation",
        "expiry_s",
    ):
        assert getattr(message, name) == getattr(publication, name), name
    assert message.properties == (publication.properties or {})
    assert message.packet_id == (7 if publication.qos else 0)


@given(PUBLICATIONS)
def test_the_size_is_that_of_the_packet(publication: link.Publication) -> None:
    """The size held against the broker's limit is exact."""
    _, body = packet(publication)
    topic = packets.check_topic(publication.topic)
    size = packets.size(topic, publication.payload, publication.qos, packets.pack(publication))
    assert size == 1 + len(packets.varint(len(body))) + len(body)


@given(PUBLICATIONS)
def test_paho_reads_the_same_properties(publication: link.Publication) -> None:
    """Another implementation of the standard finds the same in our bytes."""
    theirs = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    theirs.unpack(packets.pack(publication))  # type: ignore[no-untyped-call]
    assert getattr(theirs, "ContentType", None) == publication.content_type
    assert getattr(theirs, "ResponseTopic", None) == publication.response_topic
    assert getattr(theirs, "CorrelationData", None) == publication.correlation
    assert getattr(theirs, "MessageExpiryInterval", None) == publication.expiry_s
    assert dict(getattr(theirs, "UserProperty", [])) == (publication.properties or {})


@given(header=st.integers(0x30, 0x3F), body=st.binary(max_size=80), version=st.sampled_from([4, 5]))
def test_no_bytes_break_the_parser(header: int, body: bytes, version: int) -> None:
    """Whatever a broker sends is a message or a ValueError."""
    try:
        packets.parse(header, body, version)
    except ValueError:
        return


def test_an_unreadable_property_does_not_cost_the_message() -> None:
    """A property of a kind that nobody knows hides those behind it, but not the payload."""
    properties = b"\x03\x00\x01a" + b"\x7f" + b"\x03\x00\x01b"
    body = b"\x00\x01t" + b"\x00\x07" + bytes([len(properties)]) + properties + b"payload"
    message = packets.parse(0x32, body, version=5)
    assert (message.content_type, message.payload) == ("a", b"payload")


@pytest.mark.parametrize(
    "publication",
    [
        link.Publication(""),
        link.Publication("jobs/+/x"),
        link.Publication("jobs/#"),
        link.Publication("a\x00b"),
        link.Publication("a\ud800b"),
        link.Publication("t" * 65_536),
        link.Publication("t", content_type="text\n"),
        link.Publication("t", response_topic="a\x7f"),
        link.Publication("t", correlation=b"c" * 65_536),
        link.Publication("t", expiry_s=-1),
        link.Publication("t", expiry_s=2**32),
        link.Publication("t", properties={"error": "first line\nsecond line"}),
        link.Publication("t", properties={"\ufffe": "non-character"}),
    ],
)
def test_what_no_broker_takes_is_refused_here(publication: link.Publication) -> None:
    """A publication for which a broker would close the connection, at every try, never leaves."""
    with pytest.raises(link.Unpublishable):
        packet(publication)


@given(st.data())
def test_acknowledgements_leave_in_order_of_arrival(data: st.DataObject) -> None:
    """Whatever the order in which work ends, the broker hears of it in the order of arrival, once each."""
    count = data.draw(st.integers(0, 30))
    deliveries = messages.Deliveries()
    arrived = [link.Message("t", b"", 1, packet_id=index + 1) for index in range(count)]
    for message in arrived:
        deliveries.arrived(message)
    due: list[int] = []
    finished: set[int] = set()
    for message in data.draw(st.permutations(arrived)):
        for _ in range(data.draw(st.integers(1, 2))):  # some are acknowledged twice
            due += deliveries.acknowledge(message)
        finished.add(message.packet_id)
        assert set(due) <= finished
    assert due == [message.packet_id for message in arrived]
    assert len(deliveries) == 0


def test_acknowledgements_of_a_former_connection_are_dropped() -> None:
    """What came over a connection that is over cannot be acknowledged, there or over the next one."""
    former, current = messages.Deliveries(), messages.Deliveries()
    late = link.Message("t", b"", 1, packet_id=1)
    former.arrived(late)
    former.end()
    again = link.Message("t", b"", 1, packet_id=1)
    current.arrived(again)
    assert late.stale
    assert not again.stale
    assert former.acknowledge(late) == []
    assert current.acknowledge(late) == []
    assert current.acknowledge(again) == [1]


def message(number: int, *, qos: int = 1, duplicate: bool = False) -> link.Message:
    return link.Message("t", b"%d" % number, qos, duplicate=duplicate, packet_id=number)


def arrive(deliveries: messages.Deliveries, inbox: link.Inbox, *arriving: link.Message) -> None:
    for each in arriving:
        deliveries.arrived(each)
        inbox.put(each)


def payloads(taken: list[link.Message]) -> list[bytes]:
    return [each.payload for each in taken]


async def test_an_inbox_gives_what_is_there_up_to_the_most_asked_for() -> None:
    """A taker gets a batch as soon as there is one message, oldest first, and no more than it asked for."""
    inbox = link.Inbox(10)
    taking = asyncio.create_task(inbox.take(2))
    await asyncio.sleep(0)
    assert not taking.done()
    for number in range(3):
        inbox.put(message(number))
    assert payloads(await taking) == [b"0", b"1"]
    assert payloads(await inbox.take(2)) == [b"2"]
    assert len(inbox) == 0


async def test_a_full_inbox_drops_newcomers_of_qos_0_and_counts_them() -> None:
    """A flood at QoS 0 does not grow the inbox; QoS 1, which the link bounds, still gets in."""
    inbox = link.Inbox(2)
    for number in range(5):
        inbox.put(message(number, qos=0))
    arrive(messages.Deliveries(), inbox, message(5))
    assert payloads(await inbox.take(9)) == [b"0", b"1", b"5"]
    assert inbox.dropped == 3


async def test_a_message_sent_again_replaces_its_first_copy() -> None:
    """What the broker sends again is in the inbox once, in the copy that can be acknowledged."""
    inbox = link.Inbox(10)
    former, current = messages.Deliveries(), messages.Deliveries()
    arrive(former, inbox, message(1), message(2))
    former.end()
    arrive(current, inbox, message(2, duplicate=True))
    taken = await inbox.take(9)
    assert payloads(taken) == [b"1", b"2"]
    assert [each.stale for each in taken] == [True, False]
    assert inbox.dropped == 0


async def test_reconnects_do_not_grow_an_inbox_that_nobody_empties() -> None:
    """Each connection may bring new messages: the oldest of former ones make room, and are counted."""
    inbox = link.Inbox(4)
    for connection in range(10):
        deliveries = messages.Deliveries()
        arrive(deliveries, inbox, *(message(10 * connection + number) for number in range(2)))
        deliveries.end()
    assert len(inbox) == 4
    assert inbox.dropped == 16
    assert payloads(await inbox.take(9)) == [b"80", b"81", b"90", b"91"]
