"""Connected regions of a map, found without a loop over its pixels.

Pixels of a line that are above the threshold and side by side are a run. Runs that touch, also at a corner,
in lines one below the other are joined; what hangs together is a region. So numpy works on the runs, of
which there are a few for each line of text, and not on the million pixels of the map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]


class Regions(NamedTuple):
    """Regions in the order of their first pixels: of each left, top, right and lower edge, how many pixels it
    has, and the mean of their numbers."""

    boxes: Array
    areas: Array
    means: Array


def find(values: Array, threshold: float) -> Regions:
    """The regions of a map `[height, width]` that are above `threshold`."""
    height, width = values.shape
    mask = np.zeros((height, width + 2), bool)  # a column on each side, so that no run goes round an edge
    np.greater(values, threshold, out=mask[:, 1:-1])
    edges = np.flatnonzero(mask[:, 1:] != mask[:, :-1])
    starts, ends = edges[::2], edges[1::2]
    if not starts.size:
        return Regions(np.empty((0, 4)), np.empty(0), np.empty(0))
    region = _joined(starts, ends, width + 1)
    order = np.argsort(region, kind="stable")
    firsts = np.flatnonzero(np.diff(region[order], prepend=-1))
    tops, lefts = np.divmod(starts, width + 1)
    rights = lefts + ends - starts
    areas = np.add.reduceat((ends - starts)[order], firsts)
    inside = values[mask[:, 1:-1]]  # run after run
    offsets = np.cumsum(ends - starts) - (ends - starts)
    sums = np.add.reduceat(np.add.reduceat(inside.astype(np.float64), offsets)[order], firsts)
    boxes = np.stack(
        [
            np.minimum.reduceat(lefts[order], firsts),
            np.minimum.reduceat(tops[order], firsts),
            np.maximum.reduceat(rights[order], firsts),
            np.maximum.reduceat(tops[order], firsts) + 1,
        ],
        axis=1,
    )
    return Regions(boxes, areas, sums / areas)


def _joined(starts: Indices, ends: Indices, width: int) -> Indices:
    """For each run the number of the first run of its region; lines are `width` apart."""
    # Of the line above, a run touches those that end at or after its start and start at or before its end.
    first = np.searchsorted(ends, starts - width, side="left")
    last = np.searchsorted(starts, ends - width, side="right")
    touches = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(starts)), touches)
    above = np.arange(len(below)) + np.repeat(first + touches - np.cumsum(touches), touches)
    root = np.arange(len(starts))
    while True:
        one, other = root[below], root[above]
        apart = one != other
        if not apart.any():
            return root
        one, other = one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while True:  # each run points to the one that its own points to, until all point to a first one
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
