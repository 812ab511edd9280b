"""One MQTT link: a connection to a broker that comes back by itself.

    uplink = link.Link(link.Address("broker.example", 8883, ca_file="ca.pem"), "line-3/press")
    uplink.subscribe(topics.all_down(agent), 1, inbox.put)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run(), name="uplink")
        await uplink.wait_connected()
        await uplink.publish(topics.up(agent, "results"), batch, qos=1)  # returns at PUBACK
        running.cancel()  # disconnects, sends no will

paho-mqtt speaks the protocol; the asyncio loop drives it, in one thread, through its socket callbacks. What
the link adds is what a store-and-forward system must know and paho keeps to itself: a refusal is an error, a
publication is acknowledged or has failed, what is in flight is bounded by what the broker said it takes, and
acknowledgements leave in the order in which the messages came. It stores nothing and repeats nothing: when
the connection is lost, every publication that was not acknowledged fails with `LinkDown`, and its owner
decides.
"""

from shared.link.address import Address
from shared.link.counters import Counters
from shared.link.errors import LinkDown, LinkError, NoRoom, PacketTooLarge, Refused, Unpublishable
from shared.link.inbox import Inbox
from shared.link.link import Handler, Link
from shared.link.messages import Message, Options, Publication, QoS

__all__ = [
    "Address",
    "Counters",
    "Handler",
    "Inbox",
    "Link",
    "LinkDown",
    "LinkError",
    "Message",
    "NoRoom",
    "Options",
    "PacketTooLarge",
    "Publication",
    "QoS",
    "Refused",
    "Unpublishable",
]
