"""The command `backhaul demo`: the whole system on one machine, and proof that its books balance."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from demo import phases, report, rollouts, servers, show, system, view

BALANCED: Final = 0
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130
EPILOG: Final = """\
It starts PostgreSQL, Valkey, three MQTT brokers, the hub, two plants and a pool of the cloud, each an agent,
all on free ports of this machine. Simulated cameras publish pictures of machined metal; the agents classify
them with a small neural network and reply. Then

  a burst at plant-a   is more than it can do in time: the rest overflows to the pool and to plant-b;
  plant-b is cut off   from the cloud: its cameras go on and get their replies;
  the link is healed   and what was done meanwhile arrives in the cloud.

At the end every job that a camera published is looked up in PostgreSQL.

  backhaul demo                                            a minute to watch, with a dashboard
  backhaul demo --duration 600 --rate 30                   the same, ten times
  backhaul demo --duration 30 --headless --report report.json
  backhaul demo --keep /tmp/demo                           look at settings, journals and logs afterwards
  backhaul demo --rollouts                                 new versions of the model instead: one is rolled
                                                           out, one is stopped by its gate, and one is taken
                                                           back by a plant that is cut off

Exit status: 0 if the books balance (nothing lost, nothing twice, every job replied to, every ledger
complete), 1 if not or if something failed, 2 for a wrong argument, 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = _parser().parse_args(argv)
    try:
        phases.plan(given.duration, *system.SITES)
        home = _home(given.keep)
    except (ValueError, OSError) as wrong:
        print(f"backhaul demo: {wrong}", file=sys.stderr)
        return WRONG
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    console = Console(stderr=given.json)  # with --json, standard output is the report's alone
    status = FAILED
    try:
        status = _run(home, given, console)
    finally:
        if given.keep is None and status != FAILED:
            shutil.rmtree(home, ignore_errors=True)
    if given.keep is not None or status == FAILED:
        _print(console, f"settings, journals and logs are in {home}")
    return status


def _run(home: Path, given: argparse.Namespace, console: Console) -> int:
    """Play in `home`, tell the outcome, and clear everything away but files."""
    try:
        with asyncio.Runner() as runner:
            outcome = runner.run(_play(home, given, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        return INTERRUPTED
    except (servers.ServerError, show.Failed, rollouts.Failed) as failure:
        _print(console, f"backhaul demo: {failure}")
        return FAILED
    return FAILED if outcome.problems else BALANCED


async def _play(home: Path, given: argparse.Namespace, console: Console) -> report.Report | rollouts.Outcome:
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    console.print("starting PostgreSQL, Valkey, brokers, hub and agents …")
    script = show.Script(given.duration, given.rate, given.burst, seed=given.seed)
    if given.rollouts:
        return await _play_rollouts(home, given, console)
    async with system.System(home) as whole:
        _print(console, f"dashboard: {whole.dashboard}")
        with view.opened(console, whole.dashboard, headless=given.headless) as screen:
            outcome = await show.Show(whole, script, screen).run()
        if given.report is not None:
            given.report.write_bytes(report.dumps(outcome))
        if given.json:
            sys.stdout.write(report.dumps(outcome).decode())
        else:
            console.print(view.table(outcome))
        if outcome.problems:
            for log in show.suspects(outcome, whole):
                _print(console, show.tail(log))
    return outcome


async def _play_rollouts(home: Path, given: argparse.Namespace, console: Console) -> rollouts.Outcome:
    key = home / "key.pem"
    trusted = await rollouts.keygen(key)
    async with system.System(home, trusted_key=trusted) as whole:
        _print(console, f"dashboard: {whole.dashboard}")
        outcome = await rollouts.Rollouts(whole, key, view.Lines(console).say).run()
        told = msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n"
        if given.report is not None:
            given.report.write_bytes(told)
        if given.json:
            sys.stdout.write(told.decode())
        else:
            console.print(view.rollouts(outcome))
    return outcome


def _home(keep: Path | None) -> Path:
    """The directory for everything, empty. Raises ValueError or OSError when `keep` cannot be it."""
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="backhaul-demo-"))
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise ValueError(f"{keep} is not empty: name a new directory")
    return keep.resolve()


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backhaul demo",
        description="Run the whole of Backhaul on this machine, and prove that nothing is lost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--duration",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that the cameras publish (default 60)",
    )
    parser.add_argument(
        "--rate", type=_positive, default=20.0, metavar="N", help="jobs a second at each site (default 20)"
    )
    parser.add_argument(
        "--burst", type=_count, metavar="N", help="jobs of a burst (default: 3 s of what the site can do)"
    )
    parser.add_argument("--rollouts", action="store_true", help="play three rollouts instead, in a minute")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures (default 1)")
    parser.add_argument("--headless", action="store_true", help="plain lines instead of a live picture")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there, as JSON")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep settings, journals and logs in DIR")
    return parser


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
