"""Boxes with classes and scores, in the forms in which graphs give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_agent import frames, outputs
from edge_agent.outputs import boxes as geometry
from shared import manifests


class Candidates(NamedTuple):
    """The boxes of one item that reach the threshold, the best first."""

    corners: outputs.Array
    scores: outputs.Array
    classes: outputs.Array


def read(
    output: manifests.Detection, tensors: Sequence[outputs.Array], count: int, where: frames.Frames
) -> list[outputs.Reading | None]:
    """The boxes of each item; `tensors` are those that the output reads, `where` says where pictures lie."""
    _check(output, tensors, count)
    return [
        _item(output, parts, where, where.of(item)) for item, parts in enumerate(zip(*tensors, strict=True))
    ]


def _item(
    output: manifests.Detection,
    parts: Sequence[outputs.Array],
    where: frames.Frames,
    frame: frames.Frame,
) -> outputs.Reading | None:
    found = _candidates(output, parts)
    if found is None:
        return None
    corners, scores, classes = found
    if output.relative:
        corners *= np.array([where.width, where.height] * 2, corners.dtype)
    stay = geometry.suppress(
        corners, classes if output.class_wise else None, output.iou_threshold, output.max_boxes
    )
    labels = [output.labels[place] for place in classes[stay].tolist()]
    return geometry.reading(corners[stay], scores[stay], labels, frame)


def _candidates(output: manifests.Detection, parts: Sequence[outputs.Array]) -> Candidates | None:
    """The boxes of one item that may count; None if the graph's numbers are not finite.

    What costs time is done for the boxes that reach the threshold alone, which are few of thousands.
    """
    table = parts[0].T if output.transposed else parts[0]
    given: outputs.Array | None = None  # the class of each box, where the graph says it
    numbers = table  # one for each class of each box, where it doesn't
    if output.row == "box score class":
        scores, given = table[:, 4], table[:, 5]
    elif output.classes is not None:
        scores, given = parts[1].reshape(-1), parts[2].reshape(-1)
    else:
        numbers = _numbers(output, table, parts)
        scores = _probabilities(output, numbers)
        if output.row == "box objectness classes":
            scores = scores * table[:, 4]
    if not outputs.below_infinity(scores):
        return None
    kept = np.flatnonzero(scores >= output.score_threshold)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    classes = _classes(output, numbers[kept]) if given is None else _named(output, given[kept])
    if output.background is not None:
        real = classes != output.labels.index(output.background)
        kept, classes = kept[real], classes[real]
    corners = _corners(output.box, table[kept, :4].astype(np.float32))
    return Candidates(corners, scores[kept], classes) if np.isfinite(corners).all() else None


def _numbers(
    output: manifests.Detection, table: outputs.Array, parts: Sequence[outputs.Array]
) -> outputs.Array:
    """The number of each class of each box: `[boxes, classes]`."""
    if output.row == "box":
        return parts[1].reshape(len(table), len(output.labels))
    return table[:, 4 if output.row == "box classes" else 5 :]


def _probabilities(output: manifests.Detection, numbers: outputs.Array) -> outputs.Array:
    """The probability of each box's best class that is one."""
    best: outputs.Array = numbers[:, _foreground(output)].max(axis=1)
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which is told
        if output.logits == "sigmoid":
            best = (1 + np.tanh(best / 2)) / 2
        elif output.logits == "softmax":
            top = numbers.max(axis=1, keepdims=True)
            best = np.exp(best - top[:, 0]) / np.exp(numbers - top).sum(axis=1)
    return best


def _classes(output: manifests.Detection, numbers: outputs.Array) -> outputs.Array:
    """The best class that is one."""
    columns = _foreground(output)
    places: outputs.Array = numbers[:, columns].argmax(axis=1)
    return places if isinstance(columns, slice) else np.array(columns, np.intp)[places]


def _foreground(output: manifests.Detection) -> slice | list[int]:
    """The columns of the classes that mean that something is there."""
    if output.background is None:
        return slice(None)
    return [place for place, label in enumerate(output.labels) if label != output.background]


def _named(output: manifests.Detection, numbers: outputs.Array) -> outputs.Array:
    """The graph's own numbers of classes, each of which must have a label."""
    classes = numbers.astype(np.intp)
    if classes.size and not (classes.min() >= 0 and classes.max() < len(output.labels)):
        strange = classes[(classes < 0) | (classes >= len(output.labels))][0]
        raise outputs.UnexpectedOutput(
            f"output {output.name!r} gives class {strange}, and its {len(output.labels)} labels are numbered "
            "from 0: correct the manifest's labels"
        )
    return classes


def _corners(form: str, boxes: outputs.Array) -> outputs.Array:
    """The boxes, which may be changed, as left, top, right and lower edge."""
    if form == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if form == "cxcywh":
        boxes[:, :2] -= boxes[:, 2:] / 2
    if form != "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _check(output: manifests.Detection, tensors: Sequence[outputs.Array], count: int) -> None:
    """UnexpectedOutput unless the tensors fit one another and the manifest."""
    first = tensors[0]
    row = first.shape[1 if output.transposed else 2] if first.ndim == 3 else None
    if row != output.width or len(first) != count:
        item = ("boxes", output.width)[:: -1 if output.transposed else 1]
        raise outputs.UnexpectedOutput.of(output.name, first, (count, *item))
    boxes = first.shape[2 if output.transposed else 1]
    for name, tensor in zip(output.tensors[1:], tensors[1:], strict=True):
        single = output.classes is not None or len(output.labels) == 1
        needed = (count, boxes) if single else (count, boxes, len(output.labels))
        if tensor.shape != needed and tensor.shape != (*needed, 1):
            raise outputs.UnexpectedOutput.of(name, tensor, needed)
