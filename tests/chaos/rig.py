"""Three hubs, a pool of agents and a client at work, on servers of their own: what faults are tried on.

async with rig.Rig(directory) as whole, whole.client.at_work():
    await whole.busy()
    lead = await whole.lead()
    await lead.hub.kill()
    await whole.goes_on()
await whole.settled()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx
import psycopg
import pytest

from demo import background, program, servers
from tests import models
from tests.chaos import client
from tests.integration import agents

MEMORY: Final = Path("/dev/shm")
HUBS: Final = 3
AGENTS: Final = 4
PER_S: Final = 20.0
"""Tasks that the client submits."""
PATIENCE_S: Final = 90.0
"""The longest wait for anything here: what piled up in half a minute's pause, on a busy machine."""
LOOK_S: Final = 0.05
EFFORT: Final = 150
AFTER: Final = 100
"""Tasks that must have been placed and ended since, for work to go on."""

HUB: Final[dict[str, Any]] = {"leases": {"ttl_s": 6.0}}
AGENT: Final[dict[str, Any]] = {
    "leases": {"slots": 4},
    "uplink": {"telemetry_s": 0.5, "keepalive_s": 3, "reconnect_max_s": 1.0},
}

LEADS: Final = "this hub leads, token "
LEADS_NO_MORE: Final = "this hub leads no more"

DEPTH = "SELECT count(*) FROM tasks WHERE state = 'QUEUED'"
RUNNING = "SELECT count(*) FROM leases"
UNDER_WAY = "SELECT count(*) FROM leases JOIN results USING (task_id)"
PLACED = "SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM leases)"
ENDED = "SELECT count(*) FROM tasks WHERE state IN ('COMPLETED', 'TERMINATED')"
GAP = """
    WITH instants AS ({instants}),
    gaps AS (SELECT at, lag(at) OVER (ORDER BY at) AS before FROM instants)
    SELECT extract(epoch FROM max(at - before))::float8 FROM gaps WHERE at > %s
"""
PLACEMENTS = """
    SELECT granted_at AS at FROM leases
    UNION ALL SELECT granted_at FROM attempts WHERE granted_at IS NOT NULL
"""
COMPLETIONS = "SELECT finished_at AS at FROM tasks WHERE state = 'COMPLETED'"
WRONG_ROWS = """
    SELECT t.task_id, t.items, array_agg(r.item ORDER BY r.item), array_agg(r.outcome)
    FROM tasks t LEFT JOIN results r USING (task_id)
    GROUP BY t.task_id
    HAVING count(r.item) <> t.items OR min(r.item) <> 0 OR max(r.item) <> t.items - 1
        OR bool_or(r.outcome <> 'ok' OR r.score <> r.item)
"""
NOBODYS_ROWS = "SELECT * FROM results r WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.task_id = r.task_id)"
WRONG_DEPTHS = "SELECT class_id, priority, sum(queued) FROM depths GROUP BY 1, 2 HAVING sum(queued) <> 0"
OPEN_LEDGERS = "SELECT agent_id, lane, cursor, committed FROM up_lanes WHERE cursor <> committed"

LOST = "SELECT sum(failures) FROM tasks"
SHADOWS = "SELECT count(*) FROM shadows"

_T = TypeVar("_T")


class Lead(NamedTuple):
    """Who leads, as PostgreSQL knows."""

    token: int
    hub: program.Program


class Rig:
    """Everything, with its files below `directory`, which should be empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = servers.Postgres(directory / "postgres")
        self.valkey = servers.Valkey(directory / "valkey")
        self.broker = servers.Mosquitto(directory / "broker")
        self.hubs = [
            program.Program(f"hub-{n}", ["cloud-hub", "serve"], directory / f"hub-{n}.toml")
            for n in range(HUBS)
        ]
        self.pool: dict[str, program.Program] = {}
        """The agents, by their names."""
        self.client = client.Client([hub.url for hub in self.hubs], PER_S)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with self._stack as stack:  # which is left only if the start fails
            for server in (self.postgres, self.valkey, self.broker):
                stack.push_async_exit(server)
            await background.together(server.start() for server in (self.postgres, self.valkey, self.broker))
            for hub in self.hubs:
                hub.configure(HUB | self._servers())
            self.pool = {f"pool-{n}": self._agent(f"pool-{n}") for n in range(AGENTS)}
            stack.push_async_callback(self._close_all, self.hubs)
            await self.hubs[0].start()  # which makes the tables
            stack.push_async_callback(self._close_all, list(self.pool.values()))
            await background.together(one.start() for one in (*self.hubs[1:], *self.pool.values()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _servers(self) -> dict[str, Any]:
        broker = {"host": self.broker.host, "port": self.broker.port}
        return {"database": self.postgres.dsn, "redis": self.valkey.url, "broker": broker}

    def _agent(self, name: str) -> program.Program:
        home = self.directory / name
        models.write_slow_scorer(
            home / "models" / client.MODEL,
            name=client.MODEL,
            effort=EFFORT,
            extra="[batching]\nmax_batch = 4",
        )
        return agents.agent(home, None, self.broker, site="cloud", name=name, **AGENT)

    @staticmethod
    async def _close_all(programs: list[program.Program]) -> None:
        await background.together(one.close() for one in programs)

    # What is asked

    async def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a query gives."""
        async with await psycopg.AsyncConnection.connect(self.postgres.dsn) as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def ask(self, query: str, *parameters: Any) -> Any:
        """The one value that a query gives."""
        ((value,),) = await self.rows(query, *parameters)
        return value

    async def lead(self) -> Lead:
        """Who took the lead last."""
        ((token, holder),) = await self.rows("SELECT token, holder FROM leadership")
        return Lead(token, next(hub for hub in self.hubs if f":{hub.port}/" in holder))

    async def leading(self) -> list[program.Program]:
        """The hubs that take themselves for the leader."""
        found = []
        async with httpx.AsyncClient() as http:
            for hub in self.hubs:
                metrics = (await http.get(f"{hub.url}/metrics")).text
                if re.search(r"^backhaul_hub_leading 1", metrics, re.MULTILINE):
                    found.append(hub)
        return found

    async def one_leads(self) -> bool:
        """Whether one hub takes itself for the leader, and is it."""
        return await self.leading() == [(await self.lead()).hub]

    def tokens(self) -> list[int]:
        """Under which tokens hubs have led, by their own words."""
        return sorted(
            int(token) for hub in self.hubs for token in re.findall(rf"{LEADS}(\d+)", hub.log.read_text())
        )

    async def deposed(self, hub: program.Program) -> bool:
        """Whether a hub says that it led and does so no more."""
        said = hub.log.read_text()
        return said.rfind(LEADS_NO_MORE) > said.rfind(LEADS)

    async def leases_of(self, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """What these agents of the pool hold."""
        return await self.rows(
            "SELECT task_id FROM leases JOIN agents USING (agent_id) WHERE name = ANY (%s)", list(names)
        )

    async def account(self, since: datetime) -> str:
        """What it cost: the longest gaps that ended after `since`, and what was done again."""
        placing, completing = [
            await self.ask(GAP.format(instants=instants), since) for instants in (PLACEMENTS, COMPLETIONS)
        ]
        return (
            f"placements paused {placing:.1f} s, completions {completing:.1f} s; "
            f"{len(self.tokens()) - 1} takeovers, {await self.ask(LOST)} leases lost, "
            f"{await self.ask(SHADOWS)} items run twice, "
            f"{self.client.again} of {len(self.client.book)} submissions repeated"
        )

    # What is waited for

    async def busy(self) -> None:
        """Wait until tasks are queued, leased, and in the middle of their items."""
        for query, wanted in ((ENDED, AFTER // 2), (DEPTH, 1), (RUNNING, AGENTS), (UNDER_WAY, 1)):
            await self.until(lambda: self.ask(query), lambda found: found >= wanted)  # noqa: B023

    async def goes_on(self) -> None:
        """Wait until more is placed, and more is ended."""
        for query in (PLACED, ENDED):
            so_far = await self.until(lambda: self.ask(query), lambda _: True)  # noqa: B023
            await self.until(lambda: self.ask(query), lambda found: found >= so_far + AFTER)  # noqa: B023

    async def succeeded(self, before: Lead) -> Lead:
        """Wait until another hub leads, and has placed something."""
        lead = await self.until(self.lead, lambda now: now.token > before.token)
        so_far = await self.ask(PLACED)
        await self.until(lambda: self.ask(PLACED), lambda placed: placed > so_far)
        return lead

    async def settled(self) -> None:
        """Wait until all that was submitted has ended; then nothing is missing, and nothing there twice."""
        book = self.client.book
        await self.until(lambda: self.ask(ENDED), lambda ended: ended >= len(book))
        keys = dict(await self.rows("SELECT key, task_id FROM idempotency_keys"))
        assert keys == book, "each key is the one task that its client was told of"
        assert dict(await self.rows("SELECT task_id, items FROM tasks")) == self.client.items
        not_completed = "SELECT task_id, state, reason, error FROM tasks WHERE state <> 'COMPLETED'"
        for nothing in (not_completed, WRONG_ROWS, NOBODYS_ROWS, "TABLE quarantine"):
            found = await self.rows(nothing)
            assert not found, f"{nothing}: {found}"
        # What agents say last of what others have done for them may still be on its way.
        for nothing in ("SELECT task_id FROM leases", OPEN_LEDGERS, WRONG_DEPTHS):
            await self.until(lambda: self.rows(nothing), lambda rows: rows == [])  # noqa: B023
        await self.until(self.one_leads, bool)
        tokens = self.tokens()
        assert len(set(tokens)) == len(tokens), f"two hubs led under one token: {tokens}"
        assert tokens[-1] == (await self.lead()).token

    async def until(self, look: Callable[[], Awaitable[_T]], wanted: Callable[[_T], bool]) -> _T:
        """Look again and again until what is seen is as `wanted`; while a server is away, nothing is seen."""
        seen: object = None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                seen = found = await look()
            except (psycopg.OperationalError, httpx.TransportError) as away:
                seen = away
            else:
                if wanted(found):
                    return found
            await asyncio.sleep(LOOK_S)
        raise AssertionError(f"after {PATIENCE_S:g} s it is still {seen!r}\n{self.logs()}")

    def logs(self) -> str:
        """What the hubs had to say, for whoever looks into a failure."""
        return "\n\n".join(f"{hub.name}\n{hub.log.read_text()[-4000:]}" for hub in self.hubs)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    """A rig, with its files in memory where there is room: for tests of processes and not of a disk.

    Where a server is not installed the test is skipped, and fails where `CI=true`.
    """
    with _home() as directory:
        try:
            async with Rig(directory) as whole:
                yield whole
        except servers.Missing as missing:
            if os.environ.get("CI") == "true":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=MEMORY if roomy else None) as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL may run as another user
        yield directory
