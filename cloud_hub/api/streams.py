"""Answers that are streamed, and hold what they need for exactly as long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

SLICE = 256 << 10
"""Bytes handed to the server at a time, so that a slow client is felt before much is buffered."""


class Stream(StreamingResponse):
    """The chunks that `opened` gives. What it holds is given back when the client is gone, read all or not.

    An error before the first chunk is answered as any other; nothing has been sent by then. A client that
    takes none of a chunk for `patience_s` is as good as gone; None: there is time.
    """

    def __init__(
        self,
        opened: AbstractAsyncContextManager[AsyncIterator[bytes]],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(iter(()), status_code=status_code, media_type=media_type, headers=headers)
        self._opened = opened
        self._patience_s = patience_s

    async def stream_response(self, send: Send) -> None:
        async def impatiently(message: Message) -> None:
            async with asyncio.timeout(self._patience_s):
                await send(message)

        async with self._opened as chunks:
            self.body_iterator = chunks
            await super().stream_response(impatiently)
