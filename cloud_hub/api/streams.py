"""Answers that are streamed, and hold what they need for exactly as long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi.responses import StreamingResponse
from starlette.types import Send

SLICE = 256 << 10
"""Bytes handed to the server at a time, so that a slow client is felt before much is buffered."""


class Stream(StreamingResponse):
    """The chunks that `opened` gives. What it holds is given back when the client is gone, read all or not.

    An error before the first chunk is answered as any other; nothing has been sent by then.
    """

    def __init__(
        self,
        opened: AbstractAsyncContextManager[AsyncIterator[bytes]],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(iter(()), media_type=media_type, headers=headers)
        self._opened = opened

    async def stream_response(self, send: Send) -> None:
        async with self._opened as chunks:
            self.body_iterator = chunks
            await super().stream_response(send)
