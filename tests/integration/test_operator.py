"""The operator's command line, run as a command against a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cloud_hub import events
from cloud_hub.operator import client, command, options
from cloud_hub.store import apply, schedule
from shared import tasks, topics, wire
from tests.integration import api_server, stores
from tests.integration.api_server import Served, join, jpeg, png, record, results, telemetry


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


@dataclass
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Its output with --json."""
        return [json.loads(line) for line in self.out.splitlines()]


async def backhaul(hub: Served | None, *words: str, **env: str) -> Ran:
    """Run `backhaul` with these words; it finds the hub by the environment."""
    environment = {**os.environ, **({"BACKHAUL_HUB": hub.url} if hub else {}), **env}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloud_hub.operator.command",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def run_one(hub: Served, task_id: bytes, agent_id: int, **columns: Any) -> None:
    """Do what an agent does with a task: hold its lease, send its result, tell how it ended."""
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(task_id, agent_id, 30.0)])
    rows = results(1, task_id=[task_id], attempt=1, **columns)
    ended = wire.build(
        wire.ATTEMPTS,
        {
            "task_id": [task_id],
            "attempt": [1],
            "state": ["COMPLETED"],
            "retriable": [False],
            "items_done": [1],
        },
    )
    async with hub.pool.connection() as connection:
        await apply.results(connection, agent_id, rows)
        outcome = await apply.attempts(connection, agent_id, ended)
    for end in outcome.ended:
        hub.events.publish(events.TaskEnded(end.task_id, end.state, end.reason, end.model))


@contextlib.asynccontextmanager
async def working(hub: Served, **columns: Any) -> AsyncIterator[None]:
    """An agent that runs whatever is queued, until the block is left."""
    agent_id = await join(hub.pool)

    async def work() -> None:
        while True:
            async with hub.pool.connection() as connection:
                waiting = [
                    task_id
                    for model in ("defects", "ocr")
                    for task_id in await stores.waiting(connection, model=model)
                ]
            for task_id in waiting:
                await run_one(hub, task_id, agent_id, **columns)
            await asyncio.sleep(0.01)

    running = asyncio.create_task(work())
    try:
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def at(server: asyncio.Server) -> str:
    """The address of a server that stands in for a hub."""
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# Submitting


async def test_submit_and_wait_shows_the_verdict(hub: Served, tmp_path: Path) -> None:
    """One line of shell gets a file's verdict: its label, its score, and who gave it."""
    (tmp_path / "part.png").write_bytes(png())
    async with working(hub, label="scratch", score=0.913):
        ran = await backhaul(hub, "submit", f"{tmp_path}/part.png", "--model", "defects", "--wait")
    assert ran.status == 0, ran.err
    for word in ("part.png", "COMPLETED", "scratch", "0.913", "lyon/press-a"):
        assert word in ran.out


async def test_submit_takes_many_files_in_their_order(hub: Served, tmp_path: Path) -> None:
    """Many files become as many tasks, told in the order of their names, with what was said of them."""
    files = [tmp_path / f"part-{n:02}.{'png' if n % 2 else 'jpg'}" for n in range(20)]
    for n, file in enumerate(files):
        file.write_bytes(png(n) if n % 2 else jpeg())
    names = [str(file) for file in files]
    words = ("--model", "defects@3", "--priority", "8", "--deadline", "90s", "--device", "camera-7")
    ran = await backhaul(hub, "--json", "submit", *names, *words)
    assert ran.status == 0, ran.err
    assert [line["file"] for line in ran.lines] == names
    stored = await hub.rows(
        "SELECT version, priority, device, deadline_at - submitted_at BETWEEN '80s' AND '90s' FROM tasks"
    )
    assert stored == [("3", 8, "camera-7", True)] * 20


async def test_one_bad_file_does_not_stop_the_others(hub: Served, tmp_path: Path) -> None:
    """Files that are refused or not there are told, the rest is submitted, and the status is 1."""
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [f"{tmp_path}/{name}" for name in ("bad.png", "none.png", "good.png")]
    ran = await backhaul(hub, "submit", *files, "--model", "defects")
    assert ran.status == 1
    assert "bad.png: the body is no PNG image" in ran.err
    assert "none.png" in ran.err
    assert "good.png" in ran.out
    assert await hub.rows("SELECT count(*) FROM tasks") == [(1,)]


async def test_a_failed_task_fails_the_command(hub: Served, tmp_path: Path) -> None:
    """With --wait the exit status says whether every task was completed in time."""
    (tmp_path / "part.png").write_bytes(png())
    ran = await backhaul(
        hub, "submit", f"{tmp_path}/part.png", "--model", "defects", "--wait", "200ms", "--json"
    )
    assert (ran.status, ran.lines[0]["state"]) == (1, "QUEUED")


async def test_an_answer_that_was_lost_makes_no_second_task(hub: Served) -> None:
    """A submission whose answer never came is sent again and is still one task."""
    lost = 2
    host, port = hub.url.removeprefix("http://").split(":")

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one request on; the first answers never come back."""
        nonlocal lost
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        up_writer.write(head.replace(b"keep-alive", b"close") + body)
        answer = await up_reader.read()
        if lost:
            lost -= 1
        else:
            writer.write(answer)
        writer.close()
        up_writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        address = at(server)

        def submit() -> client.Answer:
            with client.Client(address) as through:
                return through.submit(png(), "image/png", model="defects")

        answer = await asyncio.to_thread(submit)
    assert lost == 0
    assert answer["repeated"] is True
    assert await hub.rows("SELECT count(*) FROM tasks") == [(1,)]


# Looking


async def test_tasks_and_task_show_what_there_is(hub: Served) -> None:
    """`tasks` lists by state, `task` tells all of one, for people and for scripts."""
    ids = [await hub.submit(), await hub.submit(model="ocr")]
    await hub.client.post(f"/v1/tasks/{ids[0]}/cancel")
    listed = await backhaul(hub, "tasks", "--state", "terminated")
    assert ids[0] in listed.out
    assert "cancelled" in listed.out
    assert ids[1] not in listed.out
    every = await backhaul(hub, "tasks", "--json", "--limit", "1")
    assert [task["task_id"] for task in every.lines] == [ids[1]]
    one = await backhaul(hub, "task", ids[1])
    assert "QUEUED" in one.out
    assert "ocr" in one.out
    assert (await backhaul(hub, "task", ids[0], "--json")).lines[0]["reason"] == "cancelled"


async def test_results_are_listed_and_saved_as_arrow(hub: Served, tmp_path: Path) -> None:
    """`results` lists rows; with --arrow all of them go into a file that pyarrow reads."""
    agent_id = await join(hub.pool)
    await record(hub.pool, agent_id, results(120))
    await record(hub.pool, agent_id, results(2, label="dent"))
    listed = await backhaul(hub, "results", "--label", "dent", "--json")
    assert [row["label"] for row in listed.lines] == ["dent", "dent"]
    assert "dent" in (await backhaul(hub, "results", "--limit", "3")).out
    file = tmp_path / "results.arrows"
    saved = await backhaul(hub, "results", "--arrow", str(file))
    assert saved.status == 0, saved.err
    assert pa.ipc.open_stream(file.read_bytes()).read_all().num_rows == 122
    assert os.listdir(tmp_path) == [file.name]


async def test_a_broken_export_leaves_no_file(tmp_path: Path) -> None:
    """A stream that breaks off is an error, and what came of it is not left behind as if it were all."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(broken, "127.0.0.1", 0) as server:
        address = at(server)
        ran = await backhaul(None, "results", "--arrow", str(tmp_path / "all.arrows"), "--hub", address)
    assert ran.status == 1
    assert "no answer from the hub" in ran.err
    assert os.listdir(tmp_path) == []


async def test_fleet_shows_agents_and_their_books(hub: Served) -> None:
    """`fleet` tells of each agent its state and its ledger, and what needs attention."""
    agent_id = await join(hub.pool, telemetry=telemetry(models=[api_server.model(wanted="CUDA")]))
    await record(hub.pool, agent_id, results(1200))
    await join(hub.pool, topics.Agent("gdansk", "jetson"), online=False)
    ran = await backhaul(hub, "fleet")
    assert "0 missing of 1,200" in ran.out
    assert "lyon/press-a: defects 3 runs on CPUExecutionProvider, not CUDAExecutionProvider" in ran.out
    assert "offline" in ran.out
    (fleet,) = (await backhaul(hub, "fleet", "--json")).lines
    assert [site["site"] for site in fleet["sites"]] == ["gdansk", "lyon"]


# Changing


async def test_cancel_and_retry(hub: Served) -> None:
    """Tasks are cancelled and run again by their ids; one that cannot be does not stop the others."""
    ids = [await hub.submit(), await hub.submit()]
    unknown = tasks.format_id(tasks.new_id())
    cancelled = await backhaul(hub, "cancel", ids[0], unknown, ids[1], "--json")
    assert cancelled.status == 1
    assert [task["task_id"] for task in cancelled.lines] == ids
    assert unknown in cancelled.err
    retried = await backhaul(hub, "retry", ids[0])
    assert (retried.status, "QUEUED" in retried.out) == (0, True)


async def test_drain_and_resume(hub: Served) -> None:
    """An agent is drained and resumed by its place, SITE/NAME."""
    await join(hub.pool)
    assert "no more" in (await backhaul(hub, "drain", "lyon/press-a")).out
    assert "in 60 s goes back" in (await backhaul(hub, "drain", "lyon/press-a", "--within", "60")).out
    assert (await hub.client.get("/v1/agents/lyon/press-a")).json()["draining"] is True
    assert (await backhaul(hub, "resume", "lyon/press-a", "--json")).lines[0]["draining"] is False
    assert (await backhaul(hub, "cordon", "lyon/press-a", "--json")).lines[0]["draining"] is True
    assert "again" in (await backhaul(hub, "undrain", "lyon/press-a")).out
    wrong = await backhaul(hub, "drain", "press-a")
    assert (wrong.status, "SITE/NAME" in wrong.err) == (1, True)


async def test_dead_letters_run_again_by_a_filter(hub: Served) -> None:
    """All of a reason, or of a model, are queued again by one command; ids and a filter are not mixed."""
    for task_id in [await hub.submit(), await hub.submit(), await hub.submit(model="ocr")]:
        await hub.client.post(f"/v1/tasks/{task_id}/cancel")
    words = ("retry", "--reason", "cancelled", "--model", "defects")
    assert (await backhaul(hub, *words)).out == "2 tasks are in the queue again.\n"
    assert (await backhaul(hub, *words, "--json")).lines == [{"retried": 0, "more": False}]
    for wrong in (("retry",), ("retry", "--model", "ocr", task_id)):
        assert (await backhaul(hub, *wrong)).status == 1


# Queues


async def test_queues_are_set_up_and_seen(hub: Served) -> None:
    """`queues set` changes what it names and leaves the rest; the table shows figures beside their limits."""
    set_up = ("queues", "set", "archive")
    first = await backhaul(
        hub,
        *set_up,
        "--weight",
        "0.5",
        "--max-queued",
        "100",
        "--max-running",
        "8",
        "--default-priority",
        "2",
    )
    assert first.status == 0
    await hub.submit(queue="archive")
    (changed,) = (
        await backhaul(hub, *set_up, "--max-running", "none", "--when-full", "drop_lowest", "--json")
    ).lines
    assert (changed["weight"], changed["max_queued"], changed["max_running"]) == (0.5, 100, None)
    table = (await backhaul(hub, "queues")).out
    for seen in ("archive", "0.5", "1 of 100", "2: 1", "drop lowest", "name no priority have 2"):
        assert seen in table, table
    (listed,) = (await backhaul(hub, "queues", "--json")).lines
    assert [queue["name"] for queue in listed["queues"]] == ["archive"]
    (removed,) = (await backhaul(hub, "queues", "rm", "archive", "--json")).lines
    assert (removed["weight"], removed["max_queued"], removed["queued"]) == (1.0, None, 1)


async def test_settings_that_make_no_sense_are_told(hub: Served) -> None:
    """What the hub refuses is told with its field, what is no number by the command itself."""
    refused = await backhaul(hub, "queues", "set", "archive", "--weight", "0")
    assert (refused.status, "weight" in refused.err) == (1, True)
    assert (await backhaul(hub, "queues", "set", "archive", "--max-queued", "many")).status == 2


# Explanations


async def test_why_tells_in_words(hub: Served) -> None:
    """What a task waits for; then where it went, who else could have run it, and how that ended."""
    task_id = await hub.submit(queue="archive")
    waiting = (await backhaul(hub, "why", task_id)).out
    for seen in ("no agent has model defects ready", "0 tasks of higher priorities", "queue archive"):
        assert seen in waiting, waiting
    agent_id, other = await join(hub.pool), await join(hub.pool, topics.Agent("lyon", "press-b"))
    noted = {"predicted_s": 0.9, "run_s": 0.6, "able": 2, "effective_priority": 5, "moon": "full"}
    grant = schedule.Grant(
        tasks.parse_id(task_id), agent_id, 30.0, 5, json.dumps(noted | {"others": [[other, 1.4]]})
    )
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [grant])
    running = (await backhaul(hub, "why", task_id)).out
    for seen in ("went to lyon/press-a", "900 ms", "lyon/press-b in 1 s", "moon: full", "It runs."):
        assert seen in running, running
    (told,) = (await backhaul(hub, "why", task_id, "--json")).lines
    assert told["decisions"][0]["predicted_s"] == 0.9


# Errors and help


async def test_a_refusal_names_the_field(hub: Served, tmp_path: Path) -> None:
    """What the hub refuses is told in its words."""
    ran = await backhaul(hub, "tasks", "--state", "DONE")
    assert ran.status == 1
    assert "state: Input should be" in ran.err


async def test_a_hub_that_is_not_there_is_told_with_what_to_do() -> None:
    """Without a hub the command ends soon, with its address and where to say another."""
    ran = await backhaul(None, "fleet", "--hub", "http://127.0.0.1:9", BACKHAUL_HUB="http://ignored.invalid")
    assert ran.status == 1
    assert "http://127.0.0.1:9" in ran.err
    assert "BACKHAUL_HUB" in ran.err


async def test_something_else_than_a_hub_is_recognized(hub: Served) -> None:
    """An answer that is no hub's is told as such, not as a traceback."""

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\nHello")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        address = at(server)
        ran = await backhaul(None, "fleet", "--hub", address)
    assert ran.status == 1
    assert "is that a hub?" in ran.err


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows whole commands, and every command of an example is one that there is."""
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "examples:" in capsys.readouterr().out
    parser = options.parser()
    for line in options.EXAMPLES.splitlines():
        words = line.split("|")[0].split("  ")[1 if line.startswith("  ") else 0].split()
        if words[:1] == ["backhaul"] and words[1] not in ("COMMAND", "demo"):
            assert parser.parse_args(words[1:]).command == words[1]


def test_demo_is_given_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """`backhaul demo` runs the demo with all that follows, and ends with its status."""
    given: list[list[str]] = []
    stand_in = types.ModuleType("demo.__main__")

    def main(words: list[str]) -> int:
        given.append(words)
        return 3

    stand_in.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "demo.__main__", stand_in)
    assert command.main(["demo", "--duration", "30", "--json"]) == 3
    assert given == [["--duration", "30", "--json"]]


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("500ms", 500), ("30s", 30_000), ("1.5m", 90_000), ("2", 2000)]
)
def test_durations_are_read_with_their_units(text: str, milliseconds: int) -> None:
    """A duration may be of any unit; a bare number is of seconds."""
    assert options.milliseconds(text) == milliseconds
