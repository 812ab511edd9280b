"""A model that another server runs: the Open Inference Protocol v2 over HTTP, behind the port of a runtime.

Connections are kept and used again, each by one thread at a time. One that has broken while nobody used it
is replaced at once. While the server is away, or has no room, it is asked again; all in all a run takes no
longer than the manifest's `timeout_ms`.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from edge_agent import models, runtime, states
from edge_agent.oip import messages, tensors
from shared import manifests

IDLE: Final = 8
"""Connections kept for the next runs, at most."""
AGAIN_S: Final = 0.2
"""Between two tries while the server is away."""
READY_S: Final = 2.0
"""How long a server may take to be ready when its model is loaded, or `timeout_ms` if that is less: the agent
has others to load, and comes again."""
MAX_RESPONSE: Final = 256 << 20
"""Bytes of a response."""
_PIECE: Final = 1 << 20
_LATER: Final = (429, 502, 503, 504)
"""Statuses that say nothing against the request."""

_T = TypeVar("_T")


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _Server(msgspec.Struct):
    name: str = "a server"
    version: str = ""


class _Error(msgspec.Struct):
    error: str


class _Answer(NamedTuple):
    status: int
    header: int | None
    body: bytes


class _Node(NamedTuple):
    """A tensor as `runtime.check` wants it described."""

    name: str
    type: str
    shape: list[int | None]


class RemoteRuntime:
    """A model on another server. Raises Unavailable if that is not ready in time, and BadGraph if it is not
    what the manifest says."""

    def __init__(self, model: models.Model) -> None:
        assert isinstance(model.manifest.runtime, manifests.Remote)
        self._spec = spec = model.manifest.runtime
        self._timeout_s = spec.timeout_ms / 1000
        self._pool = _Pool(spec.url)
        version = "" if spec.version is None else f"/versions/{quote(spec.version, safe='')}"
        self._path = f"/v2/models/{quote(spec.model or model.name, safe='')}{version}"
        self.wanted = self.provider = "oip"
        self.reason: str | None = None
        ready = _Deadline(min(self._timeout_s, READY_S))
        deadline = _Deadline(self._timeout_s)
        try:
            _persistently(lambda: self._ready(ready), ready)
            server: _Server = self._told("/v2", _Server, deadline)
            self.name = f"{server.name} {server.version}".strip() + f" at {spec.url}"
            metadata: _Metadata = self._told(self._path, _Metadata, deadline)
            takes = [_node(one) for one in metadata.inputs]
            nodes = [_node(one) for one in metadata.outputs]
            self._fixed_batch = runtime.check(model, takes, nodes)
            self.states = runtime.states_of(model, takes, nodes)
            self.outputs = runtime.outputs_of(model, nodes)
        except BaseException:
            self._pool.close()
            raise
        self._names = [one.name for one in self.outputs]

    def run(self, batch: runtime.Batch) -> Sequence[runtime.Array]:
        return runtime.in_batches(self._run, batch, self._fixed_batch, self._names)

    def trim(self, batch: runtime.Batch) -> None:
        """Nothing: what runs it is elsewhere."""

    def close(self) -> None:
        self._pool.close()

    def _run(self, batch: runtime.Batch) -> Sequence[runtime.Array]:
        binary = self._spec.binary
        wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in self._names]
        there = states.there(self.states, batch)
        inputs = [tensors.Tensor(name, np.ascontiguousarray(array)) for name, array in there.items()]
        try:
            body = messages.write({"outputs": wanted}, {"inputs": inputs}, binary=binary)
        except tensors.NotInJson as error:
            raise runtime.RunFailed(f"{error}; set runtime.binary = true") from None
        deadline = _Deadline(self._timeout_s)
        answer = _persistently(lambda: self._answer("POST", f"{self._path}/infer", body, deadline), deadline)
        try:
            given = {one.name: one.array for one in messages.response(answer.body, answer.header)}
        except messages.BadMessage as error:
            raise runtime.RunFailed(f"{self._spec.url} gave no response of the protocol: {error}") from None
        missing = [name for name in self._names if name not in given]
        if missing:
            raise runtime.RunFailed(f"{self._spec.url} gave no output {', '.join(missing)}")
        return states.back(self.states, self._names, [given[name] for name in self._names])

    def _ready(self, deadline: _Deadline) -> None:
        answer = self._pool.ask("GET", f"{self._path}/ready", None, deadline)
        if answer.status != 200:
            raise runtime.Unavailable(f"{self._spec.url}{self._path} is not ready ({answer.status})")

    def _told(self, path: str, kind: type[Any], deadline: _Deadline) -> Any:
        """What the server says of itself or of the model."""
        try:
            return msgspec.json.decode(self._answer("GET", path, None, deadline).body, type=kind)
        except msgspec.DecodeError as error:
            raise runtime.BadGraph(f"{self._spec.url}{path} is not as the protocol has it: {error}") from None
        except runtime.Unavailable:
            raise
        except runtime.RunFailed as error:
            raise runtime.BadGraph(str(error)) from None

    def _answer(self, method: str, path: str, body: messages.Body | None, deadline: _Deadline) -> _Answer:
        """An answer of status 200. Raises Unavailable where asking again may help, else RunFailed."""
        answer = self._pool.ask(method, path, body, deadline)
        if answer.status == 200:
            return answer
        try:
            said = msgspec.json.decode(answer.body, type=_Error).error
        except msgspec.DecodeError:
            said = answer.body[:200].decode("utf-8", "replace") or "no reason given"
        kind = runtime.Unavailable if answer.status in _LATER else runtime.RunFailed
        raise kind(f"{self._spec.url}{path} answered {answer.status}: {said}")


class _Deadline:
    """When something must have come to its end."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._at - time.monotonic())


class _Pool:
    """Connections to one server."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._make: Callable[[float], http.client.HTTPConnection] = lambda timeout: kind(
            host, port, timeout=timeout
        )
        self._prefix = parts.path.rstrip("/")
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def ask(self, method: str, path: str, body: messages.Body | None, deadline: _Deadline) -> _Answer:
        """What the server answers before the deadline. Raises Unavailable or RunFailed."""
        connection = self._take()
        if connection is not None:
            with contextlib.suppress(ConnectionError):  # it was closed while nobody used it
                return self._exchange(connection, method, path, body, deadline)
        try:
            return self._exchange(self._connect(deadline), method, path, body, deadline)
        except ConnectionError as error:
            why = error or type(error).__name__
            raise runtime.Unavailable(f"{self._url}: the connection broke: {why}") from None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()

    def _take(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, deadline: _Deadline) -> http.client.HTTPConnection:
        connection = self._make(max(deadline.left_s, 0.001))
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise runtime.Unavailable(f"{self._url} cannot be reached: {error}") from None
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: messages.Body | None,
        deadline: _Deadline,
    ) -> _Answer:
        """Ask on this connection; it is kept if it may be used again, and closed if anything went wrong."""
        keep = False
        try:
            headers = {} if body is None else {"Content-Type": body.content_type, **body.headers}
            _limit(connection, deadline)
            connection.request(method, self._prefix + path, None if body is None else body.bytes, headers)
            _limit(connection, deadline)
            response = connection.getresponse()
            read = self._read(connection, response, deadline)
            header = response.getheader(messages.HEADER_LENGTH)
            keep = not response.will_close
            return _Answer(response.status, None if header is None else int(header), read)
        except TimeoutError:
            raise runtime.Unavailable(f"{self._url} did not answer in time (runtime.timeout_ms)") from None
        except ConnectionError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise runtime.RunFailed(f"{self._url}: {type(error).__name__}: {error}") from None
        finally:
            if keep:
                self._give_back(connection)
            else:
                connection.close()

    def _read(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: _Deadline
    ) -> bytes:
        read = bytearray()
        while True:
            _limit(connection, deadline)
            piece = response.read1(_PIECE)
            if not piece:
                break
            read += piece
            if len(read) > MAX_RESPONSE:
                raise runtime.RunFailed(f"{self._url} gave more than {MAX_RESPONSE:,} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # read to its end: the connection may be asked again
        return bytes(read)


def _persistently(ask: Callable[[], _T], deadline: _Deadline) -> _T:
    """Ask until there is an answer, or until the deadline while the server is away."""
    while True:
        try:
            return ask()
        except runtime.Unavailable:
            if deadline.left_s <= AGAIN_S:
                raise
        time.sleep(AGAIN_S)


def _limit(connection: http.client.HTTPConnection, deadline: _Deadline) -> None:
    """What is waited for next ends at the deadline."""
    left_s = deadline.left_s
    if not left_s:
        raise TimeoutError
    if connection.sock is not None:
        connection.sock.settimeout(left_s)


def _node(told: _Tensor) -> _Node:
    dtype = tensors.DTYPES.get(told.datatype)
    kind = told.datatype if dtype is None else runtime.type_of(dtype)
    return _Node(told.name, kind, [None if size < 0 else size for size in told.shape])
