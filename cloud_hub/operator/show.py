"""What the command line shows to people: tables, with colour only where it means a state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH_OF_PIPES: Final = 200
"""Columns where the output is no terminal: nothing is cut off that another program may look for."""

TONES: Final = {
    "COMPLETED": "green",
    "PROCESSING": "cyan",
    "FAILED": "yellow",
    "TERMINATED": "red",
    "REJECTED": "red",
    "online": "green",
    "silent": "yellow",
    "offline": "red",
    "ok": "green",
    "failed": "red",
    "expired": "yellow",
    "cancelled": "yellow",
}

Row = Mapping[str, Any]


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH_OF_PIPES)


def tasks(rows: Iterable[Row]) -> RenderableType:
    """A table of tasks."""
    table = columns("Task", "State", "Model", ">Priority", ">Items", "Origin", "Agent", ">Age", "Why")
    for task in rows:
        table.add_row(
            task["task_id"],
            toned(task["state"]),
            _model(task),
            str(task["priority"]),
            _done(task),
            task["origin"] or "",
            task["agent"] or "",
            age(task["submitted_at"]),
            _why(task),
        )
    return table if table.row_count else Text("No tasks.", style="dim")


def task(row: Row, results: Sequence[Row]) -> RenderableType:
    """All that is known of one task."""
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in (
        ("State", toned(row["state"]) + Text(f"  {_why(row)}")),
        ("Model", _model(row)),
        ("Items", f"{_done(row)} done"),
        ("Priority", f"{row['priority']}, queue {row['queue']}"),
        ("Selector", row["selector"]),
        ("Attempt", f"{row['attempt']}; {row['failures']} of {row['max_attempts']} failed"),
        ("Origin", row["origin"] or "submitted to the hub"),
        ("Device", row["device"]),
        ("Agent", row["agent"]),
        ("Key", row["idempotency_key"]),
        ("Submitted", f"{instant(row['submitted_at'])}, {age(row['submitted_at'])} ago"),
        ("Finished", instant(row["finished_at"])),
    ):
        if value:
            facts.add_row(name, value)
    parts: list[RenderableType] = [Text(row["task_id"], style="bold"), facts]
    if row["attempts"]:
        parts += [Text(), _attempts(row["attempts"])]
    if results:
        parts += [Text(), _items(results)]
    return Group(*parts)


def results(rows: Iterable[Row]) -> RenderableType:
    """A table of result rows."""
    table = columns("Task", ">Item", "Outcome", "Label", ">Score", "Model", "Device", "Agent", ">Run", ">Age")
    for row in rows:
        table.add_row(
            row["task_id"],
            str(row["item"]),
            toned(row["outcome"]),
            row["label"] or row["error"] or "",
            _score(row),
            _model(row),
            row["device"] or "",
            f"{row['site']}/{row['agent']}",
            _microseconds(row["run_us"]),
            age(row["received_at"]),
        )
    return table if table.row_count else Text("No results.", style="dim")


def submitted(rows: Iterable[tuple[str, Row, Sequence[Row]]]) -> RenderableType:
    """Files and the tasks that they became: (file, task, its results)."""
    table = columns("File", "Task", "State", "Result", ">Score", "Agent")
    for name, one, found in rows:
        first = found[0] if found else None
        more = f" +{len(found) - 1}" if len(found) > 1 else ""
        state = toned(one["state"]) + (Text(" again", style="dim") if one.get("repeated") else Text())
        table.add_row(
            name,
            one["task_id"],
            state,
            (first["label"] or first["error"] or first["outcome"]) + more if first else _why(one),
            _score(first) if first else "",
            f"{first['site']}/{first['agent']}" if first else "",
        )
    return table


def fleet(answer: Row) -> RenderableType:
    """Sites, agents and their books."""
    table = columns(
        "Agent", "State", ">Heard", "Models", ">Items/s", ">Queue", ">Overflow", ">To sync", "Ledger"
    )
    found = [agent for site in answer["sites"] for agent in site["agents"]]
    for agent in found:
        said = agent["telemetry"]
        table.add_row(
            f"{agent['site']}/{agent['name']}",
            toned(agent["status"]) + (Text(" draining", style="cyan") if agent["draining"] else Text()),
            f"{duration(agent['heard_s'])} ago",
            _models(said["models"]) if said else "",
            f"{said['items_per_s']:,.1f}" if said and agent["online"] else "",
            f"{said['queued']:,}" if said else "",
            f"{said['overflowed_total']:,}" if said else "",
            f"{agent['to_sync']:,}",
            _ledger(agent["lanes"]),
        )
    if not found:
        return Text("No agent has reported to this hub yet.", style="dim")
    attention = [
        Text(f"{agent['site']}/{agent['name']}: {line}", style="yellow")
        for agent in found
        for line in agent["attention"]
    ]
    return Group(table, *([Text(), *attention] if attention else []))


def line(answer: Any) -> str:
    """An answer for a script: JSON on one line."""
    return json.dumps(answer, ensure_ascii=False)


def duration(seconds: float) -> str:
    """The unit that matters."""
    for limit, size, unit in ((0.95, 0.001, "ms"), (90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def age(instant: str) -> str:
    """How long ago."""
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(instant)).total_seconds()))


def columns(*titles: str) -> Table:
    """Columns by their titles; one that begins with > is of numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in titles:
        if title.startswith(">"):
            table.add_column(title[1:], justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold", no_wrap=title in ("Task", "Rollout"))
    return table


def _attempts(rows: Sequence[Row]) -> Table:
    table = columns(">Attempt", "Agent", "Ended", ">Items", ">Run", "Why")
    for row in rows:
        table.add_row(
            str(row["attempt"]),
            f"{row['site']}/{row['agent']}",
            toned(row["state"]),
            str(row["items_done"]),
            _microseconds(row["run_us"]),
            row["error"] or row["reason"] or "",
        )
    return table


def _items(rows: Sequence[Row]) -> Table:
    table = columns(">Item", "Outcome", "Label", ">Score", "Agent", ">Wait", ">Run")
    for row in rows:
        table.add_row(
            str(row["item"]),
            toned(row["outcome"]),
            row["label"] or row["error"] or "",
            _score(row),
            f"{row['site']}/{row['agent']}",
            _microseconds(row["wait_us"]),
            _microseconds(row["run_us"]),
        )
    return table


def _ledger(lanes: Sequence[Row]) -> Text:
    """The books of the up lanes together: "0 missing of 1,204,331"."""
    up = [lane for lane in lanes if lane["direction"] == "up"]
    missing = sum(lane["missing"] for lane in up)
    return Text(
        f"{missing:,} missing of {sum(lane['numbered'] for lane in up):,}",
        style="bold red" if missing else "green",
    )


def _models(models: Sequence[Row]) -> Text:
    text = Text()
    for model in models:
        fell = model["wanted"] != model["provider"]
        name = f"{model['name']} {model['version']} {_provider(model['provider'])}"
        text.append(", " if text else "")
        text.append(
            f"{name}, not {_provider(model['wanted'])}" if fell else name, style="yellow" if fell else ""
        )
    return text


def _provider(name: str) -> str:
    return name.removesuffix("ExecutionProvider")


def toned(word: str) -> Text:
    return Text(word, style=TONES.get(word, ""))


def _model(row: Row) -> str:
    return f"{row['model']} {row['version']}" if row["version"] else str(row["model"])


def _done(row: Row) -> str:
    return (
        str(row["items_done"]) if row["items"] == row["items_done"] else f"{row['items_done']}/{row['items']}"
    )


def _why(row: Row) -> str:
    return ": ".join(str(part) for part in (row.get("reason"), row.get("error")) if part)


def _score(row: Row) -> str:
    return "" if row["score"] is None else f"{row['score']:.3f}"


def _microseconds(value: int | None) -> str:
    return "" if value is None else duration(value / 1e6)


def instant(text: str | None) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S UTC") if text else ""
