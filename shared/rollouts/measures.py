"""What is counted of one version while it is tried: results, failures, run times, labels, comparisons.

Everything adds up: the measures of an agent, a stage or a fleet are those of its parts, merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

PER_OCTAVE: Final = 9
"""Buckets in a doubling of run time: each is 8 % wide (2 to the power of 1/9 is 1.080)."""
BUCKETS: Final = 32 * PER_OCTAVE
"""From 1 microsecond to 71 minutes; what is shorter or longer is in the first or the last."""

MOST_LABELS: Final = 256
"""So many labels are counted by name; `OTHERS` and `UNLABELLED` are not among them."""
UNLABELLED: Final = "\x1funlabelled"
"""The key of results without a label."""
OTHERS: Final = "\x1fothers"
"""The key of results whose label came when there were MOST_LABELS others."""


class Measures(msgspec.Struct, kw_only=True):
    """Counts of one version's results. JSON; the fields are the columns that the hub keeps.

    Only what the version ran counts, well or not: not what expired or was cancelled before.
    """

    items: int = 0
    """Results, those that failed included."""
    failed: int = 0
    run_us: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    """How many that did not fail took how long: bucket by bucket."""
    labels: dict[str, int] = {}
    """How many that did not fail said what."""
    compared: int = 0
    """Shadowed jobs with an outcome of both versions."""
    agreed: int = 0
    """Those of them with the same outcome and label."""

    def add(self, run_us: float, label: str | None, *, failed: bool = False) -> None:
        """Count one result: what running it took, in microseconds, and its first label."""
        self.items += 1
        if failed:
            self.failed += 1
            return
        self.run_us[bucket(run_us)] += 1
        self._count(UNLABELLED if label is None else label, 1)

    def compare(self, *, agreed: bool) -> None:
        """Count one shadowed job."""
        self.compared += 1
        self.agreed += agreed

    def merge(self, other: Measures) -> None:
        """Count all that `other` has counted, too."""
        self.items += other.items
        self.failed += other.failed
        self.run_us = [mine + theirs for mine, theirs in zip(self.run_us, other.run_us, strict=True)]
        for label, count in other.labels.items():
            self._count(label, count)
        self.compared += other.compared
        self.agreed += other.agreed

    @property
    def error_rate(self) -> float | None:
        """Failures per result, 0 to 1; None before the first result."""
        return self.failed / self.items if self.items else None

    @property
    def agreement(self) -> float | None:
        """Agreements per comparison, 0 to 1; None before the first."""
        return self.agreed / self.compared if self.compared else None

    def quantile(self, q: float) -> float | None:
        """Microseconds within which a share `q` of the results ran, to 4 %; None before the first.

        The nearest rank, and of its bucket the geometric middle.
        """
        rank = max(1, math.ceil(q * sum(self.run_us)))
        seen = 0
        for number, count in enumerate(self.run_us):
            seen += count
            if seen >= rank:
                return float(2 ** ((number + 0.5) / PER_OCTAVE))
        return None

    def drift(self, other: Measures) -> float | None:
        """How differently two versions label: total variation distance, 0 to 1; None if either said nothing.

        Half the sum of |p - q| over all labels: the largest difference between the two in the probability of
        any set of labels (D. A. Levin, Y. Peres, "Markov Chains and Mixing Times", 2nd ed. 2017, 4.1).
        """
        mine, theirs = comparable(self.labels, other.labels)
        ours, others = sum(mine.values()), sum(theirs.values())
        if not ours or not others:
            return None
        # In whole numbers, so that it is the same both ways and never above 1.
        apart = sum(abs(mine.get(key, 0) * others - theirs.get(key, 0) * ours) for key in mine | theirs)
        return apart / (2 * ours * others)

    def _count(self, label: str, count: int) -> None:
        if label not in self.labels and label not in (UNLABELLED, OTHERS) and self._is_full():
            label = OTHERS
        self.labels[label] = self.labels.get(label, 0) + count

    def _is_full(self) -> bool:
        return len(self.labels) - (UNLABELLED in self.labels) - (OTHERS in self.labels) >= MOST_LABELS


def bucket(us: float) -> int:
    """The bucket of a run that took `us` microseconds: floor(9 log2 us), within 0 and BUCKETS - 1."""
    return min(int(PER_OCTAVE * math.log2(us)), BUCKETS - 1) if us > 1 else 0


def comparable(one: Mapping[str, int], other: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Two counts of labels by the same keys: what one side may have among its OTHERS goes there on both.

    Without it a label that only one side had room for would look like a difference.
    """
    return _within(one, other), _within(other, one)


def _within(counts: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    if OTHERS not in other:
        return dict(counts)
    kept: dict[str, int] = {}
    for label, count in counts.items():
        key = label if label in other or label == UNLABELLED else OTHERS
        kept[key] = kept.get(key, 0) + count
    return kept
