"""What runs a model: the agent itself, another server, or a function of the package's own."""

from __future__ import annotations

import re
from typing import Final

from shared.manifests import fields

_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*:[A-Za-z_]\w*", re.ASCII)


class Onnx(fields.Table, frozen=True, kw_only=True, tag_field="kind", tag="onnx"):
    """ONNX Runtime runs the package's graph, in the agent. So it is for a model without this table."""


class Remote(fields.Table, frozen=True, kw_only=True, tag_field="kind", tag="oip"):
    """Another server runs the model: Triton, KServe, another agent, or what else speaks the Open Inference
    Protocol v2 over HTTP.

    The package has no graph then. What the server says of the model's tensors is compared with the manifest
    when the model is loaded.
    """

    url: str
    """Where the server is, as in `http://triton:8000`; with `https`, its certificate must be one that the
    agent's machine trusts."""
    model: fields.Name | None = None
    """The model's name there; its name here if left out."""
    version: fields.Name | None = None
    """Its version there; the one that the server chooses if left out."""
    timeout_ms: fields.Positive = 10_000
    """For one batch, waiting for a server that is away included: what takes longer has failed."""
    binary: bool = True
    """Tensors travel as they are in memory; else as numbers in JSON, for a server that knows nothing else."""

    def __post_init__(self) -> None:
        if not _URL.fullmatch(self.url):
            raise ValueError(f"`url` {self.url!r} is no address: write it as in http://triton:8000")


class Python(fields.Table, frozen=True, kw_only=True, tag_field="kind", tag="python"):
    """A function of the package's own runs the model, in the agent: from a dictionary with an array for each
    input to a list with an array for each output, the first dimension of all counting the items.

    It may do whatever the agent may, so an agent takes such packages only if its settings allow it.
    """

    function: str
    """`module:function`; the module is a file beside the manifest: `predict:run` is `run` of `predict.py`."""

    def __post_init__(self) -> None:
        if not _FUNCTION.fullmatch(self.function):
            raise ValueError(f"`function` {self.function!r} is not of the form module:function")

    @property
    def file(self) -> str:
        """The module's file in the package."""
        return f"{self.function.partition(':')[0]}.py"


Runtime = Onnx | Remote | Python
