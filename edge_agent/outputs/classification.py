"""One number for each label, or a single score.

In plain Python, item by item: the JSON has to be, and for a verdict's few numbers that costs less than
numpy's calls do (15 µs against 40 in a batch of one, no more from eight on).
"""

from __future__ import annotations

import heapq
import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_agent import outputs
from shared import manifests

_FEW: Final = 32
"""Up to so many classes a sort is faster than a heap."""


def rankings(
    output: manifests.Classification, array: outputs.Array, count: int
) -> list[outputs.Reading | None]:
    """The best classes of each item."""
    array = _rows(output.name, array, count, len(output.labels))
    if output.softmax:
        array = _softmax(array.astype(np.float64))
    return [_ranking(output, row) for row in array.tolist()]


def scores(output: manifests.Scores, array: outputs.Array, count: int) -> list[outputs.Reading | None]:
    """The score of each item, with a label by the threshold."""
    array = _rows(output.name, array, count, 1)
    return [_score(output, float(score)) for (score,) in array.tolist()]


def _rows(name: str, array: outputs.Array, count: int, width: int) -> outputs.Array:
    if array.size != count * width or len(array) != count:
        raise outputs.UnexpectedOutput.of(name, array, (count, width))
    return array.reshape(count, width)


def _ranking(output: manifests.Classification, row: list[float]) -> outputs.Reading | None:
    if not math.isfinite(sum(row)):  # one number that is not finite makes the sum so
        return None
    names = output.labels
    best = _best(row, output.top_k)
    ranking = [{"label": names[place], "score": round(row[place], outputs.DECIMALS)} for place in best]
    return outputs.Reading(names[best[0]], float(row[best[0]]), ranking)


def _score(output: manifests.Scores, score: float) -> outputs.Reading | None:
    if not math.isfinite(score):
        return None
    label = None
    if output.threshold is not None and output.labels is not None:
        label = output.labels[score >= output.threshold]
    return outputs.Reading(label, score, {"score": score})


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
