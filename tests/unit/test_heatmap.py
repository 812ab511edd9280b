"""Maps to boxes: which pixels hang together, and where in the picture they are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent import models, outcomes, outputs
from edge_agent.outputs import regions
from tests import readings


def model(more: str = "", image: str = "") -> models.Model:
    output = f'[[outputs]]\nname = "y"\nkind = "heatmap"\nlabel = "spot"\nthreshold = 0.5\n{more}\n'
    return readings.model((image or readings.image(20, 10)) + output)


def drawn(text: str) -> npt.NDArray[np.float32]:
    """A map of digits in tenths; a dot is nothing."""
    lines = re.findall(r"\S+", text)
    return np.array([[0 if one == "." else int(one) / 10 for one in line] for line in lines], np.float32)


def found(some: models.Model, values: npt.NDArray[Any], size: tuple[int, int] = (20, 10)) -> Any:
    (made,) = readings.read(some, [values[None]], readings.framed(some, size))
    return readings.said(made)[2]


def naive(mask: npt.NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """The regions of a mask, pixel by pixel."""
    left = set(zip(*map(list, np.nonzero(mask)), strict=True))
    made = []
    while left:
        reached = [min(left)]
        region = set(reached)
        left -= region
        while reached:
            row, column = reached.pop()
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            region |= near
            reached += near
        made.append(region)
    return sorted(made, key=min)


@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 14), st.integers(1, 14)),
        elements=st.sampled_from([0, 0.25, 0.75, 1]),
    )
)
def test_regions_are_what_hangs_together(values: npt.NDArray[np.float32]) -> None:
    """On any map, the regions, their edges, sizes and means are those of a walk from pixel to pixel."""
    made = regions.find(values, 0.5)
    expected = naive(values > 0.5)
    assert len(made.areas) == len(expected)
    for box, area, mean, region in zip(made.boxes, made.areas, made.means, expected, strict=True):
        rows, columns = zip(*region, strict=True)
        assert box.tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        assert area == len(region)
        assert mean == pytest.approx(np.mean([values[one] for one in region]))


def test_a_spiral_is_one_region() -> None:
    """However it winds: two spirals in one another, which meet nowhere, are two."""
    size = 61
    turns = np.zeros((size, size), np.float32)
    row, column, step, reach = 0, 0, (0, 1), size - 1
    lengths = [reach, reach, reach] + [rest for rest in range(reach - 2, 3, -2) for _ in (0, 1)]
    for length in lengths:
        for _ in range(length):
            turns[row, column] = 1
            row, column = row + step[0], column + step[1]
        step = (step[1], -step[0])
    assert len(regions.find(turns, 0.5).areas) == len(naive(turns > 0.5)) == 1
    assert len(regions.find(1 - turns, 0.5).areas) == len(naive(turns < 0.5))


def test_regions_become_boxes_the_best_first() -> None:
    """Each with the mean of its own pixels as its score; the item has label and score of the best."""
    values = drawn("""
        ....................
        ..666..........999..
        ..66............99..
        ..666..........999..
        ....................
    """)
    some = model(image=readings.image(20, 5))
    (made,) = readings.read(some, [values[None]], readings.framed(some, (20, 5)))
    label, score, value = readings.said(made)
    assert (label, score) == ("spot", pytest.approx(0.9))
    assert value == [
        {"label": "spot", "score": pytest.approx(0.9), "box": [15, 1, 18, 4]},
        {"label": "spot", "score": pytest.approx(0.6), "box": [2, 1, 5, 4]},
    ]


def test_weak_and_small_regions_are_passed_over() -> None:
    """By the mean of a region, by its shorter side, and by the number of them."""
    values = np.zeros((10, 20), np.float32)
    values[1:4, 1:9] = 0.9
    values[6:8, 1:19] = 0.8
    values[0:4, 12:18] = 0.6
    assert [one["score"] for one in found(model(), values)] == pytest.approx([0.9, 0.6])
    assert [one["score"] for one in found(model("min_size = 1"), values)] == pytest.approx([0.9, 0.8, 0.6])
    assert [one["score"] for one in found(model("score_threshold = 0.7"), values)] == pytest.approx([0.9])
    assert [one["score"] for one in found(model("max_boxes = 1"), values)] == pytest.approx([0.9])
    assert found(model(), np.zeros((10, 20), np.float32)) == []


def test_a_core_is_grown_to_what_it_is_the_core_of() -> None:
    """By area * `unclip` / circumference on each side, and never beyond the picture."""
    values = np.zeros((10, 20), np.float32)
    values[3:7, 4:16] = 1
    grown = 4 * 12 * 1.5 / (2 * (4 + 12))
    (made,) = found(model("unclip = 1.5"), values)
    assert made["box"] == [4 - grown, 3 - grown, 16 + grown, 7 + grown]
    (made,) = found(model("unclip = 9"), values)
    assert made["box"] == [0, 0, 20, 10]


@pytest.mark.parametrize("shape", [(10, 20), (1, 10, 20), (10, 20, 1)])
def test_a_map_may_be_coarser_than_its_input(shape: tuple[int, ...]) -> None:
    """Boxes are in pixels of the picture, whatever the sizes of map and input, in any of three shapes."""
    values = np.zeros((10, 20), np.float32)
    values[2:6, 4:10] = 1
    some = model(image=readings.image(80, 40))
    (made,) = found(some, values.reshape(shape), (400, 100))
    assert made["box"] == [80, 20, 200, 60]


def test_what_is_around_a_picture_is_none_of_it() -> None:
    """Regions in the padding don't count, and one that goes on there is judged by what is in the picture."""
    values = np.zeros((20, 20), np.float32)
    values[0:4, 2:8] = 1  # a picture of 40 x 20 lies between 5 and 15
    values[8:15, 10:14] = 1
    values[15:18, 10:14] = 0.6
    some = model(image=readings.image(20, 20, 'resize = "fit"'))
    (made,) = found(some, values, (40, 20))
    assert (made["box"], made["score"]) == ([20, 6, 28, 20], 1)


def test_what_is_not_a_number_is_no_verdict() -> None:
    """NaN in the map fails that item, and its neighbour is read."""
    values = np.ones((2, 10, 20), np.float32)
    values[0, 3, 3] = np.nan
    some = model()
    bad, good = readings.read(some, [values], readings.framed(some, (20, 10), (20, 10)))
    assert isinstance(bad, outcomes.ItemFailed)
    assert bad.kind is outcomes.Failure.INFERENCE_FAILED
    assert readings.said(good)[0] == "spot"


def test_a_map_of_another_shape_is_told() -> None:
    """Two numbers a pixel are no map: the manifest is wrong, and the error says which output."""
    with pytest.raises(
        outputs.UnexpectedOutput, match=r"'y' has shape \[1, 2, 10, 20\].*\[1, 1, height, width\]"
    ):
        found(model(), np.zeros((2, 10, 20), np.float32))
