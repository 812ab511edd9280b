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
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stay: list[int] = []
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        if stay:
            block = block[~_overlaps(boxes, areas, classes, block, np.array(stay), overlap).any(axis=1)]
        among = _overlaps(boxes, areas, classes, block, block, overlap)
        alive = np.ones(len(block), bool)
        for place in range(len(block)):
            if alive[place]:
                stay.append(int(block[place]))
                if len(stay) == limit:
                    return stay
                alive &= ~among[place]
    return stay


def _overlaps(
    boxes: outputs.Array,
    areas: outputs.Array,
    classes: outputs.Array | None,
    some: outputs.Array,
    others: outputs.Array,
    overlap: float,
) -> outputs.Array:
    """Whether each of some boxes (rows) overlaps each of the others (columns) by more than `overlap`."""
    left, top, right, bottom = boxes[some].T[:, :, None]
    other_left, other_top, other_right, other_bottom = boxes[others].T[:, None, :]
    shared = np.minimum(right, other_right)
    shared -= np.maximum(left, other_left)
    np.maximum(shared, 0, out=shared)
    height = np.minimum(bottom, other_bottom)
    height -= np.maximum(top, other_top)
    np.maximum(height, 0, out=height)
    shared *= height
    # shared / (area + area - shared) > overlap, without the division, for areas may be 0
    over: outputs.Array = shared * (1 + overlap) > overlap * (areas[some][:, None] + areas[others][None, :])
    if classes is not None:
        over &= classes[some][:, None] == classes[others][None, :]
    return over
