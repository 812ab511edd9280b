"""The words that `backhaul` understands, and the help that teaches them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

DEFAULT_HUB: Final = "http://127.0.0.1:8080"
WAIT_S: Final = 300.0

EXAMPLES: Final = """\
examples:
  backhaul demo                                        the whole system on this machine
  backhaul submit part.png --model surface-defects --wait
  backhaul submit line4/*.jpg --model surface-defects --priority 8 --deadline 30s
  backhaul tasks --state QUEUED --watch
  backhaul results --model surface-defects --label scratch
  backhaul results --since 2026-01-01 --arrow january.arrows
  backhaul fleet --json | jq '.sites[].agents[] | select(.status != "online")'
  backhaul drain lyon-press/press-a

`backhaul COMMAND --help` tells more. The hub is found by --hub or BACKHAUL_HUB.
"""

Add: TypeAlias = Callable[..., argparse.ArgumentParser]
"""Adds a command: its name, what it does, and more about it."""


def parser() -> argparse.ArgumentParser:
    """Reads a command line into `command`, `hub` (None: not said), `json` and the command's own words."""
    made = argparse.ArgumentParser(
        prog="backhaul",
        description="Submit work to a Backhaul hub, follow it, and look after the fleet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_everywhere()],
    )
    made.set_defaults(hub=None, json=False, watch=False)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, does: str, more: str = "") -> argparse.ArgumentParser:
        text = f"{does[0].upper()}{does[1:]}. {more}".strip()
        return commands.add_parser(name, help=does, description=text, parents=[_everywhere()])

    _add_submit(add)
    _add_tasks(add)
    _add_results(add)
    _add_changes(add)
    _add_fleet(add)
    commands.add_parser(
        "demo", help="the whole system on this machine, with simulated cameras", add_help=False
    )
    return made


def _everywhere() -> argparse.ArgumentParser:
    """What may stand before a command and behind it; made anew for each, for parsers change their parents."""
    made = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    made.add_argument("--hub", metavar="URL", help=f"address of the hub [BACKHAUL_HUB, else {DEFAULT_HUB}]")
    made.add_argument("--json", action="store_true", help="JSON for scripts, one document a line")
    return made


def _add_submit(add: Add) -> None:
    submit = add(
        "submit",
        "submit files as tasks, one each",
        "A file is a PNG or JPEG image, a JSON request, or an Arrow stream of rows. It has an idempotency "
        "key and is sent again until the hub has answered, so that it is neither lost nor doubled.",
    )
    submit.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    submit.add_argument("--model", metavar="NAME[@VERSION]", help="the model; a JSON file may name it itself")
    submit.add_argument("--version", help="its version, if not in --model")
    submit.add_argument(
        "--priority", type=int, choices=range(10), metavar="0..9", help="a higher one goes first [5]"
    )
    submit.add_argument("--queue", help="the fair-share class")
    submit.add_argument("--device", help="the device it is of")
    submit.add_argument(
        "--deadline",
        dest="deadline_ms",
        type=milliseconds,
        metavar="TIME",
        help="how long from now the answer is of use: 500ms, 30s, 5m",
    )
    submit.add_argument(
        "--timeout", dest="timeout_ms", type=milliseconds, metavar="TIME", help="how long one attempt may run"
    )
    submit.add_argument("--max-attempts", type=int, metavar="N", help="attempts that may fail [3]")
    submit.add_argument("--key", help="idempotency key, of a single file")
    _add_wait(submit, "wait for the results")


def _add_tasks(add: Add) -> None:
    tasks = add("tasks", "list tasks, newest first")
    tasks.add_argument("--state", type=str.upper, help="QUEUED, PROCESSING, COMPLETED or TERMINATED")
    tasks.add_argument("--reason", help="why TERMINATED: cancelled, expired, exhausted, not_retriable")
    tasks.add_argument("--queue", help="of this fair-share class")
    _add_watch(tasks)
    _add_common_filters(tasks)
    task = add("task", "all about a task: its attempts and its results")
    task.add_argument("ids", nargs="+", metavar="ID")
    _add_wait(task, "wait until it has ended")


def _add_results(add: Add) -> None:
    results = add("results", "list results, newest first, or save them as Arrow")
    results.add_argument("--agent", help="of agents of this name")
    results.add_argument("--version", help="of this version of the model")
    results.add_argument("--label", help="with this label")
    results.add_argument(
        "--outcome", choices=("ok", "failed", "expired", "cancelled"), help="with this outcome"
    )
    results.add_argument("--since", type=instant, metavar="WHEN", help="2026-01-31 or 2026-01-31T08:00, UTC")
    results.add_argument("--until", type=instant, metavar="WHEN", help="before this instant")
    results.add_argument(
        "--arrow", type=Path, metavar="FILE", help="save all of them, without limit, as an Arrow IPC stream"
    )
    _add_common_filters(results)


def _add_changes(add: Add) -> None:
    cancel = add("cancel", "end tasks that are queued or running")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    retry = add("retry", "run dead letters again", "`backhaul tasks --state TERMINATED` lists them.")
    retry.add_argument("ids", nargs="+", metavar="ID")


def _add_fleet(add: Add) -> None:
    _add_watch(add("fleet", "sites, agents and their ledgers"))
    drain = add("drain", "give an agent no more of the hub's tasks", "It goes on serving its devices.")
    drain.add_argument("agent", metavar="SITE/NAME")
    resume = add("resume", "give an agent the hub's tasks again")
    resume.add_argument("agent", metavar="SITE/NAME")


def _add_common_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="of this model")
    command.add_argument("--device", help="of this device")
    command.add_argument("--site", help="of this site")
    command.add_argument("--limit", type=int, default=50, help="so many at most [50]")


def _add_watch(command: argparse.ArgumentParser) -> None:
    command.add_argument("--watch", action="store_true", help="keep looking until interrupted")


def _add_wait(command: argparse.ArgumentParser, does: str) -> None:
    command.add_argument(
        "--wait",
        nargs="?",
        const=WAIT_S,
        type=seconds,
        metavar="TIME",
        help=f"{does}, for TIME at most [{WAIT_S:.0f}s]; it stands after the other words",
    )


def milliseconds(text: str) -> int:
    """A duration such as 500ms, 30s, 5m or 2h; a bare number is of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 500ms, 30s, 5m or 2h")
    return round(float(found[1]) * {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}[found[2] or "s"])


def seconds(text: str) -> float:
    return milliseconds(text) / 1000


def instant(text: str) -> str:
    """A day or an instant in ISO 8601; one without an offset is of UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no instant: write 2026-01-31 or 2026-01-31T08:00"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat()
