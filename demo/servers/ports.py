"""Free TCP ports for servers of our own."""

import itertools
import random
import socket

from demo.servers.errors import StartFailed

HOST = "127.0.0.1"

# Below 32768, where Linux begins to hand out ports to outgoing connections: a port from that range may be
# taken by any client between a server's stop and its restart.
RANGE = range(10_000, 32_768)
TRIES = 200


_order = itertools.cycle(random.sample(RANGE, len(RANGE)))


def keep_to(number: int, count: int) -> None:
    """Draw from one of `count` shares of `RANGE` from now on, the one at `number`, from 0.

    Processes that keep to different shares never draw the same port.
    """
    global _order
    share = RANGE[number::count]
    _order = itertools.cycle(random.sample(share, len(share)))


def free() -> int:
    """A port that nothing listens on at this moment; none is drawn again before all others were.

    So it stays the caller's own, bound or not, among all that this process draws. Another process may take
    it before the caller binds it; `Server.start` then tries the next one.
    """
    for port in itertools.islice(_order, TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise StartFailed(f"no free port among {TRIES} tried between {RANGE.start} and {RANGE.stop - 1}")
