"""Regions of a map as boxes."""

from __future__ import annotations

import math

import numpy as np

from edge_agent import frames, outputs
from edge_agent.outputs import boxes, regions
from shared import manifests


def read(
    output: manifests.Heatmap, array: outputs.Array, count: int, where: frames.Frames
) -> list[outputs.Reading | None]:
    """The regions of each item; `where` says where in the input the pictures lie."""
    maps = _maps(output, array, count)
    scale = np.array([where.width / maps.shape[2], where.height / maps.shape[1]] * 2)
    return [_item(output, values, scale, where.of(item)) for item, values in enumerate(maps)]


def _item(
    output: manifests.Heatmap, values: outputs.Array, scale: outputs.Array, frame: frames.Frame
) -> outputs.Reading | None:
    # What lies around the picture is none of its own.
    left, top = int(frame.left / scale[0]), int(frame.top / scale[1])
    right = math.ceil((frame.left + frame.inner_width) / scale[0])
    bottom = math.ceil((frame.top + frame.inner_height) / scale[1])
    values = values[top:bottom, left:right]
    if not np.isfinite(values.sum(dtype=np.float64)):
        return None
    found = regions.find(values, output.threshold)
    width, height = (found.boxes[:, 2:] - found.boxes[:, :2]).T
    counts = np.minimum(width, height) >= output.min_size
    if output.score_threshold is not None:
        counts &= found.means >= output.score_threshold
    best = np.flatnonzero(counts)
    best = best[np.argsort(-found.means[best], kind="stable")][: output.max_boxes]
    # Liao et al., Real-time scene text detection with differentiable binarization (2020)
    grown = found.areas[best] * output.unclip / (2 * (width[best] + height[best]))
    edges = found.boxes[best] + np.stack([-grown, -grown, grown, grown], axis=1) + (left, top, left, top)
    return boxes.reading(edges * scale, found.means[best], [output.label] * len(best), frame)


def _maps(output: manifests.Heatmap, array: outputs.Array, count: int) -> outputs.Array:
    """One map for each item: `[count, height, width]`."""
    shape = array.shape
    if array.ndim == 4 and 1 in (shape[1], shape[3]):
        array = array[:, 0] if shape[1] == 1 else array[..., 0]
    if array.ndim != 3 or len(array) != count:
        raise outputs.UnexpectedOutput.of(output.name, array, (count, 1, "height", "width"))
    return array
