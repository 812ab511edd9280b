"""The graph's raw outputs to a label, a score and compact JSON for each item of a batch.

    kind            label            score          JSON
    classification  the best         its number     [{"label": "scratch", "score": 0.97}, …], the best `top_k`
    scores          by `threshold`   the number     {"score": 0.42}
    detection       the best box's   the same       [{"label": "scratch", "score": 0.97, "box": […]}, …]
    heatmap         the best box's   the same       as for a detection
    ctc             the text         the mean       {"text": "LOT 4711-A", "score": 0.98}
    raw             -                -              {"embedding": [0.1, …]}

A model with several outputs gives one JSON object with each of them under its name. Scores in the JSON are
rounded to six decimals; `Prediction.score` is the graph's own.

What is not a finite number is a failure, not a verdict: the largest of three NaN would otherwise be the
first label, which is often "ok".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edge_agent import frames, models, outcomes, outputs
from edge_agent.outputs import classification, detection, heatmap, text
from shared import manifests

_encode: Final = msgspec.json.Encoder().encode

_Tensors = Sequence[outputs.Array]
_Readings = list[outputs.Reading | None]
_Reader = Callable[[_Tensors, int, frames.Frames | None], _Readings]


class Outputs:
    """The outputs of a model, ready to be read: with the alphabets of those that are text."""

    def __init__(self, model: models.Model) -> None:
        self._outputs = model.manifest.outputs
        self._readers = [_reader(output, model) for output in self._outputs]
        places = {name: place for place, name in enumerate(model.manifest.tensors)}
        self._places = [[places[name] for name in output.tensors] for output in self._outputs]

    def read(
        self, tensors: _Tensors, count: int, where: frames.Frames | None = None
    ) -> list[outcomes.Outcome]:
        """What the graph says of each of `count` items; `tensors` are the manifest's, in its order.

        `where` says where the pictures of the items lie. Label and score come from the first output that has
        them. Raises outputs.UnexpectedOutput.
        """
        columns = [
            reader([tensors[place] for place in places], count, where)
            for reader, places in zip(self._readers, self._places, strict=True)
        ]
        if len(columns) == 1:
            return [_alone(self._outputs[0], reading) for reading in columns[0]]
        return [_together(self._outputs, readings) for readings in zip(*columns, strict=True)]


def _reader(output: manifests.Output, model: models.Model) -> _Reader:
    """What reads that output."""
    match output:
        case manifests.Classification():
            return lambda tensors, count, where: classification.rankings(output, tensors[0], count)
        case manifests.Scores():
            return lambda tensors, count, where: classification.scores(output, tensors[0], count)
        case manifests.Detection():
            return lambda tensors, count, where: detection.read(output, tensors, count, _known(where))
        case manifests.Heatmap():
            return lambda tensors, count, where: heatmap.read(output, tensors[0], count, _known(where))
        case manifests.Ctc():
            alphabet = model.alphabet(output)
            return lambda tensors, count, where: text.read(output, alphabet, tensors[0], count)
        case manifests.Raw():
            return lambda tensors, count, where: [
                outputs.Reading(None, None, value) for value in tensors[0].tolist()
            ]


def _known(where: frames.Frames | None) -> frames.Frames:
    assert where is not None, "a model whose outputs speak of places is run with frames"
    return where


def _alone(output: manifests.Output, reading: outputs.Reading | None) -> outcomes.Outcome:
    if reading is None:
        return _not_finite(output)
    label, score, value = reading
    if isinstance(output, manifests.Raw):
        value = {output.name: value}
    return outcomes.Prediction(label, score, _encode(value))


def _together(
    some: Sequence[manifests.Output], readings: Sequence[outputs.Reading | None]
) -> outcomes.Outcome:
    verdict: tuple[str | None, float | None] = (None, None)
    values = {}
    for output, reading in zip(some, readings, strict=True):
        if reading is None:
            return _not_finite(output)
        label, score, values[output.name] = reading
        if verdict == (None, None):
            verdict = (label, score)
    return outcomes.Prediction(*verdict, _encode(values))


def _not_finite(output: manifests.Output) -> outcomes.ItemFailed:
    return outcomes.ItemFailed(
        f"output {output.name!r} of the model is not a finite number for this item",
        outcomes.Failure.INFERENCE_FAILED,
    )
