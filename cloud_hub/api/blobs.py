"""Contents over REST: a package's archive, whole or in parts, so that a fetch goes on where it broke off."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request, Response

from cloud_hub.api import context, model_view, problems, ranges, streams
from cloud_hub.store import blobs, pool
from shared import packages

router = APIRouter(prefix="/v1/blobs", tags=["models"])

PATIENCE_S: Final = 120.0
"""A fetch that takes none of its bytes for so long makes room for another."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_HEADERS: Final[dict[str, Any]] = {
    "ETag": {"description": '`"sha256:…"`, strong: the content\'s SHA-256', "schema": {"type": "string"}},
    "Accept-Ranges": {"description": "`bytes`", "schema": {"type": "string"}},
}
_BINARY: Final = {packages.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_ANSWERS: Final[problems.Responses] = {
    200: {"description": "The archive", "content": _BINARY, "headers": _HEADERS},
    206: {"description": "The part of it that `Range` asks for", "content": _BINARY, "headers": _HEADERS},
    304: {"description": "`If-None-Match` names it"},
}
_SIZE: Final[problems.Responses] = {
    200: {"description": "`Content-Length` has its bytes", "headers": _HEADERS}
}

Sha256 = Annotated[str, Path(description="SHA-256 of the content", examples=[model_view.SHA256])]


class Gone(ConnectionError):
    """The content was removed while it was sent: the connection ends, so that nobody takes a part for all."""


@router.get(
    "/{sha256}",
    summary="A package's archive, or a part of it",
    response_class=Response,
    responses=_ANSWERS
    | problems.documented(problems.NOT_FOUND, problems.INVALID, problems.RANGE, problems.BUSY),
)
async def get(
    hub: context.Dependency,
    request: Request,
    sha256: Sha256,
    range_: Annotated[
        str | None,
        Header(alias="range", description="One range, `bytes=FIRST-LAST`; several are answered with all"),
    ] = None,
    if_range: Annotated[
        str | None, Header(description="The ETag of the part at hand: if it is another's, all is sent")
    ] = None,
    if_none_match: Annotated[str | None, Header(description="ETags of what is at hand")] = None,
) -> Response:
    """The bytes with this SHA-256, which never change. What broke off goes on with `Range: bytes=N-`."""
    blob, headers = await _find(hub, sha256)
    if ranges.is_known(if_none_match, headers["etag"]):
        return Response(status_code=304, headers=headers)
    try:
        part = ranges.asked(range_, blob.size) if ranges.is_same(if_range, headers["etag"]) else None
    except ranges.Unsatisfiable:
        raise problems.Problem(
            problems.RANGE,
            f"the content has {blob.size:,} bytes and {range_} begins behind them",
            where="range",
            headers={"content-range": f"bytes */{blob.size}"},
        ) from None
    span = part or ranges.Span(0, blob.size)
    headers["content-length"] = str(span.size)
    if part:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{blob.size}"
    return streams.Stream(
        _sent(hub, blob, span),
        status_code=206 if part else 200,
        media_type=packages.CONTENT_TYPE,
        headers=headers,
        patience_s=PATIENCE_S,
    )


@router.head(
    "/{sha256}",
    summary="How large a package's archive is",
    response_class=Response,
    responses=_SIZE | problems.documented(problems.NOT_FOUND, problems.INVALID),
)
async def head(hub: context.Dependency, sha256: Sha256) -> Response:
    """The same headers without the bytes."""
    blob, headers = await _find(hub, sha256)
    return Response(headers=headers | {"content-length": str(blob.size)}, media_type=packages.CONTENT_TYPE)


async def _find(hub: context.Hub, sha256: str) -> tuple[blobs.Blob, dict[str, str]]:
    """The content, and the headers that any answer about it has."""
    if not _SHA256.fullmatch(sha256):
        raise problems.Problem(
            problems.INVALID, f"{sha256!r} is no SHA-256: 64 hexadecimal digits, small ones", where="sha256"
        )
    async with pool.statement(hub.database) as connection:
        blob = await blobs.find(connection, sha256)
    if blob is None:
        raise problems.Problem(
            problems.NOT_FOUND, f"no package with SHA-256 {sha256} is here; /v1/models has those that are"
        )
    return blob, {
        "etag": f'"sha256:{sha256}"',
        "accept-ranges": "bytes",
        "cache-control": "public, max-age=31536000, immutable",
    }


@asynccontextmanager
async def _sent(hub: context.Hub, blob: blobs.Blob, span: ranges.Span) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a span. No connection to PostgreSQL is held while the client takes its time."""
    with hub.fetches.enter():
        async with aclosing(_slices(hub, blob, span)) as slices:
            yield slices


async def _slices(hub: context.Hub, blob: blobs.Blob, span: ranges.Span) -> AsyncGenerator[bytes]:
    at = span.start
    while at < span.stop:
        number, begin = divmod(at, blobs.CHUNK_BYTES)
        async with pool.statement(hub.database) as connection:
            chunk = await blobs.chunk(connection, blob.blob_id, number)
        if chunk is None:
            raise Gone(f"blob {blob.blob_id} was removed while it was sent")
        end = min(len(chunk), begin + span.stop - at)
        for start in range(begin, end, streams.SLICE):
            yield chunk[start : min(end, start + streams.SLICE)]
        at += end - begin
