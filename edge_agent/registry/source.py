"""The hub's registry over HTTP: what is wanted, and packages, a part at a time.

All calls block, each wait within a limit, and `interrupt` from another thread ends them.
HTTP: RFC 9110; a fetch that broke off goes on by its sections 13.1.5 (If-Range) and 14 (Range).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from edge_agent.registry import wanted
from shared import topics

CONNECT_S: Final = 5.0
READ_S: Final = 30.0
"""How long the hub may say nothing."""
MAX_ANSWER: Final = 4 << 20
"""Bytes of what is wanted."""
MAX_PROBLEM: Final = 16 << 10
"""Bytes of what it says of an error."""
PIECE: Final = 64 << 10

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})")


class Away(Exception):
    """The hub cannot be asked, or does not answer as it should: later perhaps."""

    def __init__(self, what: str, retry_after_s: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class Answer(NamedTuple):
    """What the hub wants, and the tag of its saying so."""

    desired: wanted.Desired
    etag: str | None


class _Problem(msgspec.Struct):
    detail: str


class Source:
    """A hub's registry at `url`; `ca_file`: PEM of who signed its certificate."""

    def __init__(self, url: str, ca_file: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._base = parts.path.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._open: set[socket.socket] = set()
        self._ended = False
        self._lock = threading.Lock()

    def desired(self, agent: topics.Agent, etag: str | None) -> Answer | None:
        """What the agent is to serve; None: still what had this tag. Raises Away."""
        path = f"/v1/agents/{quote(agent.site)}/{quote(agent.name)}/models"
        with self._get(path, {} if etag is None else {"If-None-Match": etag}) as answer:
            if answer.status == http.HTTPStatus.NOT_MODIFIED:
                return None
            if answer.status != http.HTTPStatus.OK:
                raise _unexpected(answer)
            with _told():
                body = answer.read(MAX_ANSWER)
            try:
                return Answer(wanted.parse(body), answer.getheader("etag"))
            except wanted.BadAnswer as error:
                raise Away(f"its answer cannot be understood: {error}") from None

    def fetch(self, one: wanted.Wanted, into: Path, on_progress: Callable[[int], None]) -> bool:
        """Have the archive in `into`, beginning with what is there of it; whether something was.

        `on_progress` is told the bytes that are there, and may raise to end it. Raises Away, and OSError
        where the disk does.
        """
        begin = into.stat().st_size if into.exists() else 0
        if begin > one.size:
            into.unlink()
            begin = 0
        on_progress(begin)
        if begin == one.size and begin:
            return True
        headers = {"Range": f"bytes={begin}-", "If-Range": f'"sha256:{one.sha256}"'} if begin else {}
        with self._get(f"/v1/blobs/{one.sha256}", headers) as answer:
            if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
                raise _unexpected(answer)
            if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
                part = _CONTENT_RANGE.fullmatch(answer.getheader("content-range", ""))
                if part is None or (int(part[1]), int(part[2])) != (begin, one.size):
                    raise Away(f"it sent another part than the one from byte {begin:,} on")
            else:
                begin = 0
            with into.open("r+b" if begin else "wb") as file:
                file.seek(begin)
                _receive(answer, file.write, one.size, begin, on_progress)
                file.flush()
                os.fsync(file.fileno())
        return begin > 0

    def interrupt(self) -> None:
        """End every call that goes on, and any that comes."""
        with self._lock:
            self._ended = True
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _get(self, path: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, to be read within; what fails on the way is Away."""
        with contextlib.closing(self._connection()) as link:
            with _told():
                link.connect()
            held = link.sock  # which the connection forgets when its answer is the last
            with self._held(held):
                held.settimeout(READ_S)
                with _told():
                    link.request("GET", self._base + path, headers={"Accept-Encoding": "identity", **headers})
                    answer = link.getresponse()
                yield answer

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=self._tls)

    @contextlib.contextmanager
    def _held(self, one: socket.socket) -> Iterator[None]:
        """Within reach of `interrupt`."""
        with self._lock:
            if self._ended:
                raise Away("the agent stops")
            self._open.add(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(one)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the network and the protocol raise, as Away."""
    try:
        yield
    except http.client.HTTPException as error:
        raise Away(f"it does not speak HTTP as it should: {error!r}") from None
    except OSError as error:
        raise Away(f"it cannot be reached: {error}") from None


def _receive(
    answer: http.client.HTTPResponse,
    write: Callable[[bytes], int],
    size: int,
    have: int,
    on_progress: Callable[[int], None],
) -> None:
    """Write what comes until there are `size` bytes. Raises Away."""
    while have < size:
        try:
            data = answer.read1(min(PIECE, size - have))
        except (http.client.HTTPException, OSError) as error:
            raise Away(f"it broke off after {have:,} of {size:,} bytes: {error}") from None
        if not data:
            raise Away(f"it broke off after {have:,} of {size:,} bytes")
        write(data)
        have += len(data)
        on_progress(have)


def _unexpected(answer: http.client.HTTPResponse) -> Away:
    """An answer that is none, as Away; RFC 9457 has what its body says."""
    after = answer.getheader("retry-after", "")
    said = ""
    with contextlib.suppress(OSError, http.client.HTTPException, msgspec.DecodeError):
        said = f": {msgspec.json.decode(answer.read(MAX_PROBLEM), type=_Problem).detail}"
    return Away(f"it answered {answer.status}{said}", float(after) if after.isdecimal() else None)
