"""A request at the door: checked against the model, and cut into tasks of which each fits into one batch."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edge_agent import models
from edge_agent.http import Refused
from edge_agent.oip import messages, tensors
from shared import jobs, manifests

_TIMEOUT: Final = "timeout"
"""Triton's parameter for how long an answer is of use, in µs."""
_BINARY: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"
_CLASSES: Final = "classification"


class Output(NamedTuple):
    """An output that a client asks for."""

    name: str
    binary: bool
    """As bytes behind the JSON, not as numbers in it."""
    classes: int = 0
    """So many of the largest numbers, named, in place of all of them; 0 for the numbers."""


class Ask(NamedTuple):
    """What a client wants to know of a model."""

    model: models.Model
    id: str | None
    metadata: jobs.Metadata
    items: int
    inputs: Sequence[tensors.Tensor]
    """Of the model, in the manifest's order; their first dimension counts the items."""
    outputs: Sequence[Output]

    @property
    def priority(self) -> int:
        return jobs.DEFAULT_PRIORITY if self.metadata.priority is None else self.metadata.priority

    def payloads(self) -> Iterator[tuple[bytes, int]]:
        """The items in as many payloads as they need batches, and how many are in each. For a model that
        carries a state they are in one: they are one stream."""
        most = self.items if self.model.manifest.states else self.model.max_batch
        for start in range(0, self.items, most):
            part = [one._replace(array=one.array[start : start + most]) for one in self.inputs]
            body = messages.write({}, {"inputs": part}, binary=True)
            yield messages.pack(body), len(part[0].array)


def read(model: models.Model, body: bytes, header: int | None) -> Ask:
    """The request in a body, of which the first `header` bytes are JSON, or all. Raises Refused."""
    try:
        told = messages.request(body, header)
    except messages.BadMessage as error:
        raise Refused(400, str(error)) from None
    inputs = _inputs(model, told.inputs)
    counts = {len(one.array) for one in inputs}
    if len(counts) > 1:
        raise Refused(400, f"the inputs disagree on the number of items: first dimensions {sorted(counts)}")
    items = counts.pop()
    if not 1 <= items <= jobs.MAX_ITEMS:
        raise Refused(400, f"the request has {items} items; between 1 and {jobs.MAX_ITEMS:,} are taken")
    return Ask(model, told.id, _metadata(model, told.parameters), items, inputs, _outputs(model, told))


def _inputs(model: models.Model, sent: Sequence[tensors.Tensor]) -> list[tensors.Tensor]:
    named = {one.name: one for one in sent}
    wanted = [spec.name for spec in model.manifest.inputs]
    if len(named) < len(sent) or set(named) != set(wanted):
        names = ", ".join(one.name for one in sent) or "none"
        raise Refused(400, f"{model} takes the inputs {', '.join(wanted)}, each once; sent: {names}")
    return [_input(spec, named[spec.name]) for spec in model.manifest.inputs]


def _input(spec: manifests.Input, sent: tensors.Tensor) -> tensors.Tensor:
    """One input, if it is what the model takes: numbers as the graph takes them, or pictures."""
    takes_pictures = isinstance(spec, manifests.ImageInput)
    if takes_pictures and sent.datatype == tensors.BYTES:
        if not sent.shape or sent.array.size != sent.shape[0]:
            raise Refused(
                400, f"input {sent.name!r}: shape {list(sent.shape)} is not that of one picture an item"
            )
        pictures = [_picture(sent.name, one) for one in sent.array.ravel().tolist()]
        return tensors.Tensor(sent.name, tensors.of_bytes(pictures))
    or_pictures = ", or BYTES with a PNG or JPEG each" if takes_pictures else ""
    if spec.varies:
        raise Refused(
            400, f"input {sent.name!r} is as large as its picture: send BYTES with a PNG or JPEG each"
        )
    datatype = tensors.DATATYPES[spec.dtype]
    if sent.datatype != datatype or sent.shape[1:] != spec.shape or not sent.shape:
        raise Refused(
            400,
            f"input {sent.name!r} is {sent.datatype} of shape {list(sent.shape)}; "
            f"{datatype} of shape {[-1, *spec.shape]} is needed{or_pictures}",
        )
    return sent


def _picture(name: str, sent: bytes) -> bytes:
    """An encoded picture; in base64 where it came in JSON, which has no bytes."""
    if jobs.sniff(sent) in (jobs.PNG, jobs.JPEG):
        return sent
    try:
        picture = base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError):
        picture = b""
    if jobs.sniff(picture) not in (jobs.PNG, jobs.JPEG):
        raise Refused(400, f"input {name!r}: an element is no PNG or JPEG, nor one in base64")
    return picture


def _metadata(model: models.Model, parameters: Mapping[str, Any]) -> jobs.Metadata:
    if parameters.get("sequence_id"):
        raise Refused(400, "sequences are not served: name the stream that a request belongs to (stream)")
    fields = dict(parameters)
    timeout = fields.pop(_TIMEOUT, None)
    if timeout is not None:
        if not isinstance(timeout, int) or timeout < 0:
            raise Refused(400, f"timeout {timeout!r} is no number of microseconds")
        if timeout:
            fields.setdefault("deadline_ms", -(-timeout // 1000))
    try:
        metadata = jobs.read_metadata(fields)
    except jobs.Rejected as why:
        raise Refused(400, str(why)) from None
    if metadata.selector is not None:
        raise Refused(400, "a request to an agent runs there: submit a task to the hub to select one")
    return msgspec.structs.replace(metadata, version=model.version, response_topic=None, correlation=None)


def _outputs(model: models.Model, told: messages.Request) -> list[Output]:
    all_binary = told.parameters.get(_ALL_BINARY, False) is True
    known = model.manifest.tensors
    if not told.outputs:
        return [Output(name, all_binary) for name in known]
    outputs: list[Output] = []
    for wanted in told.outputs:
        classes = wanted.parameters.get(_CLASSES, 0)
        if wanted.name not in known or wanted.name in [one.name for one in outputs]:
            raise Refused(
                400, f"{model} has the outputs {', '.join(known)}, to be asked for once; asked: {wanted.name}"
            )
        if not isinstance(classes, int) or classes < 0:
            raise Refused(400, f"output {wanted.name!r}: {_CLASSES} {classes!r} is no number of classes")
        if any(name.startswith("shared_memory") for name in wanted.parameters):
            raise Refused(400, f"output {wanted.name!r}: shared memory is not served")
        outputs.append(Output(wanted.name, wanted.parameters.get(_BINARY, all_binary) is True, classes))
    return outputs
