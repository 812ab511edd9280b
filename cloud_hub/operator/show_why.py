"""Why a task waits, and why it went where it went, on the command line: in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from cloud_hub.operator import show


def explanation(row: show.Row) -> RenderableType:
    """All that is known of why a task is where it is."""
    state = show.toned(row["state"])
    why = ": ".join(str(part) for part in (row["reason"], row["error"]) if part)
    parts: list[RenderableType] = [
        Text(row["task_id"], style="bold"),
        state + Text(f"  {why}" if why else ""),
    ]
    if row["waiting"]:
        parts += [Text(), *_waiting(row["waiting"])]
    for decision in row["decisions"]:
        parts += [Text(), *_decision(decision)]
    if not row["waiting"] and not row["decisions"]:
        parts.append(Text("Nothing was decided about it here.", style="dim"))
    return Group(*parts)


def _waiting(row: show.Row) -> Iterator[RenderableType]:
    yield Text(f"It has waited {show.duration(row['waited_s'])}:")
    for cause in row["causes"]:
        yield _line(cause["text"])
    before = row["before"]
    raised = row["effective_priority"] - row["priority"]
    more = "more than " if before["same_is_more"] else ""
    model = f"{row['model']} {row['version']}" if row["version"] else row["model"]
    yield Text()
    yield Text("Before it, for the same model:")
    yield _line(f"{before['higher']:,} tasks of higher priorities")
    yield _line(
        f"{more}{before['same']:,} older ones of its own kind "
        f"({', '.join(filter(None, (model, 'queue ' + row['queue'], row['selector'])))})"
    )
    if before["beside"]:
        yield _line(f"{before['beside']:,} of its priority in other classes, which take turns with it")
    aged = f", raised to {row['effective_priority']} by its wait" if raised else ""
    yield _line(f"Its priority is {row['priority']}{aged}.")
    if row["able_count"]:
        able = ", ".join(
            f"{one['agent']} (room for {one['credits']:,}, {one['items_per_s']:,.1f} items/s)"
            for one in row["able"][:5]
        )
        rest = row["able_count"] - min(5, len(row["able"]))
        yield _line(f"It could run at {able}{f' and {rest:,} more' if rest > 0 else ''}.")


def _decision(row: show.Row) -> Iterator[RenderableType]:
    head = f"Attempt {row['attempt']} went to {row['agent']}"
    if row["predicted_s"] is not None:
        head += f", predicted to complete it in {show.duration(row['predicted_s'])}"
        spans = (("wait_s", "waiting"), ("transfer_s", "on the way"), ("run_s", "running"))
        said = ", ".join(
            f"{show.duration(row[name])} {word}" for name, word in spans if row[name] is not None
        )
        head += f" ({said})" if said else ""
    yield Text(f"{head}.")
    if row["others"]:
        runners_up = ", ".join(
            f"{one['agent']} in {show.duration(one['predicted_s'])}" for one in row["others"]
        )
        yield _line(f"The others: {runners_up}.")
    if row["able"] is not None:
        ones = "1 agent" if row["able"] == 1 else f"{row['able']:,} agents"
        priority = row["effective_priority"]
        by = "" if priority is None else f" It came to its turn by priority {priority}."
        yield _line(f"{ones} could run it.{by}")
    if row["cause"]:
        yield _line(f"Cause: {row['cause']}.")
    for name, value in (("tag", row["tag"]), *row["more"].items()):
        if value is not None:
            yield _line(f"{name}: {show.line(value) if not isinstance(value, str) else value}")
    yield _line(_end(row))


def _end(row: show.Row) -> str:
    for_whom = f" for {row['preempted_for']}" if row["preempted_for"] else ""
    if row["state"] == "PROCESSING":
        return f"It runs, and is asked to make room{for_whom}." if row["stopping"] else "It runs."
    why = ": ".join(str(part) for part in (row["reason"], row["error"]) if part)
    words = {
        "COMPLETED": "It completed the task",
        "FAILED": "It failed",
        "TERMINATED": "It was ended",
        "QUEUED": f"It was put back into the queue{for_whom}",
    }
    return f"{words.get(row['state'], row['state'])}{f': {why}' if why else ''}."


def _line(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2))
