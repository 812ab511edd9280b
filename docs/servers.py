"""The servers that the quickstart needs, on this machine alone, until SIGTERM or Ctrl-C.

    python docs/servers.py DIRECTORY --site-broker 18831 --cloud-broker 18832 --postgres 15432 --valkey 16379

Two brokers (the site's and the cloud's), PostgreSQL and Valkey, with their files in DIRECTORY. They take no
passwords and listen on the loopback interface: for trying things out, and for nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from demo import servers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python docs/servers.py")
    parser.add_argument("directory", type=Path, help="for the files of all servers")
    for name in ("site-broker", "cloud-broker", "postgres", "valkey"):
        parser.add_argument(f"--{name}", type=int, metavar="PORT", help="its port; without it, a free one")
    given = parser.parse_args(argv)
    try:
        asyncio.run(_serve(given))
    except servers.ServerError as error:
        print(f"servers: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(given: argparse.Namespace) -> None:
    """Start all, say where they are, and stop them again."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    home: Path = given.directory
    async with contextlib.AsyncExitStack() as stack:
        site = servers.Mosquitto(home / "site-broker", port=given.site_broker)
        cloud = servers.Mosquitto(home / "cloud-broker", port=given.cloud_broker)
        postgres = servers.Postgres(home / "postgres", port=given.postgres)
        valkey = servers.Valkey(home / "valkey", port=given.valkey)
        for server in (site, cloud, postgres, valkey):
            await stack.enter_async_context(server)
        print(f"the site's broker    mqtt://{site.host}:{site.port}")
        print(f"the cloud's broker   mqtt://{cloud.host}:{cloud.port}")
        print(f"PostgreSQL           {postgres.dsn}")
        print(f"Valkey               {valkey.url}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
