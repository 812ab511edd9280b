"""The link's connection to a real broker: refused, lost, silent, ended, encrypted; and how it comes back."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from demo import servers
from shared import link
from tests.integration import links

pytestmark = pytest.mark.usefixtures("broker")  # which skips, or fails, where there is no Mosquitto


# Refusals


async def test_a_refused_connection_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """A link that the broker refuses is not connected and says why; let in at last, it comes up by itself."""
    async with servers.Mosquitto(tmp_path / "closed", extra=["allow_anonymous false"]) as strict:
        ours = links.new_link(strict, "ours")
        async with links.running(ours, connected=False):
            await links.until(lambda: ours.error is not None)
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


# Loss


async def test_a_killed_broker_fails_what_is_in_flight(broker: servers.Mosquitto) -> None:
    """Nothing that was not acknowledged counts as published; the link comes back, with its subscriptions."""
    inbox = link.Inbox(100)
    ours = links.new_link(broker, "ours", in_flight_limit=8)
    ours.subscribe("t", 1, inbox.put)
    changes: list[bool] = []
    ours.watch(changes.append)
    async with links.running(ours):
        with links.stalled(broker):
            publishing = [asyncio.create_task(ours.publish("t", b"lost", qos=1)) for _ in range(20)]
            await links.until(lambda: ours.in_flight == 8)
            await broker.kill()
            async with asyncio.timeout(links.WAIT):
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


async def test_a_silent_broker_is_given_up(broker: servers.Mosquitto) -> None:
    """A line that swallows everything is noticed within twice the keepalive, and those who wait are told."""
    async with links.running(ours := links.new_link(broker, "ours", keepalive_s=1)):
        with links.stalled(broker):
            async with asyncio.timeout(5):
                with pytest.raises(link.LinkDown):
                    await ours.publish("t", b"", qos=1)
                await ours.wait_disconnected()
        await ours.wait_connected()


async def test_a_quiet_line_is_kept_up(broker: servers.Mosquitto) -> None:
    """Pings keep a connection on which nothing happens."""
    async with links.running(ours := links.new_link(broker, "ours", keepalive_s=1)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await ours.wait_disconnected()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    """A port that accepts and says nothing is an error after the time-out, while the loop goes on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = link.Link(link.Address(*server.getsockname()), "ours", timeout_s=0.1)
        async with links.running(ours, connected=False):
            await links.until(lambda: ours.error is not None)
    assert "no answer to CONNECT" in str(ours.error)


async def test_nonsense_from_a_server_is_an_error_and_no_more() -> None:
    """Bytes that are no MQTT end the connection, not the link."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x00")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        ours = link.Link(link.Address(*server.sockets[0].getsockname()), "ours", timeout_s=links.WAIT)
        async with links.running(ours, connected=False):
            await links.until(lambda: ours.error is not None)
            assert not ours.connected


async def test_a_link_can_be_cancelled_while_it_connects() -> None:
    """Cancellation does not wait for a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = link.Link(link.Address(*server.getsockname()), "ours", timeout_s=60)
        async with asyncio.timeout(links.WAIT), links.running(ours, connected=False):
            await asyncio.sleep(0.05)


# Goodbyes and wills


async def test_a_cancelled_link_says_goodbye(broker: servers.Mosquitto) -> None:
    """Cancelling `run` disconnects cleanly: no will, even with messages in the socket that nobody reads."""
    presence = link.Inbox(10)
    observer = links.new_link(broker, "observer")
    observer.subscribe("presence", 1, presence.put)
    async with links.running(observer):
        async with links.running(device := links.new_link(broker, "device")):
            will = link.Publication("presence", b"offline", qos=1)
            ours = links.new_link(broker, "ours", receive_maximum=20, will=will)
            arrived: list[link.Message] = []
            ours.subscribe("jobs", 1, arrived.append)
            async with links.running(ours):
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(300):
                        tasks.create_task(device.publish("jobs", bytes(3000), qos=1))
                await links.until(lambda: len(arrived) == 20)
                ours.ack(arrived[0])  # for which this broker sends twenty more
                await links.until(lambda: len(arrived) == 22)
        await observer.publish("presence", b"no will came before this", qos=1)
        (message,) = await presence.take(10)
        assert message.payload == b"no will came before this"


async def test_a_killed_process_leaves_its_will(broker: servers.Mosquitto) -> None:
    """When a process dies without a goodbye, the broker publishes its will, properties and all."""
    presence = link.Inbox(10)
    observer = links.new_link(broker, "observer")
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
    async with links.running(observer):
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
        async with links.running(known):
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
            async with links.running(stranger, connected=False):
                await links.until(lambda: stranger.error is not None)  # noqa: B023 - awaited within the turn
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
        async with links.running(ours):
            await links.until(lambda: ours.counters.unclaimed == 500)
