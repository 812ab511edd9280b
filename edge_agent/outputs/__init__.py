"""What each kind of output says of an item; `edge_agent.postprocess` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DECIMALS: Final = 6
"""Of scores in the JSON; `Prediction.score` is the graph's own."""


class UnexpectedOutput(ValueError):
    """An output is not of the shape that the manifest promises."""

    @classmethod
    def of(cls, name: str, array: Array, needed: Sequence[Any]) -> UnexpectedOutput:
        return cls(
            f"output {name!r} has shape {list(array.shape)}, and [{', '.join(map(str, needed))}] is needed "
            f"for {needed[0]} items: correct the manifest's outputs"
        )


class Reading(NamedTuple):
    """What one output says of one item. None takes its place where the graph's numbers are not finite."""

    label: str | None
    score: float | None
    value: Any
    """What stands in the JSON."""


def below_infinity(numbers: Array) -> bool:
    """Whether all are numbers, and none is infinitely large."""
    return bool((numbers < np.inf).all())
