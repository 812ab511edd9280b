"""What an agent knows of its hub: whether it can be reached, and which of our tasks it holds."""

from __future__ import annotations

import time

HEARD_WITHIN = 3
"""Heartbeats: a hub that answered none of so many is taken to be away, whatever the link says."""


class Hub:
    """The hub, as seen from here."""

    def __init__(self, *, there: bool, heartbeat_s: float) -> None:
        """`there`: this agent has an uplink at all."""
        self.there = there
        self.handed_over: set[bytes] = set()
        """Tasks of ours that are with the hub, or on their way to it."""
        self._heartbeat_s = heartbeat_s
        self._linked = False
        self._heard = float("-inf")
        self._lost = time.monotonic()
        self._linked_at = 0.0

    @property
    def link_up_s(self) -> float:
        """For how long the link to the cloud's broker has been connected; 0 while it is not."""
        return time.monotonic() - self._linked_at if self._linked else 0.0

    @property
    def reachable(self) -> bool:
        """The link is up and the hub has answered of late: work may be handed over to it."""
        return self._linked and time.monotonic() - self._heard < HEARD_WITHIN * self._heartbeat_s

    @property
    def away_s(self) -> float:
        """For how long it has not been reachable; 0 while it is."""
        if self.reachable:
            return 0.0
        since = self._lost if not self._linked else max(self._heard, self._lost)
        return time.monotonic() - since

    def heard(self) -> None:
        """Something came from it."""
        self._heard = time.monotonic()

    def link_changed(self, connected: bool) -> None:
        self._linked = connected
        if connected:
            self._linked_at = time.monotonic()
        self._lost = time.monotonic()
