"""What can go wrong on a link."""

from __future__ import annotations


class LinkError(Exception):
    """The root of this package's errors."""


class LinkDown(LinkError):
    """There is no connection, or it ended before the broker acknowledged: try when it is back."""


class Refused(LinkError):
    """The broker said no to a connection, a subscription or a publication; `reason` is its word for it."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.reason = reason


class Unpublishable(LinkError, ValueError):
    """This publication can never be sent: a broker would drop the connection at every try. Set it aside."""


class PacketTooLarge(Unpublishable):
    """The packet would be larger than this broker takes."""


class NoRoom(LinkError):
    """As many publications are in flight as may be: wait for `room`."""
