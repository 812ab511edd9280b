"""Reads the bodies of requests, no more of them at a time than the hub may hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from cloud_hub.api import problems

RETRY_S = 1.0


class Bodies:
    """A budget of bytes that all bodies being read or worked on share."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self.held = 0
        """Bytes of the bodies that are here now."""

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body of `request`, which counts against the budget until the block is left.

        Raises Problem: TOO_LARGE beyond `limit` bytes, BUSY beyond the budget, UNSUPPORTED if it is encoded.
        """
        if encoding := request.headers.get("content-encoding"):
            raise problems.Problem(
                problems.UNSUPPORTED,
                f"the body comes in content encoding {encoding!r}; send it as it is",
                where="content-encoding",
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                self.held += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if self.held > self._budget and self.held > size:  # a lone body is within its own limit
                    raise problems.Problem(
                        problems.BUSY,
                        f"bodies of {self._budget:,} bytes are being taken at this moment; try again",
                        retry_after_s=RETRY_S,
                    )
                chunks.append(chunk)
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            self.held -= size


def _too_large(limit: int) -> problems.Problem:
    return problems.Problem(
        problems.TOO_LARGE, f"the body has more than the {limit:,} bytes that are taken here"
    )
