"""A small server of the Open Inference Protocol v2 that shares no code with ours: what a stranger's would do.

After the protocol's text (inference_rest.md) and Triton's extension for binary tensors, on the standard
library's server. It can be told to misbehave.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TYPES = {
    "BOOL": "?",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}


@dataclass
class Model:
    """What is served: `inputs` and `outputs` by name, each with its datatype and shape."""

    inputs: Mapping[str, tuple[str, list[int]]]
    outputs: Mapping[str, tuple[str, list[int]]]
    function: Callable[[Mapping[str, Array]], Sequence[Array]]
    ready: bool = True


@dataclass
class Server:
    """Serves models until closed, and counts what it is asked."""

    models: dict[str, Model]
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    """Methods and paths."""
    open_s: float | None = None
    """Close a connection that was idle so long."""
    misbehave: Callable[[Any], bool] | None = None
    """Called with the handler before each request of inference; True if it has answered, in its way."""
    port: int = 0
    sockets: set[socket.socket] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        for one in list(self.sockets):
            with contextlib.suppress(OSError):  # its client has left
                one.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = server.open_s
        disable_nagle_algorithm = True

        def setup(self) -> None:
            server.connections += 1
            server.sockets.add(self.request)
            super().setup()

        def finish(self) -> None:
            super().finish()
            server.sockets.discard(self.request)

        def do_GET(self) -> None:
            server.requests.append(f"GET {self.path}")
            words = self.path.strip("/").split("/")
            if words == ["v2"]:
                return self.say(200, {"name": "stranger", "version": "7", "extensions": []})
            model = server.models.get(words[2]) if words[:2] == ["v2", "models"] and len(words) > 2 else None
            if model is None:
                return self.say(404, {"error": f"nothing is at {self.path}"})
            if words[-1] == "ready":
                return self.say(200 if model.ready else 400, {})
            return self.say(
                200,
                {
                    "name": words[2],
                    "versions": ["1"],
                    "platform": "numpy",
                    "inputs": _told(model.inputs),
                    "outputs": _told(model.outputs),
                },
            )

        def do_POST(self) -> None:
            server.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if server.misbehave is not None and server.misbehave(self):
                return None
            size = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            asked, rest = json.loads(body[:size]), body[size:]
            model = server.models[self.path.split("/")[3]]
            try:
                answer = self.infer(model, asked, rest)
            except Exception as error:  # noqa: BLE001 - as a server does: the client hears what went wrong
                return self.say(400, {"error": f"{type(error).__name__}: {error}"})
            return self.say_tensors(model, asked, answer)

        def infer(self, model: Model, asked: Any, rest: bytes) -> Sequence[Array]:
            batch: dict[str, Array] = {}
            for tensor in asked["inputs"]:
                datatype, shape = model.inputs[tensor["name"]]
                if tensor["datatype"] != datatype or not _fits(tensor["shape"], shape):
                    raise ValueError(f"{tensor['name']} must be {datatype} {shape}")
                binary = tensor.get("parameters", {}).get("binary_data_size")
                if binary is None:
                    flat = np.array(tensor["data"], TYPES[datatype])
                else:
                    flat, rest = np.frombuffer(rest[:binary], TYPES[datatype]), rest[binary:]
                batch[tensor["name"]] = flat.reshape(tensor["shape"])
            return model.function(batch)

        def say_tensors(self, model: Model, asked: Any, answer: Sequence[Array]) -> None:
            given = dict(zip(model.outputs, answer, strict=True))
            wanted = asked.get("outputs") or [{"name": name} for name in given]
            listed, parts = [], []
            for one in wanted:
                datatype, _ = model.outputs[one["name"]]
                array = given[one["name"]].astype(TYPES[datatype])
                tensor = {"name": one["name"], "datatype": datatype, "shape": list(array.shape)}
                if one.get("parameters", {}).get("binary_data"):
                    parts.append(array.tobytes())
                    tensor["parameters"] = {"binary_data_size": len(parts[-1])}
                else:
                    tensor["data"] = array.ravel().tolist()
                listed.append(tensor)
            self.say(200, {"model_name": "?", "outputs": listed}, b"".join(parts))

        def say(self, status: int, told: Any, rest: bytes = b"") -> None:
            text = json.dumps(told).encode()
            self.send_response(status)
            if rest:
                self.send_header("Inference-Header-Content-Length", str(len(text)))
            self.send_header("Content-Length", str(len(text) + len(rest)))
            self.end_headers()
            self.wfile.write(text + rest)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def silent(handler: Any) -> bool:
    """Say nothing for a long time."""
    time.sleep(5)
    return True


def _told(tensors: Mapping[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in tensors.items()
    ]


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        one in (size, *([one] if size < 0 else [])) for one, size in zip(shape, wanted, strict=True)
    )
