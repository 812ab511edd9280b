"""Queues on the command line: a table of settings and of what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator import show


def queues(rows: Sequence[show.Row]) -> RenderableType:
    """A table of queues, by name."""
    table = show.columns(
        "Queue", ">Weight", ">Waiting", ">Oldest", ">Running", ">Per second", "By priority", "When full"
    )
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['weight']:g}",
            _of(f"{row['queued']:,}", row["max_queued"], full=row["queued"]),
            show.duration(row["oldest_s"]) if row["queued"] else "",
            _of(f"{row['running']:,}", row["max_running"], full=row["running"]),
            _of(f"{row['submitted_per_s']:,.1f}", row["max_per_second"]),
            "  ".join(f"{priority}: {count:,}" for priority, count in row["by_priority"].items()),
            row["when_full"].replace("_", " ") if row["max_queued"] is not None else "",
        )
    defaults = [
        Text(f"{row['name']}: tasks that name no priority have {row['default_priority']}", style="dim")
        for row in rows
        if row["default_priority"] is not None
    ]
    if not rows:
        return Text("No queue has tasks or settings.", style="dim")
    return Group(table, *([Text(), *defaults] if defaults else []))


def _of(value: str, limit: float | None, full: int | None = None) -> Text:
    """A figure and its limit, marked where it has been reached."""
    if limit is None:
        return Text(value)
    return Text(
        f"{value} of {limit:,g}" if limit < 1e6 else f"{value} of {limit:,.0f}",
        style="yellow" if full is not None and full >= limit else "",
    )
