"""What can go wrong with an embedded server."""


class ServerError(Exception):
    """The root of this package's errors."""


class Missing(ServerError):
    """A program is not on this machine. The message is one line: what is missing and how to get it."""


class StartFailed(ServerError):
    """A process ended, or was not ready in time. The message ends with the tail of its log."""
