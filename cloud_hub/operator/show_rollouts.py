"""Rollouts on the command line: how far each is, what its gates say, and what was done why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.operator import show

TONES: Final = {
    "running": "cyan",
    "paused": "yellow",
    "completed": "green",
    "rolled_back": "red",
    "passed": "green",
    "failed": "red",
    "open": "",
    "ready": "green",
    "refused": "red",
}

MOST_AGENTS: Final = 50
"""Agents that `show` lists; all of them are in its --json."""


def rollouts(rows: Sequence[show.Row]) -> RenderableType:
    """A table of rollouts."""
    table = show.columns("Rollout", "State", "Model", "Version", "For", "Stage", ">Age", "Why")
    for row in rows:
        table.add_row(
            row["rollout_id"],
            _toned(row["state"]),
            row["model"],
            row["version"],
            row["selector"] or "all agents",
            _stage(row),
            show.age(row["started_at"]),
            row["reason"] or "",
        )
    return table if rows else Text("No rollouts.", style="dim")


def rollout(row: show.Row) -> RenderableType:
    """All that is known of one rollout."""
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in (
        ("State", _toned(row["state"]) + Text(f", {_since(row)}")),
        ("Why", row["reason"]),
        ("For", row["selector"] or "all agents"),
        ("Each stage", _terms(row)),
        ("If a gate fails", "all agents go back" if row["on_fail"] == "roll_back" else "it is paused"),
        ("Started", f"{show.instant(row['started_at'])}, {show.age(row['started_at'])} ago"),
        ("Ended", show.instant(row["ended_at"])),
    ):
        if value:
            facts.add_row(name, value)
    title = Text(f"{row['model']} to {row['version']}", style="bold") + Text(f"  {row['rollout_id']}")
    parts: list[RenderableType] = [title, facts, Text(), _stages(row)]
    if judgements := _current(row).get("judgements"):
        parts += [Text(), _gates(judgements)]
    if row["agents"]:
        parts += [Text(), _agents(row["agents"])]
    parts += [Text(), _history(row)]
    return Group(*parts)


def sentence(row: show.Row) -> str:
    """A rollout in a line."""
    where = f", stage {_stage(row)}" if row["ended_at"] is None else ""
    return f"{row['rollout_id']}: {row['model']} to {row['version']} is {_word(row['state'])}{where}."


def step(row: show.Row) -> str:
    """One event of its history in a line."""
    why = f": {row['reason']}" if row["reason"] else ""
    return f"{show.instant(row['at'])}  {_word(row['kind'])}, by the {row['by']}{why}"


def _stages(row: show.Row) -> Table:
    """Each stage: what it does, how many agents are in it, and how far it is."""
    table = show.columns("", "Stage", ">Agents", ">Ready", ">Results", "Gates")
    for place, (stage, found) in enumerate(zip(row["stages"], row["progress"], strict=True)):
        is_current = place == row["stage"] and row["ended_at"] is None
        is_past = place < row["stage"] or row["state"] == "completed"
        table.add_row(
            Text("▶", style="cyan") if is_current else Text("✓", style="green") if is_past else "",
            Text(stage, style="bold" if is_current else "" if is_past else "dim"),
            f"{found['agents']:,}",
            f"{found['ready']:,}",
            f"{found['new_results']:,}" if is_past or place == row["stage"] else "",
            _verdicts(found["judgements"]),
        )
    return table


def _verdicts(judgements: Sequence[show.Row]) -> Text:
    """How many gates hold, and which of them do not."""
    needed = [one for one in judgements if one["needed"]]
    failed = [one["gate"] for one in needed if one["verdict"] == "failed"]
    if failed:
        return Text(f"failed: {', '.join(failed)}", style="red")
    passed = sum(one["verdict"] == "passed" for one in needed)
    return Text(f"{passed} of {len(needed)} passed" if needed else "")


def _gates(judgements: Sequence[show.Row]) -> Table:
    table = show.columns("Gate", "Verdict", ">Results", "Why")
    for one in judgements:
        table.add_row(
            one["gate"],
            _toned(one["verdict"]) if one["needed"] else Text("not needed", style="dim"),
            f"{one['evidence']:,}",
            one["said"],
        )
    return table


def _agents(rows: Sequence[show.Row]) -> RenderableType:
    table = show.columns("Agent", "", "Mode", "State", ">Results", "Why")
    for one in rows[:MOST_AGENTS]:
        table.add_row(
            one["agent"],
            show.toned("online" if one["online"] else "offline"),
            one["mode"] or "old version",
            _toned(one["state"] or ""),
            f"{one['version_results']:,}",
            one["reason"] or "",
        )
    more = len(rows) - MOST_AGENTS
    return Group(table, Text(f"{more:,} more; --json has all of them", style="dim")) if more > 0 else table


def _history(row: show.Row) -> Table:
    table = show.columns("When", "What", "Stage", "By", "Why")
    for event in row["history"]:
        table.add_row(
            show.instant(event["at"]),
            _word(event["kind"]),
            _named(row["stages"], event["stage"]),
            event["by"],
            event["reason"] or "",
        )
    return table


def _current(row: show.Row) -> show.Row:
    """The progress of the stage where it is."""
    found: show.Row = row["progress"][row["stage"]] if row["stage"] < len(row["progress"]) else {}
    return found


def _stage(row: show.Row) -> str:
    return f"{row['stage'] + 1} of {len(row['stages'])}, {_named(row['stages'], row['stage'])}"


def _named(stages: Sequence[str], place: int | None) -> str:
    return stages[place] if place is not None and 0 <= place < len(stages) else ""


def _since(row: show.Row) -> str:
    if row["ended_at"] is not None:
        return f"{show.age(row['ended_at'])} ago"
    return f"stage {_stage(row)} for {show.age(row['stage_since'])}"


def _terms(row: show.Row) -> str:
    patience = row["patience_s"]
    more = "" if patience is None else f", paused after {show.duration(patience)}"
    return f"{row['min_results']:,} results, {show.duration(row['soak_s'])} or more{more}"


def _word(name: str) -> str:
    return name.replace("_", " ")


def _toned(name: str) -> Text:
    return Text(_word(name), style=TONES.get(name, ""))
