"""What counts can tell: how far a measured value may be from the true one by chance alone.

Gates use it so that a version is neither blamed nor trusted for a handful of results.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from shared.rollouts import measures

_Z: Final = 1.959963984540054
"""The standard normal quantile of a two-sided 95 % interval."""
_RISK: Final = 0.05


class Interval(NamedTuple):
    """Where the true value is, with 95 % confidence."""

    low: float
    high: float


def wilson(count: int, total: int) -> Interval:
    """The interval of a proportion of which `count` in `total` were seen; (0, 1) where nothing was.

    Good for few observations and for proportions near 0 and 1, where counting standard deviations is not.
    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of
    the American Statistical Association 22 (1927), 209-212; compared with others by L. D. Brown, T. T. Cai,
    A. DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 16 (2001), 101-133.
    """
    if not total:
        return Interval(0.0, 1.0)
    share, weight = count / total, _Z**2 / total
    centre = share + weight / 2
    reach = _Z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return Interval(max(0.0, (centre - reach) / (1 + weight)), min(1.0, (centre + reach) / (1 + weight)))


def quantile(of: measures.Measures, q: float) -> Interval | None:
    """The interval of the run time's quantile `q`, in microseconds; None before the first result.

    Free of any distribution: of n runs those below the true quantile are binomial (n, q), so it lies between
    the ranks n q -+ z sqrt(n q (1 - q)), in the normal approximation. Source: H. A. David, H. N. Nagaraja,
    "Order Statistics", 3rd ed. 2003, section 7.1.
    """
    runs = sum(of.run_us)
    reach = _Z * math.sqrt(q * (1 - q) / runs) if runs else 0.0
    low, high = of.quantile(max(0.0, q - reach)), of.quantile(min(1.0, q + reach))
    return None if low is None or high is None else Interval(low, high)


class Drift(NamedTuple):
    """How differently two versions label, and how far chance alone brings two that label alike."""

    seen: float
    """Total variation distance of what was counted, 0 to 1."""
    by_chance: float
    """What it would be on average if both labelled alike."""
    at_most_by_chance: float
    """What it would then be below, with 95 % confidence."""

    @property
    def likely(self) -> float:
        """The seen distance less what chance adds: they add up about as squares, like independent errors."""
        return math.sqrt(max(0.0, self.seen**2 - self.by_chance**2))


def drift(one: measures.Measures, other: measures.Measures) -> Drift | None:
    """The distance of the labels of two versions; None if either has said nothing.

    Few results on many labels look far apart even if both versions are the same. If a share p of the n + m
    results has a label, then the difference of its shares in the two is about normal with the variance
    p (1 - p) (1/n + 1/m), and its mean size sqrt(2 / pi) times the root of that. One result moves the
    distance by 1/n or 1/m at most, so it is above its mean by sqrt(ln(1 / risk) / 2 (1/n + 1/m)) with that
    risk at most (C. McDiarmid, "On the method of bounded differences", Surveys in Combinatorics 1989).
    """
    seen = one.drift(other)
    if seen is None:
        return None
    mine, theirs = measures.comparable(one.labels, other.labels)
    n, m = sum(mine.values()), sum(theirs.values())
    spread = 1 / n + 1 / m
    shares = ((mine.get(key, 0) + theirs.get(key, 0)) / (n + m) for key in mine | theirs)
    by_chance = sum(math.sqrt(2 / math.pi * share * (1 - share) * spread) for share in shares) / 2
    return Drift(seen, by_chance, by_chance + math.sqrt(math.log(1 / _RISK) / 2 * spread))
