"""What the terminal shows: a live picture, or plain lines where nobody watches; and the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo import rollouts as rolling
from demo.phases import Phase
from demo.report import Quantiles, Report
from demo.scene import Agent, Scene

LINE_EVERY_S: Final = 2.0
LINK: Final = {"up": "green", "cut": "bold red", "down": "yellow"}


class View(Protocol):
    """Somewhere to show what goes on."""

    def say(self, text: str) -> None:
        """A line of its own."""

    def phase(self, phase: Phase) -> None:
        """A phase begins."""

    def show(self, scene: Scene, left_s: float) -> None:
        """How things stand, with `left_s` seconds to go."""


class Lines:
    """Plain lines, for a log; every `every_s` seconds, unless nothing has changed."""

    def __init__(self, console: Console, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._start = time.monotonic()
        self._shown = float("-inf")
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        self._print(text)

    def phase(self, phase: Phase) -> None:
        self._print(f"== {phase.title} ({phase.seconds:.0f} s): {phase.watch}")

    def show(self, scene: Scene, left_s: float) -> None:
        lines = [_line(agent) for agent in scene.agents]
        if (now := time.monotonic()) - self._shown < self._every_s or lines == self._lines:
            return
        self._shown, self._lines = now, lines
        for line in lines:
            self._print(line)

    def _print(self, text: str) -> None:
        line = f"{time.monotonic() - self._start:6.1f} s  {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Picture:
    """A picture that is redrawn in place."""

    def __init__(self, console: Console, live: Live, dashboard: str) -> None:
        self._console = console
        self._live = live
        self._dashboard = dashboard
        self._phase: Phase | None = None
        self._said = ""

    def say(self, text: str) -> None:
        self._said = text

    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self._said = ""

    def show(self, scene: Scene, left_s: float) -> None:
        self._live.update(draw(scene, self._phase, left_s, self._said, self._dashboard), refresh=True)


@contextlib.contextmanager
def opened(console: Console, dashboard: str, *, headless: bool) -> Iterator[View]:
    """A view for as long as the block lasts: a picture, unless `headless` or no terminal is there."""
    if headless or not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield Picture(console, live, dashboard)


def draw(scene: Scene, phase: Phase | None, left_s: float, said: str, dashboard: str) -> RenderableType:
    """The picture of one moment."""
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("agent")
    for name in ("jobs in", "replies", "queue", "items/s", "overflowed", "to sync"):
        table.add_column(name, justify="right")
    table.add_column("cloud link", justify="center")
    table.add_column("ledger", justify="right")
    for agent in scene.agents:
        devices = agent.place.site != "cloud"
        table.add_row(
            str(agent.place),
            f"{agent.published:,}" if devices else "–",
            f"{agent.replied:,}" if devices else "–",
            Text(f"{agent.queued:,}", style="yellow" if agent.queued else ""),
            f"{agent.items_per_s:.0f}",
            Text(f"{agent.overflowed:,}" if devices else "–", style="cyan" if agent.overflowed else ""),
            Text(f"{agent.to_sync:,}", style="yellow" if agent.to_sync else ""),
            Text(agent.link, style=LINK[agent.link]),
            Text(_ledger(agent), style="bold red" if agent.missing else "green"),
        )
    title = f"{phase.title}, {left_s:.0f} s to go" if phase and not said else said
    notes = Text(phase.watch if phase and not said else "", style="italic")
    footer = Text.assemble("dashboard ", (dashboard, "underline"), "   Ctrl-C stops everything", style="dim")
    if not scene.hub_there:
        footer.append("   the hub does not answer", style="bold red")
    return Panel(Group(notes, table, footer), title=f"Backhaul · {title}", title_align="left")


def _line(agent: Agent) -> str:
    return (
        f"{agent.place!s:<15} jobs {agent.published:>5,}  replies {agent.replied:>5,}"
        f"  queue {agent.queued:>4,}  {agent.items_per_s:>4.0f} items/s  overflowed {agent.overflowed:>5,}"
        f"  to sync {agent.to_sync:>5,}  link {agent.link:<4}  ledger {_ledger(agent)}"
    )


def _ledger(agent: Agent) -> str:
    return f"{agent.missing:,} missing of {agent.numbered:,}"


# The report


def table(report: Report) -> RenderableType:
    """The report, for people."""
    grid = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    grid.add_column(justify="right", style="bold")
    grid.add_column()

    def row(value: object, what: str) -> None:
        grid.add_row(f"{value:,}" if isinstance(value, int) else str(value), what)

    row(report.published, f"jobs published; {report.accepted:,} acknowledged, {report.rejected:,} rejected")
    row(report.replied, f"replied; {report.replied_while_offline:,} of them while their site was cut off")
    row(report.completed_at_edge, "completed by their own site")
    row(report.overflowed, "handed over to the hub as overflow")
    row(report.completed_in_pool, "completed in the cloud's pool")
    row(report.completed_at_other_site, "completed at another site")
    row(report.failed, "failed")
    row(report.results_in_store, "results in PostgreSQL")
    row(report.lost, "lost")
    row(report.duplicates_in_store, f"duplicates in PostgreSQL; {report.shadows:,} shadows set aside")
    row(_milliseconds(report.reply_latency_ms), "from a picture to its verdict, by its own site")
    row(_milliseconds(report.overflow_latency_ms), "the same, for overflow")
    row(
        _milliseconds(report.sync_lag_ms),
        "from a job's acceptance to its row in PostgreSQL, cut links included",
    )
    if report.bytes_on_wire_per_result is not None:
        row(f"{report.bytes_on_wire_per_result:.0f} B", "on the wire for each result")
    if report.accuracy is not None:
        row(f"{report.accuracy:.1%}", "of the labels are true")

    lanes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("lane", "numbered", "committed", "missing"):
        lanes.add_column(name, justify="left" if name == "lane" else "right")
    for lane in report.lanes:
        lanes.add_row(
            f"{lane.agent} {'▲' if lane.direction == 'up' else '▼'} {lane.lane}",
            f"{lane.numbered:,}",
            f"{lane.committed:,}",
            Text(f"{lane.missing:,}", style="bold red" if lane.missing else "green"),
        )
    if report.problems:
        verdict = Text("The books do not balance:\n  " + "\n  ".join(report.problems), style="bold red")
    else:
        verdict = Text("The books balance: every job has its reply and its one result.", style="bold green")
    return Group(grid, lanes, verdict)


def rollouts(outcome: rolling.Outcome) -> RenderableType:
    """What came of the rollouts, and the report."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("version", "ended", "results", "seconds"):
        grid.add_column(name, justify="right" if name in ("results", "seconds") else "left", no_wrap=True)
    grid.add_column("stage and reason")
    for one in outcome.rollouts:
        state = Text(one.state, style="green" if one.state == "completed" else "yellow")
        why = f"{one.stage}: {one.reason.removeprefix(f'stage {one.stage}: ')}"
        grid.add_row(one.version, state, f"{one.results:,}", f"{one.seconds:.1f}", why)
    wrong = [why for why in outcome.problems if why not in outcome.books.problems]
    said = "\n".join(wrong) if wrong else "The rollouts ended as they should."
    verdict = Text(said, style="bold red" if wrong else "bold green")
    return Group(table(outcome.books), grid, verdict)


def _milliseconds(one: Quantiles) -> str:
    if one.p50 is None or one.p99 is None:
        return "–"
    return f"{one.p50:,.0f} / {one.p99:,.0f} ms"
