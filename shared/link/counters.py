"""What has crossed a link since it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Sums over all connections of a link. Bytes are those of payloads."""

    connects: int = 0
    """Connections that the broker accepted, with all their subscriptions."""
    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    """Publications handed to a connection; those of QoS 1 may have been lost with it and published again."""
    bytes_out: int = 0
    dropped: int = 0
    """Publications of QoS 0 for which there was no connection, or none that took them fast enough."""
    unclaimed: int = 0
    """Messages that no subscription covers: it has just ended, or the broker kept an earlier program's
    session."""
