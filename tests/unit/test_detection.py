"""Boxes: every form in which graphs give them, what is dropped, and in whose pixels they come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import models, outcomes, outputs
from edge_agent.outputs import boxes
from tests import readings

LABELS = 'labels = ["scratch", "dent", "burr"]\n'


def model(output: str, image: str = "", labels: str = LABELS) -> models.Model:
    return readings.model(
        (image or readings.image()) + f'[[outputs]]\nname = "y"\nkind = "detection"\n{labels}{output}\n'
    )


def found(some: models.Model, *tensors: Any, size: tuple[int, int] = (100, 100)) -> Any:
    """The JSON of the only item, a picture of that size."""
    (made,) = readings.read(some, [[one] for one in tensors], readings.framed(some, size))
    return readings.said(made)[2]


def box(label: str, score: float, *edges: float) -> dict[str, Any]:
    return {"label": label, "score": pytest.approx(score, abs=1e-5), "box": list(edges)}


SEEN = [box("dent", 0.9, 10, 20, 30, 60), box("scratch", 0.5, 50, 50, 60, 60)]
"""What each of the forms below says."""


@pytest.mark.parametrize("transposed", [False, True])
def test_boxes_with_a_number_for_each_class(transposed: bool) -> None:
    """YOLOv8: the best class of each box, without an objectness; each box may be a column."""
    rows = np.array([[55, 55, 10, 10, 0.5, 0.1, 0.4], [20, 40, 20, 40, 0.2, 0.9, 0]], np.float32)
    some = model(f'row = "box classes"\nbox = "cxcywh"\ntransposed = {str(transposed).lower()}')
    assert found(some, rows.T if transposed else rows) == SEEN


def test_boxes_with_an_objectness() -> None:
    """YOLOv5: the score is the class's number times that of there being anything at all."""
    rows = [[55, 55, 10, 10, 0.5, 1, 0, 0], [20, 40, 20, 40, 0.9, 0, 1, 0], [70, 70, 9, 9, 0.2, 1, 0, 0]]
    assert found(model('row = "box objectness classes"\nbox = "cxcywh"'), rows) == SEEN


def test_boxes_of_graphs_that_drop_overlaps_themselves() -> None:
    """A score and the number of a class each; rows without a score fill up the table."""
    rows = [[10, 20, 30, 60, 0.9, 1], [50, 50, 60, 60, 0.5, 0], [0, 0, 0, 0, 0, -1]]
    assert found(model('row = "box score class"\nbox = "xyxy"\niou_threshold = 1'), rows) == SEEN


def test_boxes_and_scores_in_outputs_of_their_own() -> None:
    """In parts of the input's width and height, as top, left, bottom, right, or as corner and size."""
    scores = [[0.1, 0.9, 0], [0.5, 0.4, 0.1]]
    edges = [[0.2, 0.1, 0.6, 0.3], [0.5, 0.5, 0.6, 0.6]]
    some = model('row = "box"\nscores = "s"\nbox = "yxyx"\nrelative = true')
    assert found(some, edges, scores) == SEEN
    sizes = [[10, 20, 20, 40], [50, 50, 10, 10]]
    assert found(model('row = "box"\nscores = "s"\nbox = "xywh"'), sizes, scores) == SEEN


@pytest.mark.parametrize("more", [(), (1,)])
def test_classes_in_an_output_of_their_own(more: tuple[int, ...]) -> None:
    """SSD: a score and a class number for each box, where number 0 may mean the background."""
    some = model(
        'row = "box"\nscores = "s"\nclasses = "c"\nbox = "xyxy"\nbackground = "nothing"',
        labels='labels = ["nothing", "scratch", "dent"]\n',
    )
    edges = [[50, 50, 60, 60], [10, 20, 30, 60], [0, 0, 9, 9]]
    scores, classes = np.array([0.5, 0.9, 0.99], np.float32), np.array([1, 2, 0], np.int64)
    assert found(some, edges, scores.reshape(3, *more), classes.reshape(3, *more)) == SEEN


def test_logits_become_probabilities() -> None:
    """DETR: a softmax over the classes and the one that means nothing, which never counts; or a sigmoid."""
    edges = [[0.55, 0.55, 0.1, 0.1], [0.2, 0.4, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]
    logits = np.log([[0.5, 0.3, 0.2], [0.06, 0.9, 0.04], [0.3, 0.02, 0.68]])
    some = model(
        'row = "box"\nscores = "s"\nbox = "cxcywh"\nrelative = true\nlogits = "softmax"\nbackground = "none"'
        "\nscore_threshold = 0.4",
        labels='labels = ["scratch", "dent", "none"]\n',
    )
    assert found(some, edges, logits) == SEEN
    some = model('row = "box"\nscores = "s"\nbox = "cxcywh"\nrelative = true\nlogits = "sigmoid"')
    numbers = np.array([[0.5, 0.3, 0.1], [0.1, 0.9, 0.1], [0.1, 0.02, 0.1]])
    assert found(some, edges, np.log(numbers / (1 - numbers))) == SEEN


def test_of_overlapping_boxes_the_best_stays() -> None:
    """Within a class, or whatever the class where the manifest wants it; at most `max_boxes` are given."""
    rows = [
        [10, 10, 30, 30, 0.8, 0, 0],
        [11, 10, 31, 30, 0.9, 0, 0],
        [12, 10, 32, 30, 0, 0.7, 0],
        [60, 60, 70, 70, 0, 0, 0.6],
    ]
    form = 'row = "box classes"\nbox = "xyxy"\n'
    assert [one["score"] for one in found(model(form), rows)] == [0.9, 0.7, 0.6]
    assert [one["score"] for one in found(model(form + "class_wise = false"), rows)] == [0.9, 0.6]
    assert [one["score"] for one in found(model(form + "iou_threshold = 1"), rows)] == [0.9, 0.8, 0.7, 0.6]
    assert [one["score"] for one in found(model(form + "max_boxes = 1"), rows)] == [0.9]
    assert [one["score"] for one in found(model(form + "score_threshold = 0.65"), rows)] == [0.9, 0.7]


def test_boxes_are_in_the_pixels_of_the_picture_that_was_sent() -> None:
    """Scale and padding are undone, boxes are cut off at its edges, and none is where it is not."""
    image = readings.image(100, 100, 'resize = "fit"')
    rows = [
        [10, 25, 20, 75, 0.9, 0, 0],  # a picture of 400 x 200 lies between 25 and 75
        [90, 20, 110, 80, 0, 0.8, 0],
        [10, 0, 20, 20, 0, 0, 0.7],
    ]
    some = model('row = "box classes"\nbox = "xyxy"', image)
    assert found(some, rows, size=(400, 200)) == [
        box("scratch", 0.9, 40, 0, 80, 200),
        box("dent", 0.8, 360, 0, 400, 200),
    ]


def test_label_and_score_are_those_of_the_best_box() -> None:
    """An item in which nothing is found has neither, and an empty list."""
    some = model('row = "box classes"\nbox = "xyxy"')
    tensor = [[[10, 20, 30, 60, 0, 0.9, 0]], [[10, 20, 30, 60, 0.2, 0.1, 0]]]
    seen, nothing = readings.read(some, [tensor], readings.framed(some, (100, 100), (50, 50)))
    assert readings.said(seen)[:2] == ("dent", pytest.approx(0.9))
    assert readings.said(nothing) == (None, None, [])


@pytest.mark.parametrize("place", [0, 4, 6])
@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_what_is_not_a_number_is_no_verdict(place: int, worst: float) -> None:
    """NaN among scores or in a box that counts fails that item, and its neighbour is read."""
    some = model('row = "box classes"\nbox = "xyxy"')
    tensor = np.tile(np.array([10, 20, 30, 60, 0, 0.9, 0], np.float32), (2, 3, 1))
    tensor[0, 1, place] = worst
    bad, good = readings.read(some, [tensor], readings.framed(some, (100, 100), (100, 100)))
    assert isinstance(bad, outcomes.ItemFailed)
    assert bad.kind is outcomes.Failure.INFERENCE_FAILED
    assert readings.said(good)[0] == "dent"


@pytest.mark.parametrize(
    ("output", "tensors", "words"),
    [
        ('row = "box classes"\nbox = "xyxy"', [[[1] * 8]], r"'y' has shape \[1, 1, 8\].*\[1, boxes, 7\]"),
        ('row = "box classes"\nbox = "xyxy"\ntransposed = true', [[[1] * 7]], r"\[1, 7, boxes\] is needed"),
        ('row = "box classes"\nbox = "xyxy"', [[1] * 7], r"\[1, boxes, 7\] is needed"),
        ('row = "box"\nscores = "s"\nbox = "xyxy"', [[[1] * 4], [[1, 1]]], r"'s'.*\[1, 1, 3\] is needed"),
        ('row = "box score class"\nbox = "xyxy"', [[[0, 0, 1, 1, 1, 3]]], "gives class 3, and its 3 labels"),
    ],
)
def test_an_output_of_another_form_is_told(output: str, tensors: list[Any], words: str) -> None:
    """The manifest is wrong then, and the error says which output, and what it should be."""
    some = model(output)
    with pytest.raises(outputs.UnexpectedOutput, match=words):
        readings.read(some, [[one] for one in tensors], readings.framed(some, (100, 100)))


def overlap(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Intersection over union of two boxes, as it is defined."""
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((edges[2] - edges[0]) * (edges[3] - edges[1]) for edges in (one, other))
    union = areas - width * height
    return float(width * height / union) if union else 0.0


@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(0, 150),
    limit=st.integers(1, 400),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),  # exact ones
    kinds=st.integers(0, 3),
)
def test_suppression_is_the_greedy_one(
    seed: int, count: int, limit: int, threshold: float, kinds: int
) -> None:
    """Whatever the boxes, what stays is what comparing them one by one would keep, in the same order."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 40, (count, 2)).astype(np.float32)
    edges = np.hstack([corners, corners + random.integers(0, 30, (count, 2))]).astype(np.float32)
    classes = random.integers(0, kinds, count) if kinds else None
    expected: list[int] = []
    for place in range(count):
        if len(expected) < limit and not any(
            (classes is None or classes[place] == classes[kept])
            and overlap(edges[place], edges[kept]) > threshold
            for kept in expected
        ):
            expected.append(place)
    assert boxes.suppress(edges, classes, threshold, limit) == expected
