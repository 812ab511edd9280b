"""Models on the command line: what the hub has of each, and who is to serve it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.operator import show


def models(rows: Sequence[show.Row]) -> RenderableType:
    """A table of models, a line a version."""
    table = show.columns("Model", "Version", ">Bytes", "SHA-256", "Signed with", ">Age", "To be served by")
    for row in rows:
        for version in row["versions"]:
            aims = [
                aim["selector"] or "all agents"
                for aim in row["targets"]
                if aim["version"] == version["version"]
            ]
            table.add_row(
                row["name"],
                version["version"],
                f"{version['size']:,}",
                version["sha256"][:12],
                _key(version["key"]),
                show.age(version["pushed_at"]),
                "; ".join(aims),
            )
    return table if rows else Text("The hub has no models.", style="dim")


def version(row: show.Row) -> RenderableType:
    """All that is known of one version."""
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in (
        ("Bytes", f"{row['size']:,}"),
        ("SHA-256", row["sha256"]),
        ("Signed with", _key(row["key"], whole=True)),
        ("Pushed", f"{show.instant(row['pushed_at'])}, {show.age(row['pushed_at'])} ago"),
    ):
        facts.add_row(name, value)
    title = Text(f"{row['name']}@{row['version']}", style="bold")
    return Group(title, facts, Text(), Text(row["manifest"].strip()))


def _key(key: str | None, *, whole: bool = False) -> Text:
    if key is None:
        return Text("not signed", style="yellow")
    return Text(key if whole else f"{key[:20]}…")
