"""What becomes of one item: a prediction, or a reason why there is none.

Nothing heavy is imported here, so that the journal and the uplink may use these words freely.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec


class Failure(enum.StrEnum):
    """Whose fault it was that an item has no prediction."""

    INVALID_INPUT = "invalid_input"
    """The item itself cannot be used: it will fail again wherever it runs."""

    INFERENCE_FAILED = "inference_failed"
    """The model or its runtime failed on it: another attempt may succeed."""

    NOT_RUN = "not_run"
    """It was not tried: one before it in its stream is to be tried again first."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """What the model says about one item.

    `label` and `score` come from the first output that has them (a classification or a score) and
    are None where the manifest asks for raw outputs alone; `score` is the graph's own number.
    `output` is compact JSON, as the kind of the output says (see `postprocess`).
    """

    label: str | None
    score: float | None
    output: bytes | None
    raw: Mapping[str, Any] | None = None
    """The graph's own numbers: an array for each of its outputs, for tasks that are answered with them."""
    state: tuple[Any, ...] | None = None
    """What the graph carries on to the next item of its stream, on its way there."""


class ItemFailed(msgspec.Struct, frozen=True, gc=False):
    """Why one item has no prediction; `reason` is a sentence for the device's engineer."""

    reason: str
    kind: Failure = Failure.INVALID_INPUT


Outcome = Prediction | ItemFailed
