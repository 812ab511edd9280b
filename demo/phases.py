"""What happens in the demo, and when."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

CYCLE_S: Final = 60.0
"""A longer demo is a round of about so many seconds, again and again."""
LONGEST_CUT_S: Final = 10.0
SHORTEST_S: Final = 8.0
"""Of a whole round: below it, no phase would show anything."""


class Act(enum.Enum):
    """What a phase shows."""

    STEADY = "steady"
    BURST = "burst"
    CUT = "cut"
    DRAIN = "drain"


class Phase(NamedTuple):
    """A stretch of the demo. `title` says in a few words what happens, `watch` what there is to see."""

    act: Act
    seconds: float
    title: str
    watch: str


def plan(duration_s: float, busy: str, remote: str) -> list[Phase]:
    """The phases of a demo of `duration_s` seconds: `busy` is the site that gets more work than it can do,
    `remote` the one whose link is cut.

    Raises ValueError when there is not time enough for all of them.
    """
    if duration_s < SHORTEST_S:
        raise ValueError(f"{duration_s:g} s are too short to show anything: take {SHORTEST_S:g} s or more")
    rounds = max(1, round(duration_s / CYCLE_S))
    return _round(duration_s / rounds, busy, remote) * rounds


def _round(seconds: float, busy: str, remote: str) -> list[Phase]:
    cut = min(LONGEST_CUT_S, seconds / 3)
    rest = seconds - cut
    return [
        Phase(
            Act.STEADY,
            rest * 0.25,
            "steady",
            "cameras publish, agents reply at once, results arrive in the cloud",
        ),
        Phase(
            Act.BURST,
            rest * 0.45,
            f"burst at {busy}",
            f"more than {busy} can do in time: the rest overflows to the pool and to {remote}",
        ),
        Phase(
            Act.CUT,
            cut,
            f"{remote} cut off",
            f"{remote} has no link to the cloud: its cameras get their replies all the same",
        ),
        Phase(
            Act.DRAIN,
            rest * 0.3,
            "healed",
            f"{remote} is back, and what it has done meanwhile arrives in the cloud",
        ),
    ]
