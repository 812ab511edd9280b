"""How far the agent's wall clock is from the hub's, and how surely that is known.

Each acknowledgement echoes when its batch was sent: the hub's clock was read somewhere between then
and now, so its offset lies within half the round trip of the middle (Cristian, 1989, "Probabilistic
clock synchronization"). The surest of the recent measures is kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

KEEP_S = 600.0
"""A measure older than this gives way to any newer one: clocks drift."""


def wall_us() -> int:
    """The wall clock, in microseconds since 1970. Data, never an order."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class Offset:
    """The hub's clock minus ours, in microseconds."""

    offset_us: int | None = None
    error_us: int | None = None
    _taken: float = 0.0

    def measure(self, sent_us: int, hub_us: int, received_us: int, now: float) -> None:
        """One round trip: sent and received by our clock, `hub_us` by the hub's; `now` monotonic."""
        error = (received_us - sent_us) // 2
        if error < 0 or not sent_us or not hub_us:
            return  # our clock was set in between, or the message carries no times
        if self.error_us is None or error <= self.error_us or now - self._taken > KEEP_S:
            self.offset_us = hub_us - (sent_us + received_us) // 2
            self.error_us = error
            self._taken = now
