"""Free TCP ports for servers of our own."""

import random
import socket

from demo.servers.errors import StartFailed

HOST = "127.0.0.1"

# Below 32768, where Linux begins to hand out ports to outgoing connections: a port from that range may be
# taken by any client between a server's stop and its restart.
RANGE = range(10_000, 32_768)
TRIES = 200


def free() -> int:
    """A port of `RANGE` that nothing listens on at this moment.

    Another process may take it before the caller binds it; `Server.start` then tries the next one.
    """
    for port in random.sample(RANGE, TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise StartFailed(f"no free port among {TRIES} tried between {RANGE.start} and {RANGE.stop - 1}")
