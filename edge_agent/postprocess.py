"""The graph's raw outputs to a label, a score and compact JSON for each item of a batch.

    kind            label            score          JSON
    classification  the best         its number     [{"label": "scratch", "score": 0.97}, …], the best `top_k`
    scores          by `threshold`   the number     {"score": 0.42}
    raw             -                -              {"embedding": [0.1, …]}

A model with several outputs gives one JSON object with each of them under its name. Numbers of a
classification's JSON are rounded to six decimals; `Prediction.score` is the graph's own.

A classification or score that is not a finite number is a failure, not a verdict: the largest of
three NaN would otherwise be the first label, which is often "ok".
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent import outcomes
from shared import manifests

Array = npt.NDArray[Any]

_DECIMALS: Final = 6
_FEW: Final = 32
"""Up to so many classes a sort is faster than a heap."""

_encode: Final = msgspec.json.Encoder().encode


class UnexpectedOutput(ValueError):
    """An output is not of the shape that the manifest promises."""


_Reading = tuple[str | None, float | None, Any]
"""What one output says of one item: its label, its score, and what stands in the JSON."""


def predictions(
    outputs: Sequence[manifests.Output], arrays: Sequence[Array], count: int
) -> list[outcomes.Outcome]:
    """What the graph says of each of `count` items; `arrays` are its outputs in the manifest's order.

    Label and score come from the first output that has them. Raises UnexpectedOutput.
    """
    columns = [_readings(output, array, count) for output, array in zip(outputs, arrays, strict=True)]
    if len(columns) == 1:
        return [_alone(outputs[0], reading) for reading in columns[0]]
    return [_together(outputs, readings) for readings in zip(*columns, strict=True)]


def _alone(output: manifests.Output, reading: _Reading | None) -> outcomes.Outcome:
    if reading is None:
        return _not_finite(output)
    label, score, value = reading
    if isinstance(output, manifests.Raw):
        value = {output.name: value}
    return outcomes.Prediction(label, score, _encode(value))


def _together(outputs: Sequence[manifests.Output], readings: Sequence[_Reading | None]) -> outcomes.Outcome:
    verdict: tuple[str | None, float | None] = (None, None)
    values: dict[str, Any] = {}
    for output, reading in zip(outputs, readings, strict=True):
        if reading is None:
            return _not_finite(output)
        label, score, values[output.name] = reading
        if verdict == (None, None):
            verdict = (label, score)
    return outcomes.Prediction(*verdict, _encode(values))


def _readings(output: manifests.Output, array: Array, count: int) -> list[_Reading | None]:
    """What the output says of each item; None where it is not a finite number.

    In plain Python, item by item: the JSON has to be, and for a verdict's few numbers that costs
    less than numpy's calls do (15 µs against 40 in a batch of one, no more from eight on).
    """
    if isinstance(output, manifests.Raw):
        return [(None, None, value) for value in array.tolist()]
    width = len(output.labels) if isinstance(output, manifests.Classification) else 1
    if array.size != count * width or len(array) != count:
        raise UnexpectedOutput(
            f"output {output.name!r} has shape {list(array.shape)}, and {[count, width]} is needed "
            f"for {count} items: correct the manifest's outputs"
        )
    array = array.reshape(count, width)
    if isinstance(output, manifests.Scores):
        return [_score(output, float(score)) for (score,) in array.tolist()]
    if output.softmax:
        array = _softmax(array.astype(np.float64))
    return [_ranking(output, row) for row in array.tolist()]


def _ranking(output: manifests.Classification, row: list[float]) -> _Reading | None:
    if not math.isfinite(sum(row)):  # one number that is not finite makes the sum so
        return None
    names = output.labels
    best = _best(row, output.top_k)
    ranking = [{"label": names[place], "score": round(row[place], _DECIMALS)} for place in best]
    return names[best[0]], float(row[best[0]]), ranking


def _score(output: manifests.Scores, score: float) -> _Reading | None:
    if not math.isfinite(score):
        return None
    label = None
    if output.threshold is not None and output.labels is not None:
        label = output.labels[score >= output.threshold]
    return label, score, {"score": score}


def _not_finite(output: manifests.Output) -> outcomes.ItemFailed:
    return outcomes.ItemFailed(
        f"output {output.name!r} of the model is not a finite number for this item",
        outcomes.Failure.INFERENCE_FAILED,
    )


def _best(row: list[float], count: int) -> list[int]:
    """The places of the largest numbers, the largest first; of equal ones the first."""
    places = range(len(row))
    if len(row) <= _FEW:
        return sorted(places, key=row.__getitem__, reverse=True)[:count]
    return heapq.nlargest(count, places, key=row.__getitem__)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """exp(x) over its sum, by the row; the largest is taken off first, so that nothing overflows."""
    with np.errstate(invalid="ignore"):  # a row that is not finite stays so, and is told by that
        powers: npt.NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
    return powers
