"""Result rows on their way from an agent's journal into PostgreSQL.

The agent and the hub are the real programs, between them a real Mosquitto. The journal is filled first,
with the link off; the clock runs from the agent's birth at the broker to the commit of the last row.

In turn with it, into the same table:

    COPY            the same rows from memory by binary COPY, one transaction: what this PostgreSQL takes
    JSON, each      each row a JSON message, QoS 1, and an INSERT of its own
    JSON, 500       the same, 500 rows a transaction
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pgpq
import psycopg
import pyarrow as pa

from benchmarks import figures, meters, rows, worker
from cloud_hub.store import copy, migrate
from demo import program, servers, toml
from edge_agent import settings
from edge_agent.journal import journal
from shared import lanes, link, signals, topics, wire

AGENT: Final = topics.Agent("plant-a", "edge-1")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]

PATIENCE_S: Final = 120.0
POLL_S: Final = 0.01

EMPTY: Final = (
    "TRUNCATE agents, up_lanes, down_lanes, tasks, results, shadows, quarantine RESTART IDENTITY CASCADE"
)
COMMITTED: Final = "SELECT coalesce(sum(committed), 0)::bigint FROM up_lanes"
LEDGER: Final = "SELECT sum(cursor - committed)::bigint, sum(numbered - cursor)::bigint FROM up_lanes"
DIGEST: Final = """
    SELECT count(*), sum(hashtextextended(ROW(
        task_id, item, attempt, device, model, version, outcome, label, score, output, error,
        observed_at, clock_offset_us, clock_error_us, wait_us, run_us
    )::text, 0))::text FROM results
"""
"""The number of rows, and a sum that differs if one of them does, in whatever column."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each way: as many as take seconds."""

    backhaul: int = 400_000
    json_each: int = 2_000
    json_500: int = 10_000


QUICK: Final = Sizes(backhaul=4_000, json_each=200, json_500=1_000)


@dataclass
class Run:
    """One measurement of one way."""

    rows_per_s: float
    cpu_s: dict[str, float]
    """Seconds for a million rows, by process."""
    missing: int = 0


class Bench:
    """The servers, the filled journal, and the ways."""

    def __init__(
        self, directory: Path, sizes: Sizes, postgres: servers.Postgres, broker: servers.Mosquitto
    ) -> None:
        self._directory = directory
        self._sizes = sizes
        self._postgres = postgres
        self._broker = broker
        self._template = directory / "filled"
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._digest: tuple[int, str] = (0, "")

    @property
    def bytes_per_row(self) -> float:
        """Of the messages' payloads."""
        return self._bytes / self._sizes.backhaul

    async def prepare(self) -> None:
        """The tables, the journal with its rows, and the same rows in memory."""
        await migrate.migrate(self._postgres.dsn)
        async with journal.Journal.open(self._template / "journal.db", *AGENT, settings.Journal()) as book:
            await self._fill(book)
            await self._load(book)

    async def _fill(self, book: journal.Journal) -> None:
        for accepted, finished in rows.batches(self._sizes.backhaul):
            await book.accept(accepted)
            await book.finish(finished)

    async def _load(self, book: journal.Journal) -> None:
        lane, after = lanes.Lane("results"), 0
        while after < self._sizes.backhaul:
            batch = await book.read(lane, after, wire.MAX_BATCH_ROWS, wire.MAX_BATCH_BYTES)
            assert batch is not None
            self._batches += pa.Table.from_batches(batch.batches).combine_chunks().to_batches()
            self._bytes += len(wire.encode(batch.kind, batch.batches))
            after = batch.span.last

    async def copy(self) -> Run:
        """The ceiling."""
        async with self._database() as connection:
            await connection.execute(EMPTY)
            server = meters.Cpu(self._postgres.pid)
            batches = [copy.with_constant(batch, "agent_id", 1, pa.int32()) for batch in self._batches]
            began = time.perf_counter()
            encoder = pgpq.ArrowToPostgresBinaryEncoder(batches[0].schema)
            into = f"COPY results ({', '.join(batches[0].schema.names)}) FROM STDIN (FORMAT BINARY)"
            async with connection.cursor() as cursor, cursor.copy(into) as stream:
                await stream.write(encoder.write_header())
                for batch in batches:
                    await stream.write(encoder.write_batch(batch))
                await stream.write(encoder.finish())
            run = self._run(began, self._sizes.backhaul, {"postgres": server})
            self._digest = await _digest(connection)
        return run

    async def backhaul(self) -> Run:
        """The real agent and the real hub. Raises AssertionError unless each row arrived once, as it was."""
        home = self._directory / "run"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self._template, home / "state")
        (home / "models").mkdir()
        address: toml.Table = {"host": self._broker.host, "port": self._broker.port}
        hub = program.Program("hub", ["cloud-hub", "serve"], home / "hub.toml")
        hub.configure({"database": self._postgres.dsn, "broker": address})
        agent = program.Program("agent", ["edge-agent", "run"], home / "agent.toml")
        agent.configure(
            {
                "site": AGENT.site,
                "name": AGENT.name,
                "state": "state",
                "models": "models",
                "uplink_broker": address,
            }
        )
        async with contextlib.AsyncExitStack() as stack:
            database = await stack.enter_async_context(self._database())
            await database.execute(EMPTY)
            births = await stack.enter_async_context(Births(self._broker))
            for one in (hub, agent):
                stack.push_async_callback(one.close)
            await hub.start()
            meter = {"hub": meters.Cpu(hub.pid), "broker": meters.Cpu(self._broker.pid)}
            meter["postgres"] = meters.Cpu(self._postgres.pid)
            starting = asyncio.create_task(agent.start(), name="start the agent")
            began = await births.next()
            meter["agent"] = meters.Cpu(agent.pid)
            await _until_committed(database, self._sizes.backhaul)
            run = self._run(began, self._sizes.backhaul, meter)
            await starting
            missing, waiting = await _one(database, LEDGER)
            run.missing = missing + waiting
            found = await _digest(database)
            assert found == self._digest, f"the table holds {found}, and COPY had put {self._digest} there"
        return run

    async def json_each(self) -> Run:
        return await self._json(self._sizes.json_each, together=1)

    async def json_500(self) -> Run:
        return await self._json(self._sizes.json_500, together=500)

    async def _json(self, count: int, together: int) -> Run:
        common = {"port": self._broker.port, "count": count}
        consume = {"role": "consume", "dsn": self._postgres.dsn, "together": together, **common}
        async with (
            self._database() as database,
            worker.Worker("benchmarks.naive", consume) as consumer,
            worker.Worker("benchmarks.naive", {"role": "produce", **common}) as producer,
        ):
            await database.execute(EMPTY)
            await consumer.hear()
            await producer.hear()
            meter = {"agent": meters.Cpu(producer.pid), "hub": meters.Cpu(consumer.pid)}
            meter |= {"broker": meters.Cpu(self._broker.pid), "postgres": meters.Cpu(self._postgres.pid)}
            began = time.perf_counter()
            producer.say({"go": True})
            await consumer.hear()
            run = self._run(began, count, meter)
            (arrived,) = await _one(database, "SELECT count(*) FROM results")
            assert arrived == count, f"{arrived} rows of {count} arrived"
        return run

    def _run(self, began: float, count: int, meter: dict[str, meters.Cpu]) -> Run:
        """What was measured since `began`."""
        rate = count / (time.perf_counter() - began)
        return Run(rate, {name: one.seconds() / count * 1e6 for name, one in meter.items()})

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[Connection]:
        async with await psycopg.AsyncConnection.connect(self._postgres.dsn, autocommit=True) as connection:
            yield connection


class Births:
    """Tells when an agent says that it is there."""

    def __init__(self, broker: servers.Mosquitto) -> None:
        self._link = link.Link(link.Address(broker.host, broker.port), "benchmark")
        self._link.subscribe(topics.all_presence(), 1, self._arrived)
        self._seen: asyncio.Queue[float] = asyncio.Queue()

    async def __aenter__(self) -> Births:
        self._running = asyncio.create_task(self._link.run(), name="births")
        await self._link.wait_connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])

    async def next(self) -> float:
        """The instant (`time.perf_counter`) of the next birth."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._seen.get()

    def _arrived(self, message: link.Message) -> None:
        self._link.ack(message)
        if not message.retain and signals.decode(signals.Presence, message.payload).online:
            self._seen.put_nowait(time.perf_counter())


async def _until_committed(database: Connection, count: int) -> None:
    """Look, a hundred times a second, whether the hub's books say that so many records are committed."""
    async with asyncio.timeout(PATIENCE_S):
        while (await _one(database, COMMITTED))[0] < count:  # noqa: ASYNC110 - a commit of another's
            await asyncio.sleep(POLL_S)


async def _one(database: Connection, query: str) -> tuple[Any, ...]:
    row = await (await database.execute(query)).fetchone()
    assert row is not None
    return row


async def _digest(database: Connection) -> tuple[int, str]:
    count, digest = await _one(database, DIGEST)
    return count, digest


async def measure(options: figures.Options) -> dict[str, float | int]:
    """Run all ways in turn, print the table, return the figures."""
    sizes = QUICK if options.quick else Sizes()
    runs: dict[str, list[Run]] = {name: [] for name in ("COPY", "Backhaul", "JSON, 500", "JSON, each")}
    with tempfile.TemporaryDirectory(prefix="backhaul-transport-") as folder:
        directory = Path(folder)
        async with (
            servers.Postgres(directory / "postgres") as postgres,
            servers.Mosquitto(directory / "broker") as broker,
        ):
            bench = Bench(directory, sizes, postgres, broker)
            await bench.prepare()
            for _ in range(options.rounds):
                runs["COPY"].append(await bench.copy())
                runs["Backhaul"].append(await bench.backhaul())
                runs["JSON, 500"].append(await bench.json_500())
                runs["JSON, each"].append(await bench.json_each())
    return _report(runs, bench.bytes_per_row)


def _report(runs: dict[str, list[Run]], bytes_per_row: float) -> dict[str, float | int]:
    rates = {way: figures.median(run.rows_per_s for run in its) for way, its in runs.items()}
    missing = sum(run.missing for run in runs["Backhaul"])

    def cpu(way: str, process: str) -> str:
        return f"{figures.median(run.cpu_s.get(process, 0.0) for run in runs[way]):.1f}"

    figures.show(
        "From an agent's journal to committed rows in PostgreSQL",
        ("way", "rows/s", "Backhaul is", "agent", "broker", "hub", "PostgreSQL"),
        [
            (
                way,
                f"{rate:,.0f}",
                f"{rates['Backhaul'] / rate:.2f} x",
                *(cpu(way, process) for process in ("agent", "broker", "hub", "postgres")),
            )
            for way, rate in rates.items()
        ],
        (
            "Medians. CPU seconds are for a million rows; a script's producer stands under agent, its",
            "consumer under hub.",
            f"Backhaul: {bytes_per_row:.1f} bytes a row on the wire; {missing} records missing; "
            "each row there once, as it was.",
        ),
    )
    return {
        "rows_per_s": round(rates["Backhaul"]),
        "copy_rows_per_s": round(rates["COPY"]),
        "ratio_to_copy": figures.significant(rates["Backhaul"] / rates["COPY"]),
        "ratio_to_naive": figures.significant(rates["Backhaul"] / rates["JSON, each"]),
        "ratio_to_json_500": figures.significant(rates["Backhaul"] / rates["JSON, 500"]),
        "bytes_per_row": figures.significant(bytes_per_row),
        "records_missing": missing,
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options("transport", "rows from an agent's journal into PostgreSQL", argv)
    figures.save(options.json, "transport", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
