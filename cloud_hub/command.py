"""The command `cloud-hub`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloud_hub import settings
from shared import settings as files

EXAMPLE: Final = """\
a first hub.toml:

  database = "postgresql://backhaul@db.example/backhaul"
  redis = "redis://cache.example:6379/0"   # may be emptied at any moment; may be left out

  [broker]                                 # of the cloud, where the agents connect
  host = "127.0.0.1"
  port = 1883

  [http]                                   # REST, metrics and the dashboard
  host = "127.0.0.1"
  port = 8080
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = _parser().parse_args(argv)
    try:
        status: int = given.act(given)
        sys.stdout.flush()
    except files.BadSettings as error:
        print(f"cloud-hub: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-hub",
        description="Takes in what the edges send, places work on the fleet and answers REST.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the hub until SIGTERM or Ctrl-C; migrates first")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="the hub's settings, TOML")
    serve.add_argument("--verbose", action="store_true", help="log more")
    serve.set_defaults(act=_serve)

    migrate = commands.add_parser("migrate", help="bring the database to this program's version")
    migrate.add_argument("--config", type=Path, required=True, metavar="FILE")
    migrate.add_argument("--json", action="store_true", help="the version, for scripts")
    migrate.set_defaults(act=_migrate)
    return parser


def _serve(given: argparse.Namespace) -> int:
    policy = settings.load(given.config)
    _log(logging.DEBUG if given.verbose else logging.INFO)
    import uvloop

    from cloud_hub import hub  # with FastAPI and pyarrow, which the other commands do not need

    uvloop.run(hub.run(policy))
    return 0


def _migrate(given: argparse.Namespace) -> int:
    policy = settings.load(given.config)
    _log(logging.INFO)
    from cloud_hub.store import migrate, pool

    try:
        version = asyncio.run(migrate.migrate(policy.database))
    except migrate.NewerSchema as error:
        print(f"cloud-hub: {error}", file=sys.stderr)
        return 1
    except pool.UNAVAILABLE as error:
        print(f"cloud-hub: PostgreSQL at {policy.database} does not answer: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"version": version}) if given.json else f"the database is at version {version}")
    return 0


def _log(level: int) -> None:
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
