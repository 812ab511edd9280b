"""How fast the link from the hub is, seen in passing: nothing is sent to find out.

A message says when it was sent, and its arrival is seen here. The difference holds the offset of two clocks
and the way's latency, which are the same for all messages, and the time that its bytes took, which is not:
what a large one took longer than the quickest is its bytes' alone. Small ones come often enough: every
heartbeat is answered.
"""

from __future__ import annotations

import math
from typing import Final

LARGE: Final = 16 << 10
"""Bytes from which on a batch tells something of the speed."""
LEAST_S: Final = 0.001
"""A difference below this is noise: the link is at least so fast, and how fast does not matter."""
WINDOW_S: Final = 300.0
"""The quickest message of this window and the one before it counts: clocks drift, and are set."""
GAIN: Final = 0.2
"""Of a new measure in the mean."""


class LinkSpeed:
    """Bytes a second from the hub to here, averaged over large batches."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """0 until a large batch has come."""
        self._quickest_s = self._earlier_s = math.inf
        """Transit of the quickest message of this window and of the one before, clock offset included."""
        self._since = -math.inf
        """When this window began."""
        self._at = 0.0
        """When the last message was here, by a clock of ours that nobody sets (s)."""

    def arrived(self, size: int, sent_us: int, received_us: int) -> None:
        """A message of `size` bytes: sent by the hub's wall clock, 0: not known; received by our
        monotonic clock, for ours may be set."""
        if not sent_us:
            return
        sent, now, before = sent_us / 1e6, received_us / 1e6, self._at
        if now - self._since > WINDOW_S:
            self._earlier_s, self._quickest_s, self._since = self._quickest_s, math.inf, now
        self._at = now
        self._quickest_s = min(self._quickest_s, now - sent)
        if size >= LARGE:
            began = sent + min(self._quickest_s, self._earlier_s)
            # One that was sent while the one before it was on its way began when that had arrived.
            took_s = max(LEAST_S, now - max(began, before))
            # Of times and not of speeds: one that was quick by chance must not outweigh ten that were slow.
            mean = 1.0 / self.bytes_per_s if self.bytes_per_s else took_s / size
            self.bytes_per_s = 1.0 / (mean + GAIN * (took_s / size - mean))
