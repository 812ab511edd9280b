"""`backhaul rollout`: a model's new version, stage by stage, and what can be done about it."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from cloud_hub.operator import client, show, show_rollouts

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_S: Final = 1.0

STATUS: Final = {"completed": 0, "rolled_back": 1, "paused": 3}
"""The exit status of who looked on, by the state in which there is no more to be seen."""


def run(hub: client.Client, arguments: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit status."""
    return DOES[arguments.rollout](hub, arguments)


def _start(hub: client.Client, arguments: argparse.Namespace) -> int:
    name, _, behind = arguments.model.partition("@")
    version = behind or arguments.version
    if not version or (behind and arguments.version):
        raise client.Failed(
            f"say which version of {name} once: {name}@VERSION, as `backhaul models` lists them"
        )
    said = {
        "min_results": arguments.min_results,
        "soak_s": arguments.soak,
        "patience_s": arguments.patience,
        "on_fail": arguments.on_fail and arguments.on_fail.replace("-", "_"),
        "gates": arguments.gates,
    }
    found = hub.start_rollout(
        model=name,
        version=version,
        selector=arguments.where,
        stages=arguments.stages,
        **{key: value for key, value in said.items() if value is not None},
    )
    if arguments.watch:
        return _watch(hub, found["rollout_id"], arguments)
    return _tell(found, arguments)


def _list(hub: client.Client, arguments: argparse.Namespace) -> int:
    found = hub.rollouts(model=arguments.model, state=arguments.state)
    if arguments.json:
        print(show.line(found))
        return 0
    return _say(show_rollouts.rollouts(found["rollouts"]))


def _show(hub: client.Client, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return _watch(hub, _id(hub, arguments), arguments)
    found = hub.rollout(_id(hub, arguments))
    if arguments.json:
        print(show.line(found))
        return 0
    return _say(show_rollouts.rollout(found))


def _change(hub: client.Client, arguments: argparse.Namespace) -> int:
    rollout_id = _id(hub, arguments)
    stage = hub.rollout(rollout_id)["stage"] if arguments.rollout == "promote" else None
    return _tell(hub.change_rollout(rollout_id, arguments.rollout, arguments.reason, stage), arguments)


def _id(hub: client.Client, arguments: argparse.Namespace) -> str:
    """Which rollout is meant: one by its id, or the one of a model that is under way, else its last."""
    said: str = arguments.which
    try:
        return str(uuid.UUID(said))
    except ValueError:
        found = hub.rollouts(model=said)["rollouts"]
    if not found:
        raise client.Failed(
            f"{said!r} is neither an id nor a model with a rollout; `backhaul rollout` lists them"
        )
    newest: str = found[0]["rollout_id"]
    return newest


def _tell(found: client.Answer, arguments: argparse.Namespace) -> int:
    print(show.line(found) if arguments.json else show_rollouts.sentence(found))
    return 0


def _watch(hub: client.Client, rollout_id: str, arguments: argparse.Namespace) -> int:
    """Look on until the rollout ends or is paused; with --json, or into a pipe, a line for each step."""
    if arguments.json or not sys.stdout.isatty():
        return _follow(hub, rollout_id, arguments)
    from rich import live

    last = hub.rollout(rollout_id)
    with live.Live(console=show.console(), auto_refresh=False, screen=True) as shown:
        for last in _looks(hub, rollout_id):
            shown.update(show_rollouts.rollout(last), refresh=True)
    _say(show_rollouts.rollout(last))
    return STATUS[last["state"]]


def _follow(hub: client.Client, rollout_id: str, arguments: argparse.Namespace) -> int:
    told = 0
    last: client.Answer = {}
    for last in _looks(hub, rollout_id):
        for step in last["history"][told:]:
            print(show.line(step) if arguments.json else show_rollouts.step(step), flush=True)
        told = len(last["history"])
    return STATUS[last["state"]]


def _looks(hub: client.Client, rollout_id: str) -> Iterator[client.Answer]:
    """The rollout again and again, to where it ends or is paused. A hub that is away is waited for."""
    is_away = False
    while True:
        try:
            found = hub.rollout(rollout_id)
        except client.Failed as failed:
            if not failed.is_passing:
                raise
            if not is_away:
                print(f"backhaul: {failed} Waiting for it.", file=sys.stderr)
            is_away = True
        else:
            is_away = False
            yield found
            if found["state"] in STATUS:
                return
        time.sleep(REFRESH_S)


def _say(shown: RenderableType) -> int:
    show.console().print(shown)
    return 0


DOES: Final[dict[str, Callable[[client.Client, argparse.Namespace], int]]] = {
    "start": _start,
    "list": _list,
    "show": _show,
    "promote": _change,
    "pause": _change,
    "resume": _change,
    "rollback": _change,
}
