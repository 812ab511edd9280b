"""A hub's registry that is played: it says what an agent is to serve and try, and has the packages."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from demo.servers import ports
from edge_agent.registry import wanted
from shared import packages
from shared.rollouts import trials


class Registry:
    """Answers `/v1/agents/{site}/{name}/models` and `/v1/blobs/{sha256}`, as long as it is open."""

    def __init__(self) -> None:
        self.port = ports.free()
        self._blobs: dict[str, bytes] = {}
        self._told = wanted.Desired(())
        self._number = 0
        self.away = False
        """True: it hangs up on whoever asks."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def push(self, folder: Path, version: str, model: str = "brightness") -> wanted.Wanted:
        """Have a package to be fetched."""
        sink = io.BytesIO()
        packed = packages.pack(folder, sink)
        self._blobs[packed.sha256] = sink.getvalue()
        return wanted.Wanted(model=model, version=version, sha256=packed.sha256, size=packed.size)

    def want(self, *models: wanted.Wanted, tries: trials.Trial | None = None) -> None:
        """Have the agent serve these; `tries`: a trial that it takes part in."""
        self._told = wanted.Desired(models, () if tries is None else (tries,))
        self._number += 1

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Registry]:
        """Answer within the block."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            etag = f'"{self._number}"'
            if self.away:
                pass
            elif path.startswith("/v1/blobs/"):
                self._say(writer, 200, self._blobs[path.rpartition("/")[2]])
            elif f"if-none-match: {etag}" in head.lower():
                self._say(writer, 304, b"", ETag=etag)
            else:
                self._say(writer, 200, msgspec.json.encode(self._told), ETag=etag)
            await writer.drain()
        writer.close()

    def _say(self, writer: asyncio.StreamWriter, status: int, body: bytes, **headers: Any) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
