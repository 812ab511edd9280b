"""How a picture lies in the input of a graph, and the way back from there.

A picture is resized and may be surrounded by padding. What a graph finds is in pixels of its input; whoever
sent the picture knows its own pixels alone. So where each picture came to lie is kept beside its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shared import manifests

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int32]


class Frame(NamedTuple):
    """Where one picture lies: the `inner_width` x `inner_height` pixels of the input from `left` and `top` on
    are the whole of its own `width` x `height`."""

    width: int
    height: int
    left: int
    top: int
    inner_width: int
    inner_height: int

    def from_input(self, boxes: Array) -> Array:
        """Boxes (rows of left, top, right, bottom) in pixels of the input as ones in pixels of the picture,
        cut off at its edges."""
        scale = np.array([self.width / self.inner_width, self.height / self.inner_height])
        offset = np.array([self.left, self.top])
        moved = (boxes.reshape(-1, 2, 2) - offset) * scale
        cut: Array = np.clip(moved, 0, (self.width, self.height))
        return cut.reshape(-1, 4)


class Frames(NamedTuple):
    """Where the pictures of a batch lie in the input `name`, of `height` x `width` pixels: each row is the
    `Frame` of one."""

    name: str
    height: int
    width: int
    rows: Rows

    def of(self, item: int) -> Frame:
        """Where the picture of one item lies."""
        return Frame(*self.rows[item].tolist())

    def take(self, items: Sequence[int]) -> Frames:
        """Those of some of the items."""
        return self._replace(rows=self.rows[items])


def empty(spec: manifests.ImageInput, shape: tuple[int, ...], count: int) -> Frames:
    """Frames for `count` items of that shape; items sent as numbers have no other pixels than the input's."""
    height, width = shape[1:] if spec.layout == "nchw" else shape[:2]
    rows = np.empty((count, len(Frame._fields)), np.int32)
    rows[:] = Frame(width, height, 0, 0, width, height)
    return Frames(spec.name, height, width, rows)


def place(spec: manifests.ImageInput, width: int, height: int) -> Frame:
    """Where a picture of that size comes to lie in the input."""
    if spec.resize == "stretch":
        return Frame(width, height, 0, 0, spec.width, spec.height)
    if spec.resize == "height":
        wide = -(-width * spec.height // height)  # rounded up: no character is made narrower than it is
        return Frame(width, height, 0, 0, min(wide, spec.max_width or spec.width), spec.height)
    if width * spec.height >= height * spec.width:
        inner = (spec.width, max(1, round(height * spec.width / width)))
    else:
        inner = (max(1, round(width * spec.height / height)), spec.height)
    if spec.place == "top-left" or spec.varies:
        return Frame(width, height, 0, 0, *inner)
    return Frame(width, height, (spec.width - inner[0]) // 2, (spec.height - inner[1]) // 2, *inner)


def extent(spec: manifests.ImageInput, frame: Frame) -> tuple[int, int]:
    """Height and width of the smallest input that holds the picture."""
    if not spec.varies:
        return spec.height, spec.width
    step = spec.multiple_of or 1
    wide = -(-frame.inner_width // step) * step
    if spec.resize == "height":
        return spec.height, max(spec.width, wide)
    return -(-frame.inner_height // step) * step, wide
