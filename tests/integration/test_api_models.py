"""Models over REST: pushed, fetched in parts, aimed at agents, and forgotten."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_hub.api import blobs as api_blobs
from cloud_hub.api import context, uploads
from cloud_hub.store import blobs
from shared import packages, signatures, topics
from tests.integration import api_server, stores
from tests.integration.api_server import PRESS_A, Served, join, telemetry

MANIFEST = """
name = "{name}"
version = "{version}"
[[inputs]]
name = "x"
kind = "tensor"
shape = [2]
[[outputs]]
name = "y"
kind = "raw"
"""


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


def package(
    tmp_path: Path,
    name: str = "defects",
    version: str = "1",
    graph: bytes = b"graph",
    manifest: str = MANIFEST,
) -> bytes:
    """The archive of a package; its graph is no graph, which is nothing to the hub."""
    folder = tmp_path / f"{name}-{version}-{hashlib.sha256(graph + manifest.encode()).hexdigest()[:8]}"
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(manifest.format(name=name, version=version))
    (folder / "model.onnx").write_bytes(graph)
    sink = io.BytesIO()
    packages.pack(folder, sink)
    return sink.getvalue()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def at(name: str = "defects", version: str = "1") -> str:
    return f"/v1/models/{name}/versions/{version}"


async def push(
    hub: Served, body: bytes, name: str = "defects", version: str = "1", **headers: str
) -> httpx.Response:
    return await hub.client.put(at(name, version), content=body, headers=headers)


async def pushed(hub: Served, body: bytes, name: str = "defects", version: str = "1") -> dict[str, Any]:
    answer = await push(hub, body, name, version)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def aim(hub: Served, version: str, selector: str = "", name: str = "defects") -> dict[str, Any]:
    answer = await hub.client.put(f"/v1/targets/{name}", json={"version": version, "selector": selector})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def stored(hub: Served) -> list[tuple[Any, ...]]:
    """(state, pieces) of every blob."""
    pieces = "SELECT count(*) FROM blob_chunks c WHERE c.blob_id = b.blob_id"
    return await hub.rows(f"SELECT state, ({pieces}) FROM blobs b ORDER BY 1")


async def until_stored(hub: Served, *wanted: tuple[str, int]) -> None:
    """Wait until the blobs are these."""
    async with asyncio.timeout(10):
        while await stored(hub) != list(wanted):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def problem(answer: httpx.Response, status: int, kind: str) -> str:
    """The detail of a problem that is of this kind."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == f"/problems/{kind}"
    detail: str = answer.json()["detail"]
    return detail


# Push


async def test_a_package_comes_back_as_it_was_pushed(hub: Served, tmp_path: Path) -> None:
    """What was pushed is listed with its SHA-256 and size, and its archive is the same, byte for byte."""
    body = package(tmp_path, graph=bytes(range(256)) * 12_000)  # of three pieces and a bit
    told = await pushed(hub, body)
    assert (told["sha256"], told["size"]) == (sha256(body), len(body))
    assert told["manifest"] == MANIFEST.format(name="defects", version="1")
    assert (await hub.client.get(at())).json() == told
    (listed,) = (await hub.client.get("/v1/models")).json()["models"]
    assert listed == (await hub.client.get("/v1/models/defects")).json()
    del told["manifest"]
    assert (listed["name"], listed["versions"], listed["targets"]) == ("defects", [told], [])
    fetched = await hub.client.get(f"/v1/blobs/{sha256(body)}")
    assert fetched.content == body
    assert fetched.headers["content-type"] == "application/x-tar"
    assert await stored(hub) == [("complete", 3)]


async def test_a_version_never_changes(hub: Served, tmp_path: Path) -> None:
    """The same content again is 200 and stores nothing; other content is refused with what to do."""
    body = package(tmp_path)
    first = await push(hub, body)
    again = await push(hub, body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert again.headers["location"] == at()
    other = package(tmp_path, graph=b"another")
    detail = problem(await push(hub, other), 409, "version-taken")
    assert sha256(body) in detail
    assert "push it under the new one" in detail
    await blobs.sweep(hub.pool)
    assert await stored(hub) == [("complete", 1)]
    assert (await hub.client.get(at())).json() == first.json()


async def test_what_cannot_be_taken_is_refused_before_it_is_read(hub: Served, tmp_path: Path) -> None:
    """By a digest the hub knows beforehand that the version has other content."""
    await pushed(hub, package(tmp_path))
    digest = base64.b64encode(b"\1" * 32).decode()

    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(hub.url).port)
        writer.write(
            f"PUT {at()} HTTP/1.1\r\nhost: hub\r\ncontent-length: {1 << 30}\r\n"
            f"content-digest: sha-256=:{digest}:\r\n\r\n".encode()
        )
        assert b" 409 " in await reader.readline()  # and not a byte of the body was sent
        writer.close()


async def test_two_pushes_of_one_content_at_once_make_one(hub: Served, tmp_path: Path) -> None:
    """However they fall together, each is answered with the version, and the content is stored once."""
    body = package(tmp_path, graph=bytes(2_500_000))
    answers = await asyncio.gather(*(push(hub, body) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    await blobs.sweep(hub.pool)
    assert await stored(hub) == [("complete", 3)]


async def test_a_push_that_another_overtakes_is_stored_all_the_same(hub: Served, tmp_path: Path) -> None:
    """The same content that is committed in the very moment takes the place of what this push brought."""
    body = package(tmp_path)
    async with hub.pool.connection() as connection:
        draft = await blobs.begin(connection)
        await blobs.append(connection, draft, 0, body)
        assert await blobs.complete(connection, draft, sha256(body), len(body))
        pushing = asyncio.create_task(push(hub, body))
        await stores.until_one_waits(hub.pool)
    assert (await pushing).status_code == 201
    assert await blobs.sweep(hub.pool) == 1
    assert await stored(hub) == [("complete", 1)]


async def test_two_versions_may_have_one_content(hub: Served, tmp_path: Path) -> None:
    """An archive names its own version, so this takes two models pushed by hand; the content is kept once."""
    same = package(tmp_path)
    await pushed(hub, same)
    async with hub.pool.connection() as connection:
        await connection.execute(
            b"INSERT INTO models (name, version, sha256, manifest) SELECT 'copy', '1', sha256, '' FROM models"
        )
    assert (await hub.client.delete(at())).status_code == 200
    assert await blobs.sweep(hub.pool) == 0
    assert (await hub.client.get(f"/v1/blobs/{sha256(same)}")).content == same


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"name": "other"}, "its manifest says other@1, and the address defects@1"),
        ({"version": "2"}, "its manifest says defects@2"),
        ({"manifest": MANIFEST + "colour = 1"}, "unknown field `colour`"),
        ({"manifest": "no TOML"}, "not TOML"),
    ],
)
async def test_a_package_that_is_not_right_is_refused(
    hub: Served, tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    """A manifest that cannot be read, or is not of this address, is refused in its own words."""
    assert said in problem(await push(hub, package(tmp_path, **made)), 422, "bad-package")
    await blobs.sweep(hub.pool)
    assert await stored(hub) == []


async def test_what_is_no_archive_is_refused(hub: Served, tmp_path: Path) -> None:
    """Bytes that `backhaul models pack` would not have written, or that break off, or lack a part."""
    body = package(tmp_path)
    for bad, said in (
        (b"", "breaks off"),
        (b"PK\3\4" * 400, "no archive"),
        (body[:-600], "breaks off"),
        (body + b"more", "behind its end"),
        (body[:-1024], "breaks off"),
    ):
        assert said in problem(await push(hub, bad), 422, "bad-package")
    for left_out, said in (("model.toml", "there is no model.toml"), ("model.onnx", "names 'model.onnx'")):
        folder = tmp_path / f"without-{left_out}"
        folder.mkdir()
        for name in {"model.toml", "model.onnx"} - {left_out}:
            (folder / name).write_text(MANIFEST.format(name="defects", version="1"))
        sink = io.BytesIO()
        packages.pack(folder, sink)
        assert said in problem(await push(hub, sink.getvalue()), 422, "bad-package")
    await blobs.sweep(hub.pool)
    assert await stored(hub) == []


async def test_a_body_that_is_not_what_was_said_is_refused(hub: Served, tmp_path: Path) -> None:
    """A digest that does not fit, one that is none, an encoding, a size or a name that is not taken."""
    body = package(tmp_path)
    wrong = base64.b64encode(b"\1" * 32).decode()
    right = base64.b64encode(hashlib.sha256(body).digest()).decode()
    refused = await push(hub, body, **{"content-digest": f"sha-256=:{wrong}:"})
    assert "send it again" in problem(refused, 422, "bad-package")
    problem(await push(hub, body, **{"content-digest": "sha-256=nothing"}), 422, "invalid")
    problem(await push(hub, body, **{"content-encoding": "gzip"}), 415, "unsupported-content")
    problem(await push(hub, body, version="+"), 422, "invalid")
    good = await push(hub, body, **{"content-digest": f"md5=:AAAA:, sha-256=:{right}:"})
    assert good.status_code == 201


async def test_a_package_may_be_so_large(database: str, tmp_path: Path) -> None:
    """Beyond the limit a push is refused, be its size told beforehand or not."""
    body = package(tmp_path, graph=bytes(200_000))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    async with api_server.serving(database, context.Settings(max_model_bytes=100_000)) as hub:
        assert "100,000 bytes" in problem(await push(hub, body), 413, "too-large")
        answer = await hub.client.put(at(), content=pieces())
        problem(answer, 413, "too-large")
        await blobs.sweep(hub.pool)
        assert await stored(hub) == []


async def test_only_so_many_push_at_once(database: str, tmp_path: Path) -> None:
    """One push more than the limit is told to come back; the others are not disturbed."""
    body = package(tmp_path, graph=bytes(1_200_000))
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:1_100_000]
        began.set()
        await go_on.wait()
        yield body[1_100_000:]

    async with api_server.serving(database, context.Settings(max_pushes=1)) as hub:
        slowly = asyncio.create_task(hub.client.put(at(), content=slow()))
        await began.wait()
        await until_stored(hub, ("coming", 1))
        busy = await push(hub, body)
        problem(busy, 429, "busy")
        assert int(busy.headers["retry-after"]) >= 1
        go_on.set()
        assert (await slowly).status_code == 201


async def test_a_push_that_stands_still_makes_room(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has its turn and sends nothing more is told so, and the next may push."""
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.2)
    body = package(tmp_path)

    async with api_server.serving(database, context.Settings(max_pushes=1)) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(hub.url).port)
        writer.write(f"PUT {at()} HTTP/1.1\r\nhost: hub\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        writer.write(body[:700])
        assert b" 408 " in await reader.readline()
        writer.close()
        assert (await push(hub, body)).status_code == 201


async def test_a_push_that_breaks_off_leaves_nothing(hub: Served, tmp_path: Path) -> None:
    """A client that goes away in the middle has stored nothing, and may push again at once."""
    body = package(tmp_path, graph=bytes(3_000_000))
    halfway = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield body[:2_200_000]
        halfway.set()
        await asyncio.Event().wait()

    pushing = asyncio.create_task(hub.client.put(at(), content=half()))
    await halfway.wait()
    await until_stored(hub, ("coming", 2))
    pushing.cancel()
    await until_stored(hub, ("going", 2))
    await blobs.sweep(hub.pool)
    assert await stored(hub) == []
    assert (await hub.client.get(at())).status_code == 404
    await pushed(hub, body)


async def test_a_draft_that_nobody_goes_on_with_is_swept_away(hub: Served, tmp_path: Path) -> None:
    """What a hub that was killed left behind goes after its time, and what is still coming stays."""
    async with hub.pool.connection() as connection:
        old, young = await blobs.begin(connection), await blobs.begin(connection)
        for draft in (old, young):
            for number in range(3):
                await blobs.append(connection, draft, number, b"piece")
        await connection.execute(
            b"UPDATE blobs SET stored_at = now() - interval '2 hours' WHERE blob_id = %s", (old,)
        )
    assert await blobs.sweep(hub.pool) == 1
    assert await stored(hub) == [("coming", 3)]
    async with hub.pool.connection() as connection:
        with pytest.raises(blobs.GivenUp):
            await blobs.append(connection, old, 3, b"piece")
        with pytest.raises(blobs.GivenUp):
            await blobs.complete(connection, old, "ab" * 32, 15)


# Signatures


async def test_a_signed_package_is_shown_with_its_key(hub: Served, tmp_path: Path) -> None:
    """A signature is verified and told with its key; one that comes later takes the place of none."""
    body = package(tmp_path)
    unsigned = await pushed(hub, body)
    assert (unsigned["key"], unsigned["signature"]) == (None, None)
    signatures.generate(tmp_path / "key.pem")
    signed = signatures.sign((tmp_path / "key.pem").read_bytes(), "defects", "1", sha256(body))
    headers = {"backhaul-key": signed.key, "backhaul-signature": signed.signature}
    told = (await push(hub, body, **headers)).json()
    assert (told["key"], told["signature"]) == signed
    assert (await push(hub, body)).json() == told  # who signs nothing takes no signature away
    await aim(hub, "1")
    await join(hub.pool, telemetry=telemetry())
    (wanted,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
    assert (wanted["key"], wanted["signature"]) == signed


async def test_a_signature_that_is_not_of_the_package_is_refused(hub: Served, tmp_path: Path) -> None:
    """Of another version, by another key, half of it, or nonsense: nothing is stored."""
    body = package(tmp_path)
    key = signatures.generate(tmp_path / "key.pem")
    pem = (tmp_path / "key.pem").read_bytes()
    good = signatures.sign(pem, "defects", "1", sha256(body))
    other = signatures.sign(pem, "defects", "2", sha256(body))
    stranger = signatures.generate(tmp_path / "stranger.pem")
    for signed in (other, good._replace(key=stranger), good._replace(signature="x"), good._replace(key="x")):
        headers = {"backhaul-key": signed.key, "backhaul-signature": signed.signature}
        answer = await push(hub, body, **headers)
        problem(answer, 422, "bad-package")
        assert answer.json()["errors"][0]["where"] == "backhaul-signature"
    problem(await push(hub, body, **{"backhaul-key": key}), 422, "invalid")
    assert (await hub.client.get("/v1/models")).json() == {"models": []}


# Fetch


@contextlib.asynccontextmanager
async def slow_readers(hub: Served, address: str, count: int) -> AsyncIterator[None]:
    """Clients that ask for something, and read no more than the first line of it."""
    writers = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", httpx.URL(hub.url).port or 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writer.write(f"GET {address} HTTP/1.1\r\nhost: hub\r\n\r\n".encode())
        assert b" 200 " in await reader.readline()
        writers.append(writer)
    yield
    for writer in writers:
        writer.close()


async def fetched_in_turn(hub: Served, address: str) -> httpx.Response:
    """What is there, as soon as the hub has seen that another fetch has ended."""
    async with asyncio.timeout(10):
        while (answer := await hub.client.get(address)).status_code == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer


async def test_a_fetch_goes_on_where_it_broke_off(hub: Served, tmp_path: Path) -> None:
    """A range is answered with exactly its bytes, across the pieces that the store keeps."""
    body = package(tmp_path, graph=bytes(range(251)) * 12_000)
    await pushed(hub, body)
    address = f"/v1/blobs/{sha256(body)}"
    tag = f'"sha256:{sha256(body)}"'
    whole = len(body)
    for header, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={whole // 2}-", whole // 2, whole),
        ("bytes=1048570-1048580", 1048570, 1048581),
        ("bytes=1048576-2097151", 1 << 20, 2 << 20),
        ("bytes=-10", whole - 10, whole),
    ):
        answer = await hub.client.get(address, headers={"range": header, "if-range": tag})
        assert (answer.status_code, answer.content) == (206, body[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{whole}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["etag"] == tag


async def test_a_fetch_is_answered_as_the_standard_says(hub: Served, tmp_path: Path) -> None:
    """All of it for another's tag or several ranges, 304 for what is at hand, 416 behind the end."""
    body = package(tmp_path)
    await pushed(hub, body)
    address = f"/v1/blobs/{sha256(body)}"
    tag = f'"sha256:{sha256(body)}"'
    head = await hub.client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(body))
    assert (head.headers["etag"], head.headers["accept-ranges"]) == (tag, "bytes")
    for headers in ({"range": "bytes=5-", "if-range": '"sha256:other"'}, {"range": "bytes=0-1,4-5"}):
        answer = await hub.client.get(address, headers=headers)
        assert (answer.status_code, answer.content) == (200, body)
        assert "content-range" not in answer.headers
    known = await hub.client.get(address, headers={"if-none-match": tag})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    beyond = await hub.client.get(address, headers={"range": f"bytes={len(body)}-"})
    problem(beyond, 416, "range-not-satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(body)}"
    problem(await hub.client.get("/v1/blobs/" + "0" * 64), 404, "not-found")
    problem(await hub.client.get("/v1/blobs/nothing"), 422, "invalid")


async def test_a_slow_fetch_holds_no_connection(hub: Served, tmp_path: Path) -> None:
    """Many clients that read slowly leave the pool of connections to the others."""
    body = package(tmp_path, graph=bytes(12_000_000))
    await pushed(hub, body)
    async with slow_readers(hub, f"/v1/blobs/{sha256(body)}", 20), asyncio.timeout(5):
        assert (await hub.client.get("/v1/models")).status_code == 200


async def test_only_so_many_fetch_at_once(database: str, tmp_path: Path) -> None:
    """One fetch more than the limit is told to come back."""
    body = package(tmp_path, graph=bytes(12_000_000))
    async with api_server.serving(database, context.Settings(max_fetches=1)) as hub:
        await pushed(hub, body)
        address = f"/v1/blobs/{sha256(body)}"
        async with slow_readers(hub, address, 1):
            busy = await hub.client.get(address)
            problem(busy, 429, "busy")
            assert int(busy.headers["retry-after"]) >= 1
        assert (await fetched_in_turn(hub, address)).content == body


async def test_a_fetch_that_stands_still_makes_room(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has its turn and reads nothing, as over a link that died, does not keep the others from theirs."""
    monkeypatch.setattr(api_blobs, "PATIENCE_S", 0.2)
    body = package(tmp_path, graph=bytes(12_000_000))
    async with api_server.serving(database, context.Settings(max_fetches=1)) as hub:
        await pushed(hub, body)
        address = f"/v1/blobs/{sha256(body)}"
        async with slow_readers(hub, address, 1):
            assert (await hub.client.get(address)).status_code == 429
            assert (await fetched_in_turn(hub, address)).content == body


async def test_what_goes_while_it_is_sent_is_never_taken_for_whole(hub: Served, tmp_path: Path) -> None:
    """A content that is removed under a client ends its connection, short of the length that was told."""
    body = package(tmp_path, graph=bytes(25_000_000))
    await pushed(hub, body)
    async with hub.client.stream("GET", f"/v1/blobs/{sha256(body)}") as answer:
        stream = answer.aiter_raw()
        await anext(stream)
        assert (await hub.client.delete(at())).status_code == 200
        assert await blobs.sweep(hub.pool) == 1
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in stream:
                pass


# Targets, and what an agent is to serve


async def test_targets_are_put_and_withdrawn(hub: Served, tmp_path: Path) -> None:
    """A target goes by model and selector, however that is written; again it changes nothing."""
    for version in ("1", "2"):
        await pushed(hub, package(tmp_path, version=version), version=version)
    first = await aim(hub, "1", "gpu=h100, site=lyon")
    assert first["selector"] == "gpu=h100,site=lyon"
    assert await aim(hub, "1", "site=lyon,gpu=h100") == first
    second = await aim(hub, "2", "site=lyon,gpu=h100")
    assert (second["version"], second["selector"]) == ("2", first["selector"])
    assert second["changed_at"] > first["changed_at"]
    everywhere = await aim(hub, "1")
    assert (await hub.client.get("/v1/targets")).json()["targets"] == [everywhere, second]
    assert (await hub.client.get("/v1/targets", params={"model": "other"})).json()["targets"] == []
    assert (await hub.client.get("/v1/models/defects")).json()["targets"] == [everywhere, second]
    left = await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon,gpu=h100"})
    assert left.json()["targets"] == [everywhere]
    gone = await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon,gpu=h100"})
    assert "no target for gpu=h100,site=lyon" in problem(gone, 404, "not-found")


async def test_targets_that_make_no_sense_are_refused(hub: Served, tmp_path: Path) -> None:
    """A version that nobody pushed, a selector that is none, a word that is not known."""
    await pushed(hub, package(tmp_path))
    address = "/v1/targets/defects"
    unknown = await hub.client.put(address, json={"version": "9"})
    assert "no defects@9 was pushed" in problem(unknown, 404, "not-found")
    problem(await hub.client.put("/v1/targets/other", json={"version": "1"}), 404, "not-found")
    problem(await hub.client.put(address, json={"version": "1", "selector": "lyon"}), 422, "invalid")
    problem(await hub.client.put(address, json={"version": "1", "where": "x"}), 422, "invalid")
    problem(await hub.client.delete(address, params={"selector": "lyon"}), 422, "invalid")
    assert (await hub.client.get("/v1/targets")).json() == {"targets": []}


async def test_an_agent_is_told_by_its_labels_what_to_serve(hub: Served, tmp_path: Path) -> None:
    """The most specific target that fits its site, its name and the labels of its heartbeat."""
    bodies = {version: package(tmp_path, version=version) for version in ("1", "2", "3")}
    for version, body in bodies.items():
        await pushed(hub, body, version=version)
    await pushed(hub, package(tmp_path, name="ocr"), name="ocr")
    await aim(hub, "1")
    await aim(hub, "2", "gpu=h100")
    await aim(hub, "3", "site=york,gpu=h100")
    await aim(hub, "1", "agent=press-b", name="ocr")
    await join(hub.pool, telemetry=telemetry(labels={"gpu": "h100"}))
    await join(hub.pool, topics.Agent("york", "press-b"), telemetry=telemetry(labels={"gpu": "h100"}))
    await join(hub.pool, topics.Agent("york", "press-c"), telemetry=telemetry())

    async def wanted(site: str, name: str) -> dict[str, str]:
        answer = await hub.client.get(f"/v1/agents/{site}/{name}/models")
        return {one["model"]: one["version"] for one in answer.json()["models"]}

    assert await wanted("lyon", "press-a") == {"defects": "2"}
    assert await wanted("york", "press-b") == {"defects": "3", "ocr": "1"}
    assert await wanted("york", "press-c") == {"defects": "1"}
    (told,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
    assert told == {
        "model": "defects",
        "version": "2",
        "sha256": sha256(bodies["2"]),
        "size": len(bodies["2"]),
        "key": None,
        "signature": None,
        "selector": "gpu=h100",
    }


async def test_what_has_not_changed_is_not_sent_again(hub: Served, tmp_path: Path) -> None:
    """If-None-Match is answered 304 until something that concerns this agent changes."""
    await pushed(hub, package(tmp_path))
    await pushed(hub, package(tmp_path, version="2"), version="2")
    await join(hub.pool, telemetry=telemetry())
    address = "/v1/agents/lyon/press-a/models"
    first = await hub.client.get(address)
    assert first.json() == {"models": []}
    await aim(hub, "1", "site=york")
    same = await hub.client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    await aim(hub, "1")
    changed = await hub.client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


async def test_an_agent_whose_labels_are_not_known_is_told_to_come_back(hub: Served, tmp_path: Path) -> None:
    """Before its first heartbeat it might be told what is not for it, so it is told nothing."""
    await pushed(hub, package(tmp_path))
    await aim(hub, "1")
    address = "/v1/agents/lyon/press-a/models"
    for _ in range(2):
        early = await hub.client.get(address)
        assert "heartbeat" in problem(early, 404, "not-found")
        assert int(early.headers["retry-after"]) >= 1
        await join(hub.pool)
    await join(hub.pool, telemetry=telemetry())
    assert (await hub.client.get(address)).status_code == 200


async def test_labels_heard_lately_go_before_those_stored(database: str, tmp_path: Path) -> None:
    """What this hub heard of the agent is fresher than what the store was told."""

    class Member:
        epoch = 1
        heard = 0.0
        telemetry = api_server.telemetry(labels={"gpu": "a10"})

    class Live:
        def find(self, agent: topics.Agent) -> Member | None:
            return Member() if agent == PRESS_A else None

    async with api_server.serving(database, live=Live()) as hub:
        await pushed(hub, package(tmp_path))
        await aim(hub, "1", "gpu=a10")
        await join(hub.pool, telemetry=telemetry(labels={"gpu": "h100"}))
        (told,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
        assert told["selector"] == "gpu=a10"


# Removal


async def test_a_version_that_is_to_be_served_stays(hub: Served, tmp_path: Path) -> None:
    """A target holds its version; withdrawn, the version can go, and its content is swept away."""
    body = package(tmp_path)
    await pushed(hub, body)
    await aim(hub, "1", "site=lyon")
    detail = problem(await hub.client.delete(at()), 409, "in-use")
    assert "site=lyon" in detail
    await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon"})
    gone = await hub.client.delete(at())
    assert (gone.status_code, gone.json()["sha256"]) == (200, sha256(body))
    problem(await hub.client.delete(at()), 404, "not-found")
    problem(await hub.client.get("/v1/models/defects"), 404, "not-found")
    assert await blobs.sweep(hub.pool) == 1
    assert await stored(hub) == []
    await pushed(hub, body)  # and it may come again


async def test_a_sweep_spares_what_is_just_coming_into_use(hub: Served, tmp_path: Path) -> None:
    """A push of a content that the sweep is about to take away either keeps it or brings its own."""
    body = package(tmp_path)
    for _ in range(10):
        await push(hub, body)
        await hub.client.delete(at())
        answer, _ = await asyncio.gather(push(hub, body), blobs.sweep(hub.pool))
        assert answer.status_code == 201
        fetched = await hub.client.get(f"/v1/blobs/{sha256(body)}")
        assert fetched.content == body
        await hub.client.delete(at())
