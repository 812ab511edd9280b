"""The words of `backhaul rollout`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Add: TypeAlias = Callable[..., argparse.ArgumentParser]
Read: TypeAlias = Callable[[str], float]

STAGES = (
    "the way there, each stage AGENTS, TRAFFIC or AGENTS/TRAFFIC. AGENTS: internal (those with "
    "ring=internal), site=lyon, 5%%, seed:10%%. TRAFFIC: traffic:10%%, tag:group=beta, shadow, shadow:50%%"
)
GATE = "errors<=1%%, latency_p95<=1.5x, drift<=0.2 or agreement>=95%%; several: once each [these]"
WHERE = "the agents: those that have all these labels [all agents]"


def add(add_command: Add, everywhere: Callable[[], argparse.ArgumentParser], seconds: Read) -> None:
    """Add the command to a parser.

    `everywhere` makes what may stand behind any command; `seconds` reads a duration such as 10m.
    """
    rollout = add_command(
        "rollout",
        "rollouts: a model's new version, stage by stage, as far as its results allow",
        "`start` begins one, `show` tells how far it is and why; `backhaul rollout start --help` tells more.",
    )
    does = rollout.add_subparsers(dest="rollout", metavar="start|list|show|promote|pause|resume|rollback")
    rollout.set_defaults(rollout="list", model=None, state=None)

    def one(name: str, what: str, more: str = "") -> argparse.ArgumentParser:
        text = f"{what[0].upper()}{what[1:]}. {more}".strip()
        return does.add_parser(name, help=what, description=text, parents=[everywhere()])

    start = one(
        "start",
        "begin to bring agents from the version they serve to another",
        "The hub goes from stage to stage by itself, once each agent is ready, enough results are there and "
        "all gates hold; where a gate fails, all agents go back. After the last stage the new version is "
        "their target.",
    )
    start.add_argument("model", metavar="NAME[@VERSION]")
    start.add_argument("version", nargs="?", metavar="VERSION", help="the new one, if not behind the name")
    start.add_argument("--stages", required=True, type=_words, metavar="STAGE,…", help=STAGES)
    start.add_argument("--gate", dest="gates", action="append", metavar="GATE", help=GATE)
    start.add_argument("--where", default="", metavar="KEY=VALUE,…", help=WHERE)
    start.add_argument(
        "--min-results", type=int, metavar="N", help="results that a stage's gates are judged by [100]"
    )
    start.add_argument("--soak", type=seconds, metavar="TIME", help="a stage lasts at least so long [5m]")
    start.add_argument(
        "--patience", type=seconds, metavar="TIME", help="pause where a stage lasts longer [it waits on]"
    )
    start.add_argument(
        "--on-fail", choices=("roll-back", "pause"), help="what to do when a gate fails [roll-back]"
    )
    _add_watch(start, "then look on until it ends or is paused, as `show --watch` does")

    listed = one("list", "rollouts, newest first")
    listed.add_argument("--model", help="of this model")
    listed.add_argument("--state", help="running, paused, completed or rolled_back")

    show = one(
        "show",
        "how far a rollout is, what its gates say, and what was done why",
        "With --watch the status is 0 if it was completed, 1 if it was rolled back, 3 if it is paused.",
    )
    _add_which(show)
    _add_watch(show, "look on until it ends or is paused")
    for name, what in (
        ("promote", "go on to the next stage now, whatever the gates say"),
        ("pause", "stay as it is: nothing is judged until it is resumed"),
        ("resume", "go on with a paused one; the time of its stage begins anew"),
        ("rollback", "end it: all agents go back to the version before"),
    ):
        change = one(name, what)
        _add_which(change)
        change.add_argument("--reason", default="", metavar="TEXT", help="why, for its history")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _add_which(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "which",
        metavar="MODEL|ID",
        help="the model's rollout that is under way, else its last; or one by its id",
    )


def _add_watch(command: argparse.ArgumentParser, does: str) -> None:
    command.add_argument("--watch", action="store_true", help=does)
