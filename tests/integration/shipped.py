"""Model packages on their way to a served hub, for tests of what it does with them."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import httpx

from shared import packages
from tests.integration.api_server import Served

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
