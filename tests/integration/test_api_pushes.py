"""Models over REST: pushed, checked, signed, and what broke off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_hub.api import context, uploads
from cloud_hub.store import blobs
from shared import packages, signatures
from tests.integration import api_server, stores
from tests.integration.api_server import Served, join, telemetry
from tests.integration.shipped import (
    MANIFEST,
    aim,
    at,
    package,
    problem,
    push,
    pushed,
    sha256,
    stored,
    until_stored,
)


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


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
