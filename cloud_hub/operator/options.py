"""The words that `backhaul` understands, and the help that teaches them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from cloud_hub.operator import model_options, rollout_options

DEFAULT_HUB: Final = "http://127.0.0.1:8080"
WAIT_S: Final = 300.0
REASONS: Final = "cancelled, expired, exhausted, not_retriable, shed"

EXAMPLES: Final = """\
examples:
  backhaul demo                                        the whole system on this machine
  backhaul submit part.png --model surface-defects --wait
  backhaul submit line4/*.jpg --model surface-defects --priority 8 --deadline 30s
  backhaul tasks --state QUEUED --watch
  backhaul results --model surface-defects --label scratch
  backhaul results --since 2026-01-01 --arrow january.arrows
  backhaul fleet --json | jq '.sites[].agents[] | select(.status != "online")'
  backhaul why 01990d8a-6f2b-7c41-9d3e-5b8f0a1c2d3e      why it waits, or went where it went
  backhaul queues set archive --weight 0.5 --max-queued 100000 --when-full drop_lowest
  backhaul retry --reason exhausted --model surface-defects
  backhaul drain lyon-press/press-a --within 60s
  backhaul models push models/surface-defects --key release.pem
  backhaul models serve surface-defects@1.3.0 --where site=lyon-press
  backhaul rollout start surface-defects@1.4.0 --stages internal,5%,25%,100% --watch

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
    _add_queues(add)
    _add_fleet(add)
    model_options.add(add, _everywhere)
    rollout_options.add(add, _everywhere, seconds)
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
        "--priority",
        type=int,
        choices=range(10),
        metavar="0..9",
        help="a higher one goes first [its queue's, else 5]",
    )
    submit.add_argument("--queue", help="the fair-share class")
    submit.add_argument(
        "--selector",
        metavar="KEY=VALUE,…",
        help="run it only where all these labels are: site=lyon-press,gpu=h100",
    )
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
    tasks.add_argument("--reason", help=f"why TERMINATED: {REASONS}")
    tasks.add_argument("--queue", help="of this fair-share class")
    tasks.add_argument("--priority", type=int, choices=range(10), metavar="0..9", help="of this priority")
    _add_watch(tasks)
    _add_common_filters(tasks)
    task = add("task", "all about a task: its attempts and its results")
    task.add_argument("ids", nargs="+", metavar="ID")
    _add_wait(task, "wait until it has ended")
    why = add(
        "why",
        "why a task waits, or went where it went",
        "What it waits for and what stands before it; of each decision what it weighed and how it ended.",
    )
    why.add_argument("ids", nargs="+", metavar="ID")


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
    retry = add(
        "retry",
        "run dead letters again, by their ids or all of a filter",
        "`backhaul tasks --state TERMINATED` lists them. By a filter the cancelled ones are meant only by "
        "--reason cancelled.",
    )
    retry.add_argument("ids", nargs="*", metavar="ID")
    retry.add_argument("--reason", help=f"all that ended for this reason: {REASONS}")
    retry.add_argument("--model", help="all of this model")
    retry.add_argument("--queue", help="all of this fair-share class")
    retry.add_argument("--site", help="all that this site handed over")
    retry.add_argument("--limit", type=int, default=1000, help="so many of a filter at most [1000]")


def _add_queues(add: Add) -> None:
    queues = add(
        "queues",
        "queues: what waits and runs in each, their weights and limits",
        "`set` and `rm` change one; `backhaul queues set --help` tells what can be set.",
    )
    _add_watch(queues)
    queues.set_defaults(queues=None)
    does = queues.add_subparsers(dest="queues", metavar="set|rm")
    made = does.add_parser(
        "set",
        help="change settings of a queue; what is not said stays as it is",
        description="Change settings of a queue. What is not said stays as it is; `none` takes a limit away.",
        parents=[_everywhere()],
    )
    made.add_argument("name", metavar="NAME")
    made.add_argument("--weight", type=float, help="its share against the other queues' weights [1]")
    made.add_argument("--max-running", type=_limit(int), metavar="N", help="tasks that may run at one time")
    made.add_argument("--max-queued", type=_limit(int), metavar="N", help="tasks that may wait")
    made.add_argument(
        "--max-per-second", type=_limit(float), metavar="N", help="tasks taken from clients a second"
    )
    made.add_argument(
        "--default-priority", type=_limit(int), metavar="0..9", help="of tasks that name none [5]"
    )
    made.add_argument(
        "--when-full",
        choices=("reject", "drop_lowest"),
        help="refuse what comes, or let the lowest task in it give way [reject]",
    )
    removed = does.add_parser(
        "rm",
        help="forget a queue's settings; its tasks stay",
        description="Forget a queue's settings: it has weight 1 and no limits then. Its tasks stay.",
        parents=[_everywhere()],
    )
    removed.add_argument("name", metavar="NAME")


def _add_fleet(add: Add) -> None:
    _add_watch(add("fleet", "sites, agents and their ledgers"))
    drain = add(
        "drain",
        "give an agent no more of the hub's tasks",
        "It finishes what it holds, or puts it back after a time, and goes on serving its devices.",
    )
    drain.add_argument(
        "--within",
        type=seconds,
        metavar="TIME",
        help="what it still runs after this goes back into the queue, the items that are done kept",
    )
    cordon = add("cordon", "the same as drain, without a limit: what runs is left alone")
    resume = add("resume", "give an agent the hub's tasks again")
    undrain = add("undrain", "the same as resume")
    for one in (drain, cordon, resume, undrain):
        one.add_argument("agent", metavar="SITE/NAME")


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


_Number = TypeVar("_Number", int, float)


class NoLimit:
    """The word `none`: a limit that is to be taken away, as against one that is not spoken of."""


def _limit(kind: type[_Number]) -> Callable[[str], _Number | NoLimit]:
    """Reads a number of a kind, or `none`."""

    def read(text: str) -> _Number | NoLimit:
        return NoLimit() if text == "none" else kind(text)

    read.__name__ = "number"  # what argparse calls it when it cannot be read
    return read


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
