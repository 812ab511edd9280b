"""`backhaul`: the operator's command line. It knows the hub by its REST API alone."""

from __future__ import annotations

import argparse
import importlib
import mimetypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloud_hub.operator import client, options

if TYPE_CHECKING:
    from rich.console import RenderableType

AT_A_TIME: Final = 8
"""Files that are submitted and awaited at one time."""
REFRESH_S: Final = 1.0

SUFFIXES: Final = {".arrow": client.ARROW, ".arrows": client.ARROW, ".json": "application/json"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not done, 2 asked for wrongly."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["demo"]:
        return _demo(words[1:])
    arguments = options.parser().parse_args(words)
    try:
        with client.Client(arguments.hub or os.environ.get("BACKHAUL_HUB") or options.DEFAULT_HUB) as hub:
            return RUN[arguments.command](hub, arguments)
    except client.Failed as failed:
        print(f"backhaul: {failed}", file=sys.stderr)
        for fault in getattr(failed, "problem", {}).get("errors", []):
            print(f"  {fault['where']}: {fault['detail']}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _demo(words: list[str]) -> int:
    """The demo is a package of its own, which an installed hub may lack."""
    try:
        module = importlib.import_module("demo.__main__")
    except ModuleNotFoundError as missing:
        print(f"backhaul: the demo is not installed here ({missing}); see backhaul[demo]", file=sys.stderr)
        return 1
    return int(module.main(words) or 0)


def _submit(hub: client.Client, arguments: argparse.Namespace) -> int:
    """Files to tasks, several at a time, in their order."""
    metadata = {
        name: getattr(arguments, name)
        for name in (
            "version",
            "priority",
            "queue",
            "selector",
            "device",
            "deadline_ms",
            "timeout_ms",
            "max_attempts",
        )
    }
    if arguments.key and len(arguments.files) > 1:
        raise client.Failed("--key names one task, but there are several files")

    def one(name: str) -> tuple[str, client.Answer, list[client.Answer]]:
        body, content_type = _read(name)
        task = hub.submit(body, content_type, model=arguments.model, key=arguments.key, **metadata)
        if arguments.wait is None:
            return name, task, []
        ended = hub.wait(task["task_id"], arguments.wait)
        return name, ended | {"repeated": task["repeated"]}, hub.results_of(task["task_id"])

    done, failures = [], 0
    with futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        waiting = [pool.submit(one, name) for name in arguments.files]
        for name, future in zip(arguments.files, _progress(waiting, arguments), strict=True):
            try:
                done.append(future.result())
            except (client.Failed, OSError) as error:
                failures += 1
                print(f"backhaul: {name}: {error}", file=sys.stderr)
    if arguments.json:
        _say_lines(task | {"file": name, "results": found} for name, task, found in done)
    elif done:
        from cloud_hub.operator import show

        _say(show.submitted(done))
    if arguments.wait is not None:
        failures += sum(task["state"] != "COMPLETED" for _, task, _ in done)
    return 1 if failures else 0


def _read(name: str) -> tuple[bytes, str | None]:
    """A file's bytes and their type as its name tells it, or None: the hub looks at the bytes then."""
    if name == "-":
        return sys.stdin.buffer.read(), None
    guessed = SUFFIXES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0]
    return Path(name).read_bytes(), guessed


def _progress(
    waiting: list[futures.Future[Any]], arguments: argparse.Namespace
) -> Iterator[futures.Future[Any]]:
    """The futures in order; many of them with a bar, on a terminal."""
    if len(waiting) < 4 or arguments.json or not sys.stderr.isatty():
        yield from waiting
        return
    from rich import console, progress

    what = "Waiting for results" if arguments.wait is not None else "Submitting"
    yield from progress.track(waiting, what, console=console.Console(stderr=True), transient=True)


def _tasks(hub: client.Client, arguments: argparse.Namespace) -> int:
    wanted = {
        name: getattr(arguments, name)
        for name in ("state", "reason", "model", "queue", "priority", "device", "site")
    }
    return _show_list(lambda: hub.tasks(limit=arguments.limit, **wanted), "tasks", arguments)


def _results(hub: client.Client, arguments: argparse.Namespace) -> int:
    names = ("site", "agent", "model", "version", "device", "label", "outcome", "since", "until")
    wanted = {name: getattr(arguments, name) for name in names}
    if arguments.arrow is None:
        return _show_list(lambda: hub.results(limit=arguments.limit, **wanted), "results", arguments)
    size = hub.export(arguments.arrow, **wanted)
    if arguments.json:
        _say_lines([{"file": str(arguments.arrow), "bytes": size}])
    else:
        print(f"{arguments.arrow}: {size:,} bytes. Read it with pyarrow.ipc.open_stream.")
    return 0


def _show_list(read: Callable[[], Iterator[client.Answer]], what: str, arguments: argparse.Namespace) -> int:
    """A list as lines of JSON or as a table, once or, with --watch, again and again."""
    if arguments.json:
        _say_lines(read())
        return 0
    from cloud_hub.operator import show

    table: Callable[[Iterator[client.Answer]], RenderableType] = getattr(show, what)
    if not arguments.watch:
        _say(table(read()))
        return 0
    return _watch(lambda: table(read()))


def _watch(look: Callable[[], RenderableType]) -> int:
    """Show the newest until interrupted."""
    from rich import live

    from cloud_hub.operator import show

    with live.Live(look(), console=show.console(), auto_refresh=False, screen=sys.stdout.isatty()) as shown:
        while True:
            time.sleep(REFRESH_S)
            shown.update(look(), refresh=True)


def _task(hub: client.Client, arguments: argparse.Namespace) -> int:
    for task_id in arguments.ids:
        task = hub.wait(task_id, arguments.wait or 0.0)
        found = hub.results_of(task_id)
        if arguments.json:
            _say_lines([task | {"results": found}])
        else:
            from cloud_hub.operator import show

            _say(show.task(task, found))
    return 0


def _why(hub: client.Client, arguments: argparse.Namespace) -> int:
    for task_id in arguments.ids:
        found = hub.explain(task_id)
        if arguments.json:
            _say_lines([found])
        else:
            from cloud_hub.operator import show_why

            _say(show_why.explanation(found))
    return 0


def _retry(hub: client.Client, arguments: argparse.Namespace) -> int:
    """By ids, or all of a filter."""
    wanted = {name: getattr(arguments, name) for name in ("reason", "model", "queue", "site")}
    filtered = any(value is not None for value in wanted.values())
    if filtered == bool(arguments.ids):
        raise client.Failed("say which dead letters: by their ids, or by --reason, --model, --queue, --site")
    if arguments.ids:
        return _change(hub, arguments)
    answer = hub.retry_many(limit=arguments.limit, **wanted)
    if arguments.json:
        _say_lines([answer])
    else:
        more = "; there may be more, ask again" if answer["more"] else ""
        ones = "1 task is" if answer["retried"] == 1 else f"{answer['retried']:,} tasks are"
        print(f"{ones} in the queue again{more}.")
    return 0


def _queues(hub: client.Client, arguments: argparse.Namespace) -> int:
    if arguments.queues is None:
        return _show_queues(hub, arguments)
    if arguments.queues == "rm":
        found = hub.remove_queue(arguments.name)
    else:
        said = {name: getattr(arguments, name) for name in client.SETTINGS}
        found = hub.set_queue(
            arguments.name,
            **{
                name: None if isinstance(value, options.NoLimit) else value
                for name, value in said.items()
                if value is not None
            },
        )
    if arguments.json:
        _say_lines([found])
    else:
        from cloud_hub.operator import show_queues

        _say(show_queues.queues([found]))
    return 0


def _show_queues(hub: client.Client, arguments: argparse.Namespace) -> int:
    if arguments.json:
        _say_lines([hub.queues()])
        return 0
    from cloud_hub.operator import show_queues

    if arguments.watch:
        return _watch(lambda: show_queues.queues(hub.queues()["queues"]))
    _say(show_queues.queues(hub.queues()["queues"]))
    return 0


def _change(hub: client.Client, arguments: argparse.Namespace) -> int:
    """Cancel or retry; one that fails does not keep the others from being asked."""
    ask = hub.cancel if arguments.command == "cancel" else hub.retry
    done, failures = [], 0
    for task_id in arguments.ids:
        try:
            done.append(ask(task_id))
        except client.Refused as refused:
            failures += 1
            print(f"backhaul: {task_id}: {refused}", file=sys.stderr)
    if arguments.json:
        _say_lines(done)
    elif done:
        from cloud_hub.operator import show

        _say(show.tasks(done))
    return 1 if failures else 0


def _fleet(hub: client.Client, arguments: argparse.Namespace) -> int:
    if arguments.json:
        _say_lines([hub.fleet()])
        return 0
    from cloud_hub.operator import show

    if arguments.watch:
        return _watch(lambda: show.fleet(hub.fleet()))
    _say(show.fleet(hub.fleet()))
    return 0


def _draining(hub: client.Client, arguments: argparse.Namespace) -> int:
    site, slash, name = arguments.agent.partition("/")
    if not slash:
        raise client.Failed(
            f"{arguments.agent!r} is no agent: it would read SITE/NAME, as `backhaul fleet` lists it"
        )
    within_s = getattr(arguments, "within", None)
    if arguments.command in ("drain", "cordon"):
        agent = hub.drain(site, name, within_s)
    else:
        agent = hub.resume(site, name)
    if arguments.json:
        _say_lines([agent])
    elif agent["draining"]:
        limit = "" if within_s is None else f" What it still runs in {within_s:g} s goes back into the queue."
        print(f"{arguments.agent} gets no more of the hub's tasks; it holds {agent['leases']} now.{limit}")
    else:
        print(f"{arguments.agent} gets the hub's tasks again.")
    return 0


def _models(hub: client.Client, arguments: argparse.Namespace) -> int:
    from cloud_hub.operator import models  # with all that a manifest can say

    return models.run(hub, arguments)


def _rollout(hub: client.Client, arguments: argparse.Namespace) -> int:
    from cloud_hub.operator import rollouts

    return rollouts.run(hub, arguments)


def _say(shown: RenderableType) -> None:
    from cloud_hub.operator import show

    show.console().print(shown)


def _say_lines(answers: Any) -> None:
    from cloud_hub.operator import show

    for answer in answers:
        print(show.line(answer), flush=True)


RUN: Final[dict[str, Callable[[client.Client, argparse.Namespace], int]]] = {
    "submit": _submit,
    "tasks": _tasks,
    "task": _task,
    "results": _results,
    "fleet": _fleet,
    "cancel": _change,
    "why": _why,
    "retry": _retry,
    "queues": _queues,
    "models": _models,
    "rollout": _rollout,
    "drain": _draining,
    "cordon": _draining,
    "resume": _draining,
    "undrain": _draining,
}

if __name__ == "__main__":
    sys.exit(main())
