"""The items of a task that came by the protocol, for the engine."""

from __future__ import annotations

from edge_agent import decode, images, models
from edge_agent.oip import messages, tensors
from shared import manifests


def unpack(model: models.Model, payload: bytes) -> decode.Items:
    """Open a payload as `requests.Ask` packs it; Unreadable if it does not fit the model (any more)."""
    try:
        body = messages.unpack(payload)
        sent = {one.name: one.array for one in messages.request(body.bytes, body.header).inputs}
    except messages.BadMessage as error:
        raise decode.Unreadable(f"the request cannot be read: {error}") from None
    return decode.Columns(
        {spec.name: _column(model, spec, sent.get(spec.name)) for spec in model.manifest.inputs}
    )


def _column(model: models.Model, spec: manifests.Input, array: tensors.Array | None) -> decode.Column:
    if array is not None and array.dtype == object and isinstance(spec, manifests.ImageInput):
        reader = images.reader(spec, model.manifest.limits.max_pixels)
        return decode.Pictures(reader, array.tolist())
    if array is None or array.dtype.name != spec.dtype or array.shape[1:] != spec.shape or spec.varies:
        raise decode.Unreadable(f"input {spec.name!r} is not what {model} takes now: its package has changed")
    return decode.Numbers(array, {})
