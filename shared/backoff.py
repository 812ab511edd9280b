"""How long to wait before trying again: exponential back-off with full jitter.

A fleet that lost its broker at one instant must not come back at one instant. Of the ways to spread the
tries, full jitter does the least work and finishes almost first: see Marc Brooker, "Exponential Backoff
And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import math
import random

_DOUBLINGS = 64
"""More doublings than any cap needs; without an end, the power would overflow a float at 1,024."""


def full_jitter(attempt: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Seconds to wait after failure number `attempt`, the first being 0.

    Uniform between 0 and the lesser of `cap_s` and `base_s` · 2^`attempt`.
    """
    return rng.uniform(0.0, min(cap_s, math.ldexp(base_s, min(attempt, _DOUBLINGS))))


class Backoff:
    """The waits of one party that tries again and again.

    `base_s`: the bound of the first wait, `cap_s`: of any wait, both in seconds. `stable_s`: how long a
    success must hold to be one, by default `cap_s`. What fails again sooner than that goes on where it was: a
    broker that accepts and at once drops everyone is not helped by tries from the beginning.
    """

    def __init__(
        self,
        base_s: float = 1.0,
        cap_s: float = 60.0,
        rng: random.Random | None = None,
        *,
        stable_s: float | None = None,
    ) -> None:
        if not 0.0 < base_s <= cap_s:
            raise ValueError(
                f"back-off from {base_s:g} to {cap_s:g} s: the base must be above 0, the cap not below it"
            )
        self._base_s = base_s
        self._cap_s = cap_s
        self._stable_s = cap_s if stable_s is None else stable_s
        self._rng = rng or random.Random()
        self._attempt = 0

    def next(self) -> float:
        """Seconds to wait before the next try."""
        delay = full_jitter(self._attempt, self._base_s, self._cap_s, self._rng)
        self._attempt += 1
        return delay

    def succeeded(self, after_s: float) -> None:
        """The last try succeeded and held for `after_s` seconds; if that was long enough, begin anew."""
        if after_s >= self._stable_s:
            self._attempt = 0
