"""Boxes in a picture: rows of left, top, right and lower edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_agent import frames, outputs

_BLOCK: Final = 64
"""So many boxes are compared with one another at a time: enough for numpy, few enough for the cache."""

_HUNDREDTHS: Final = 2


def reading(
    boxes: outputs.Array, scores: outputs.Array, labels: Sequence[str], frame: frames.Frame
) -> outputs.Reading:
    """Boxes in pixels of the graph's input, the best first, as what is said of the picture.

    A box that lies outside of the picture, in what was filled in around it, is none.
    """
    placed = frame.from_input(boxes)
    inside = (placed[:, 2] > placed[:, 0]) & (placed[:, 3] > placed[:, 1])
    found = [
        {"label": label, "score": round(score, outputs.DECIMALS), "box": box}
        for label, score, box, counts in zip(
            labels,
            scores.tolist(),
            placed.round(_HUNDREDTHS).tolist(),
            inside.tolist(),
            strict=True,
        )
        if counts
    ]
    if not found:
        return outputs.Reading(None, None, found)
    first = int(inside.argmax())
    return outputs.Reading(labels[first], float(scores[first]), found)


def suppress(boxes: outputs.Array, classes: outputs.Array | None, overlap: float, limit: int) -> list[int]:
    """The places of the boxes that stay, at most `limit` of them, where `boxes` has the best first.

    A box goes if it overlaps one that stays, of its class where `classes` are given, by more than `overlap`:
    the area that both share over the area that they cover together. Greedy, as is the custom since Dalal and
    Triggs (2005), but block by block, so that numpy sees matrices and not single boxes.
    """
    if overlap >= 1:
        return list(range(min(limit, len(boxes))))
    compared = _Compared(boxes, classes, overlap, min(limit, len(boxes)))
    stay = np.empty(0, np.intp)  # fewer than `limit` until the end
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        block = block[~compared.overlaps(block, stay).any(axis=1)]
        worse = np.triu(compared.overlaps(block, block), 1)
        alive = np.ones(len(block), bool)
        for place in np.flatnonzero(worse.any(axis=1)).tolist():
            if alive[place]:
                alive &= ~worse[place]
        stay = np.concatenate([stay, block[alive]])
        if len(stay) >= limit:
            break
    best: list[int] = stay[:limit].tolist()
    return best


class _Compared:
    """Boxes that are compared with one another, in memory that is used again for each comparison: of at most
    `_BLOCK` boxes with at most `others`, or with as many."""

    def __init__(
        self, boxes: outputs.Array, classes: outputs.Array | None, overlap: float, others: int
    ) -> None:
        self._edges = boxes.T.astype(np.float32)
        self._classes = classes
        # shared / (area + area - shared) > overlap, without the division, for areas may be 0
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        self._areas = (areas * (overlap / (1 + overlap))).astype(np.float32)
        self._room = np.empty((3, _BLOCK * max(_BLOCK, others)), np.float32)

    def overlaps(self, some: outputs.Array, others: outputs.Array) -> outputs.Array:
        """Whether each of some boxes (rows) overlaps each of the others (columns) by more than is allowed."""
        shape = (len(some), len(others))
        width, height, most = self._room[:, : shape[0] * shape[1]].reshape(3, *shape)
        left, top, right, bottom = self._edges[:, some, None]
        other_left, other_top, other_right, other_bottom = self._edges[:, others]
        np.minimum(right, other_right, out=width)
        width -= np.maximum(left, other_left, out=most)
        np.maximum(width, 0, out=width)  # so a height below 0 does no harm
        np.minimum(bottom, other_bottom, out=height)
        height -= np.maximum(top, other_top, out=most)
        width *= height
        np.add(self._areas[some, None], self._areas[others], out=most)
        over: outputs.Array = width > most
        if self._classes is not None:
            over &= self._classes[some, None] == self._classes[others]
        return over
