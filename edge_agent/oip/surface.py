"""The addresses of the protocol, and what is answered there."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from edge_agent import engine, http, models, settings
from edge_agent.oip import messages, requests, responses, service, tensors
from edge_agent.trials import watch
from shared import manifests, tasks

WORD: Final = "v2"
"""The first word of all paths here."""
EXTENSIONS: Final = ("binary_tensor_data", "classification")
THREAD_BYTES: Final = 256 << 10
"""A body beyond this is read in a thread: the loop has others to serve."""

_MODEL: Final = re.compile(r"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?(?:/(ready|infer))?", re.ASCII)
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_PLATFORMS: Final[Mapping[type, str]] = {
    manifests.Onnx: "onnxruntime_onnx",
    manifests.Remote: "oip",
    manifests.Python: "python",
}
_NO_SUCH: Final = "there is no such address in the Open Inference Protocol v2 as served here"


class Surface:
    """The protocol's addresses: what the agent serves, and inference."""

    def __init__(
        self,
        machine: engine.Engine,
        answering: service.Service,
        policy: settings.Oip,
        ready: Callable[[], bool],
    ) -> None:
        self._engine = machine
        self._service = answering
        self._ready = ready
        self.routes: Mapping[str, watch.Route] = {}
        """By model, where it is not one version for all who name none."""
        self.max_body = policy.max_body
        self.max_bodies = policy.max_bodies

    async def answer(self, request: http.Request) -> http.Response:
        """The answer to a request. Raises http.Refused."""
        path = request.path.rstrip("/")
        found = _MODEL.fullmatch(path)
        if found is None:
            _only(request, "GET")
            return self._server(path)
        name, version, what = found.groups()
        _only(request, "POST" if what == "infer" else "GET")
        if version is None and what == "infer" and (route := self.routes.get(name)) is not None:
            version = route(tasks.new_id(), None, None)
        try:
            model = self._engine.find(name, version)
        except models.UnknownModel as unknown:
            raise http.Refused(404, str(unknown)) from None
        match what:
            case "infer":
                return await self._infer(model, request)
            case "ready":
                return _true({"ready": self._ready()})
            case _:
                try:
                    return _json(200, self._metadata(model))
                except engine.NotLoaded as gone:
                    raise http.Refused(404, str(gone)) from None

    def refuse(self, refused: http.Refused) -> http.Response:
        """An error, as the protocol tells it."""
        return _json(refused.status, {"error": str(refused)}, refused.headers)

    def _server(self, path: str) -> http.Response:
        match path:
            case "/v2":
                told = {"name": "backhaul", "version": _version(), "extensions": EXTENSIONS}
                return _json(200, told)
            case "/v2/health/live":
                return _json(200, {"live": True})
            case "/v2/health/ready":
                return _true({"ready": self._ready()})
            case _:
                raise http.Refused(404, f"{path}: {_NO_SUCH}")

    async def _infer(self, model: models.Model, request: http.Request) -> http.Response:
        header = request.headers.get(messages.HEADER_LENGTH.lower())
        if header is not None and not _LENGTH.fullmatch(header):
            raise http.Refused(400, f"{messages.HEADER_LENGTH} {header!r} is no number")
        length = None if header is None else int(header)
        if len(request.body) > THREAD_BYTES:
            ask = await asyncio.to_thread(requests.read, model, request.body, length)
        else:
            ask = requests.read(model, request.body, length)
        made = await self._service.ask(ask)
        if sum(one.array.nbytes for one in made.outputs) > THREAD_BYTES:
            return await asyncio.to_thread(responses.response, ask, made)
        return responses.response(ask, made)

    def _metadata(self, model: models.Model) -> dict[str, Any]:
        versions = [one.version for one in self._engine.loaded() if one.name == model.name]
        inputs = [
            _tensor(spec.name, spec.dtype, [-1] * len(spec.shape) if spec.varies else spec.shape)
            for spec in model.manifest.inputs
        ]
        outputs = [_tensor(one.name, one.dtype, one.shape) for one in self._engine.outputs(model)]
        return {
            "name": model.name,
            "versions": sorted(versions, key=models.version_order),
            "platform": _PLATFORMS[type(model.manifest.runtime)],
            "inputs": inputs,
            "outputs": outputs,
        }


def _tensor(name: str, dtype: str, item: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "datatype": tensors.DATATYPES[dtype], "shape": [-1, *item]}


def _only(request: http.Request, method: str) -> None:
    if request.method != method:
        raise http.Refused(405, f"{request.path} takes {method}, and nothing else", {"Allow": method})


def _true(told: dict[str, bool]) -> http.Response:
    """200 where it is so; the protocol asks for a status of 4xx where it is not."""
    return _json(200 if all(told.values()) else 400, told)


def _json(status: int, told: Any, headers: Mapping[str, str] | None = None) -> http.Response:
    return http.Response(status, messages.JSON, msgspec.json.encode(told), headers or {})


@functools.cache
def _version() -> str:
    return importlib.metadata.version("backhaul")
