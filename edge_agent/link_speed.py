"""How fast the link from the hub is, seen in passing: nothing is sent to find out.

A message says when it was sent, and its arrival is seen here. The difference holds the offset of two clocks
and the way's latency, which are the same for all messages, and the time that its bytes took, which is not:
what a large one took longer than the quickest is its bytes' alone. Small ones come often enough: every
heartbeat is answered.
"""

from __future__ import annotations

from typing import Final

LARGE: Final = 16 << 10
"""Bytes from which on a batch tells something of the speed."""
LEAST_S: Final = 0.001
"""A difference below this is noise: the link is at least so fast, and how fast does not matter."""
DRIFT: Final = 100e-6
"""Seconds by which two clocks may part in a second: so fast is the quickest message forgotten."""
GAIN: Final = 0.2
"""Of a new measure in the mean."""


class LinkSpeed:
    """Bytes a second from the hub to here, averaged over large batches."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """0 until a large batch has come."""
        self._quickest_s: float | None = None
        """Transit of the quickest message, clock offset included."""
        self._at = 0.0
        """When the last message was here, by our wall clock (s)."""

    def arrived(self, size: int, sent_us: int, received_us: int) -> None:
        """A message of `size` bytes: sent by the hub's wall clock, received by ours; 0: not known."""
        if not sent_us:
            return
        sent, now, before = sent_us / 1e6, received_us / 1e6, self._at
        if self._quickest_s is not None:
            self._quickest_s += DRIFT * max(0.0, now - before)
        self._at = now
        if self._quickest_s is None or now - sent < self._quickest_s:
            self._quickest_s = now - sent
        if size >= LARGE:
            # One that was sent while the one before it was on its way began when that had arrived.
            took_s = max(LEAST_S, now - max(sent + self._quickest_s, before))
            # Of times and not of speeds: one that was quick by chance must not outweigh ten that were slow.
            mean = 1.0 / self.bytes_per_s if self.bytes_per_s else took_s / size
            self.bytes_per_s = 1.0 / (mean + GAIN * (took_s / size - mean))
