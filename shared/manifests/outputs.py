"""The outputs of a graph: how they become a label, a score and the JSON of an item."""

from __future__ import annotations

from typing import Literal

from shared.manifests import fields

Row = Literal["box classes", "box objectness classes", "box score class", "box"]
Corners = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
Logits = Literal["sigmoid", "softmax"]


class _Output(fields.Table, frozen=True, kw_only=True):
    name: fields.Name

    @property
    def tensors(self) -> tuple[str, ...]:
        """The graph's outputs that it reads."""
        return (self.name,)


class Classification(_Output, frozen=True, kw_only=True, tag_field="kind", tag="classification"):
    """An output with one number for each of `labels`: the largest wins.

    With `softmax` the graph gives logits, which are turned into probabilities first.
    """

    labels: fields.Labels
    top_k: fields.Positive = 1
    softmax: bool = False


class Scores(_Output, frozen=True, kw_only=True, tag_field="kind", tag="scores"):
    """An output with one number an item, such as an anomaly score.

    With a `threshold`, `labels` are the two names for below it, and for at it or above.
    """

    threshold: float | None = None
    labels: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) != (self.labels is None):
            raise ValueError("`threshold` and `labels` go together: give both, or neither")


class Detection(_Output, frozen=True, kw_only=True, tag_field="kind", tag="detection"):
    """An output with boxes around what is seen, each with a class and a score.

    Of the boxes that reach `score_threshold`, those that overlap a better one by more than
    `iou_threshold` are dropped. The rest are given in pixels of the picture that was sent.
    """

    labels: fields.Labels
    """The names of the classes, in the graph's order."""

    row: Row
    """What the graph gives of each box, in this order: `box` is four numbers, `classes` one for each label,
    `class` the number of one of them."""

    box: Corners
    """What the four numbers are: two corners, or a corner or the centre with width and height."""

    transposed: bool = False
    """Whether each box is a column, not a row: `[batch, 4 + classes, boxes]`."""

    relative: bool = False
    """Whether boxes are in parts of the input's width and height, 0 to 1, not in its pixels."""

    scores: fields.Name | None = None
    """With `row = "box"`: the output with a number for each label of each box, or one with `classes`."""

    classes: fields.Name | None = None
    """With `row = "box"`: the output with the number of each box's class."""

    logits: Logits | None = None
    """How the numbers for the labels become probabilities, if they are not."""

    background: str | None = None
    """The one of `labels` that means that nothing is there."""

    score_threshold: fields.Share = 0.25
    iou_threshold: fields.Share = 0.45
    """1 keeps overlapping boxes, as for a graph that drops them itself."""

    class_wise: bool = True
    """Whether a box is dropped only for a better one of its own class."""

    max_boxes: fields.Positive = 100

    def __post_init__(self) -> None:
        if (self.row == "box") != (self.scores is not None):
            raise ValueError('`scores` goes with row = "box", and row = "box" with it: give both, or neither')
        if self.classes is not None and self.scores is None:
            raise ValueError('`classes` goes with row = "box": remove it, or change `row`')
        if self.logits is not None and (self.row == "box score class" or self.classes is not None):
            raise ValueError("`logits` needs a number for each label; here each box has one score: remove it")
        if self.background is not None and self.background not in self.labels:
            raise ValueError(f"`background` is {self.background!r}, which is not one of `labels`")
        if set(self.labels) == {self.background}:
            raise ValueError("`labels` has nothing but the background: add what is to be seen")
        if len(set(self.tensors)) < len(self.tensors):
            raise ValueError(
                f"`name`, `scores` and `classes` name one output twice: {', '.join(self.tensors)}"
            )

    @property
    def width(self) -> int:
        """How many numbers the graph gives of each box in `name`."""
        classes = len(self.labels)
        return {
            "box classes": 4 + classes,
            "box objectness classes": 5 + classes,
            "box score class": 6,
            "box": 4,
        }[self.row]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The graph's outputs that it reads."""
        return tuple(name for name in (self.name, self.scores, self.classes) if name is not None)


class Heatmap(_Output, frozen=True, kw_only=True, tag_field="kind", tag="heatmap"):
    """An output with one number for each pixel, such as where text is, or how odd a surface looks.

    Connected pixels above `threshold` are a region, with the mean of its numbers as its score. Regions
    become upright boxes, given in pixels of the picture that was sent.
    """

    label: str
    """The label of every region."""

    threshold: float
    """Of a pixel."""

    score_threshold: float | None = None
    """Of a region; every region counts unless it is set."""

    unclip: fields.NonNegative = 0.0
    """By how much a box is enlarged for graphs that mark the core of what they see, as DB's for text do:
    area * `unclip` / circumference of the region, on each side."""

    min_size: fields.Positive = 3
    """Regions of which the shorter side has fewer pixels in the map are passed over."""

    max_boxes: fields.Positive = 100


class Ctc(_Output, frozen=True, kw_only=True, tag_field="kind", tag="ctc"):
    """An output with one number for each character at each step, of a graph that reads text (CTC).

    The best character of each step is taken; repetitions of it are one character, and the blank is none.
    """

    dictionary: fields.Name
    """A file of the package, UTF-8, with one character a line, in the graph's order."""

    space: bool = False
    """Whether the graph has a space after the characters of the dictionary."""

    blank: Literal["first", "last"] = "first"
    """Where among the characters the graph has its blank, which is not in the dictionary."""

    softmax: bool = False
    """Whether the graph gives logits, which are turned into probabilities first."""


class Raw(_Output, frozen=True, kw_only=True, tag_field="kind", tag="raw"):
    """An output that is passed on as nested lists of numbers."""


Output = Classification | Scores | Detection | Heatmap | Ctc | Raw
PLACED = Detection | Heatmap
"""The outputs that say where in the picture something is."""
