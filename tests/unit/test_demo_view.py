"""What the demo shows in a terminal."""

import io

import msgspec
from rich.console import Console

from demo import phases, report, scene, view
from demo.system import POOL
from shared import topics

PHASE = phases.plan(30.0, "plant-a", "plant-b")[2]


def terminal(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def agent(place: topics.Agent, **changes: object) -> scene.Agent:
    fields: dict[str, object] = {
        "published": 1204,
        "replied": 1200,
        "link": "up",
        "queued": 4,
        "items_per_s": 19.6,
        "overflowed": 31,
        "to_sync": 7,
        "numbered": 1231,
        "missing": 0,
    }
    return scene.Agent(place=place, **(fields | changes))  # type: ignore[arg-type]


SCENE = scene.Scene(
    [agent(topics.Agent("plant-a", "edge-1"), link="cut"), agent(POOL)], hub_there=False, under_way=[]
)


def test_the_picture_shows_what_is_going_on() -> None:
    """Who, how much, what is cut, what the books say, what comes next, and where the dashboard is."""
    console = terminal()
    console.print(view.draw(SCENE, PHASE, 12.4, "", "http://127.0.0.1:8080/"))
    text = written(console)
    for words in (
        "plant-b cut off, 12 s to go",
        "plant-a/edge-1",
        "1,204",
        "cut",
        "0 missing of 1,231",
        "http://127.0.0.1:8080/",
        "the hub does not answer",
    ):
        assert words in text


def test_lines_are_not_repeated() -> None:
    """A log is not filled with a picture that has not changed."""
    console = terminal()
    lines = view.Lines(console, every_s=0.0)
    lines.show(SCENE, 5.0)
    lines.show(SCENE, 4.5)
    lines.show(scene.Scene([agent(POOL, queued=5)], hub_there=True, under_way=[]), 4.0)
    assert written(console).count("cloud/pool-1") == 2


def test_where_no_terminal_is_there_are_lines() -> None:
    """A pipe or a file gets no control characters, asked for or not."""
    console = terminal()
    with view.opened(console, "http://127.0.0.1:8080/", headless=False) as screen:
        screen.phase(PHASE)
        screen.show(SCENE, 9.0)
    text = written(console)
    assert PHASE.watch in text
    assert "\x1b" not in text


def made(**changes: object) -> report.Report:
    numbers = {field.name: 1 for field in msgspec.structs.fields(report.Report) if field.type is int}
    fields: dict[str, object] = {
        **numbers,
        "duration_s": 30.0,
        "reply_latency_ms": report.Quantiles(8.4, 31.0),
        "overflow_latency_ms": report.Quantiles(None, None),
        "sync_lag_ms": report.Quantiles(61.0, 9010.0),
        "bytes_on_wire_per_result": None,
        "accuracy": 0.9921,
        "lanes": [report.Lane("plant-a/edge-1", 1, "up", "results.1", 1566, 1566, 0, 0)],
    }
    return report.Report(**(fields | changes))  # type: ignore[arg-type]


def test_the_report_is_readable_and_ends_with_its_verdict() -> None:
    """The last line says whether the books balance, and if not, why."""
    console = terminal()
    console.print(view.table(made()))
    assert "8 / 31 ms" in written(console)
    assert "99.2%" in written(console)
    assert "The books balance" in written(console).splitlines()[-1]
    console = terminal()
    console.print(view.table(made(problems=["3 jobs got no reply"])))
    assert written(console).splitlines()[-1].strip() == "3 jobs got no reply"
