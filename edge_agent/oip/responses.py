"""What a model gave, as the client asked to have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_agent import http, models
from edge_agent.oip import answers, messages, requests, tensors
from shared import manifests

NOT_ACCEPTABLE: Final = 406


def response(ask: requests.Ask, made: answers.Made) -> http.Response:
    """The response to a request. Raises Refused if it cannot have the form that was asked for."""
    given = {one.name: one.array for one in made.outputs}
    outputs = [
        tensors.Tensor(
            one.name, _classes(ask.model, one, given[one.name]) if one.classes else given[one.name]
        )
        for one in ask.outputs
    ]
    fields = {"model_name": ask.model.name, "model_version": made.version}
    if ask.id is not None:
        fields["id"] = ask.id
    try:
        body = messages.write(fields, {"outputs": outputs}, binary=[one.binary for one in ask.outputs])
    except tensors.NotInJson as error:
        raise http.Refused(NOT_ACCEPTABLE, f"{error}; ask for it with binary_data") from None
    return http.Response(200, body.content_type, body.bytes, body.headers)


def _classes(model: models.Model, wanted: requests.Output, array: tensors.Array) -> tensors.Array:
    """The largest numbers of each item, the largest first, as texts `number:place:label`."""
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise http.Refused(
            400, f"output {wanted.name!r} of shape {list(array.shape)} has no classes to choose from"
        )
    labels = _labels(model, wanted.name)
    best = np.argsort(-array.astype(np.float64), axis=1, kind="stable")[:, : wanted.classes]
    texts = [
        ":".join([str(row[place]), str(place), *labels[place : place + 1]]).encode()
        for row, places in zip(array, best.tolist(), strict=True)
        for place in places
    ]
    return tensors.of_bytes(texts, best.shape)


def _labels(model: models.Model, name: str) -> Sequence[str]:
    for output in model.manifest.outputs:
        if output.name == name and isinstance(output, manifests.Classification):
            return output.labels
    return ()
