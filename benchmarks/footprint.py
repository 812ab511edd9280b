"""What an agent weighs: memory when idle, memory under a flood that it cannot work off, and its imports.

The flood finds an agent whose cloud is gone and whose model is slow: jobs of 2 KB pile up in its journal,
and its memory must not grow with them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import figures, meters, pictures, worker
from demo import program, servers
from demo.servers import ports
from shared import topics

AGENT: Final = topics.Agent("plant-a", "edge-1")
PAYLOAD_BYTES: Final = 2048
SETTLE_S: Final = 1.0
"""From a start, or the last reply, to the look at memory."""
LOOK_S: Final = 0.1
PATIENCE_S: Final = 600.0

FORBIDDEN: Final = frozenset(
    {"fastapi", "starlette", "pydantic", "psycopg", "redis", "kubernetes", "lightkube", "httpx", "rich"}
)
"""What an agent must never load: every site would pay for it with memory."""

IMPORTS: Final = ("os", "numpy", "paho.mqtt.client", "onnxruntime", "edge_agent.agent", "pyarrow.compute")
PROBE: Final = """
import json, sys, time
began = time.perf_counter()
import {module}
took_ms = 1000 * (time.perf_counter() - began)
(line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS:"))
modules = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps([took_ms, int(line.split()[1]) * 1024 / 1e6, modules]))
"""


@dataclass(frozen=True)
class Sizes:
    """Jobs: those that show what work adds to an idle agent, and those of the flood."""

    work: int = 500
    flood: int = 200_000


QUICK: Final = Sizes(work=50, flood=3_000)


@dataclass(frozen=True)
class Import:
    """What a module brings into a fresh Python."""

    took_ms: float
    resident_mb: float
    modules: frozenset[str]


@dataclass(frozen=True)
class Flood:
    """What a flood did to an agent."""

    quarter_mb: float
    """Resident memory when it had taken in a quarter of the jobs."""
    end_mb: float
    peak_mb: float
    jobs_per_s: float
    waiting: int
    """Jobs in its journal at the end."""


class Bench:
    """The site's broker, and an agent at a time."""

    def __init__(self, directory: Path, sizes: Sizes, broker: servers.Mosquitto) -> None:
        self._directory = directory
        self._sizes = sizes
        self._broker = broker

    async def idle(self, material: pictures.Material) -> tuple[float, float]:
        """Resident memory (MB) of an agent with its model loaded, and after it has done some work."""
        agent = self._agent("idle", material.models)
        try:
            await agent.start()
            await asyncio.sleep(SETTLE_S)
            before = meters.resident_mb(agent.pid)
            await self._pour(agent, material.model, self._sizes.work)
            await _until(agent, "replies_total", self._sizes.work)
            await asyncio.sleep(SETTLE_S)
            return before, meters.resident_mb(agent.pid)
        finally:
            await agent.close()

    async def flood(self) -> Flood:
        """Jobs faster than the demo's model takes them."""
        agent = self._agent("flood", pictures.DEMO.parent)
        count = self._sizes.flood
        try:
            await agent.start()
            began = time.perf_counter()
            pouring = asyncio.create_task(self._pour(agent, pictures.DEMO.name, count), name="flood")
            await _until(agent, "jobs_total", count // 4)
            quarter_mb = meters.resident_mb(agent.pid)
            told = await _until(agent, "jobs_total", count)
            took_s = time.perf_counter() - began
            await pouring
            return Flood(
                quarter_mb=quarter_mb,
                end_mb=meters.resident_mb(agent.pid),
                peak_mb=meters.peak_mb(agent.pid),
                jobs_per_s=count / took_s,
                waiting=told["queued"],
            )
        finally:
            await agent.kill()  # it would not get done with these
            await agent.close()

    async def _pour(self, agent: program.Program, model: str, count: int) -> None:
        given = {"port": self._broker.port, "topic": topics.job(AGENT.site, "camera-01", model)}
        given |= {"count": count, "payload_bytes": PAYLOAD_BYTES}
        async with worker.Worker("benchmarks.flood", given) as flood:
            await flood.hear()
            flood.say({"go": True})
            await flood.hear()

    def _agent(self, name: str, models: Path) -> program.Program:
        """An agent whose cloud does not answer."""
        agent = program.Program("agent", ["edge-agent", "run"], self._directory / name / "agent.toml")
        agent.configure(
            {
                "site": AGENT.site,
                "name": f"{AGENT.name}-{name}",
                "state": "state",
                "models": str(models),
                "broker": {"host": self._broker.host, "port": self._broker.port},
                "uplink_broker": {"host": self._broker.host, "port": ports.free()},
            }
        )
        return agent


async def _until(agent: program.Program, counter: str, count: int) -> dict[str, Any]:
    """The agent's report once its counter has come so far."""
    async with asyncio.timeout(PATIENCE_S):
        while agent.running:
            status = await agent.ask("/status")
            if status is not None and status["telemetry"][counter] >= count:
                told: dict[str, Any] = status["telemetry"]
                return told
            await asyncio.sleep(LOOK_S)
    raise servers.ServerError(f"the agent ended; the end of its log:\n{agent.log.read_text()[-2000:]}")


async def _import(module: str) -> Import:
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROBE.format(module=module)), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await probe.communicate()
    took_ms, resident_mb, modules = json.loads(output)
    return Import(took_ms, resident_mb, frozenset(modules))


async def measure(options: figures.Options) -> dict[str, float | int]:
    """Measure, print the tables, return the figures. AssertionError if an agent loads what it must not."""
    sizes = QUICK if options.quick else Sizes()
    imports = {module: await _import(module) for module in IMPORTS}
    loaded = imports["edge_agent.agent"].modules & FORBIDDEN
    assert not loaded, f"an agent loads {', '.join(sorted(loaded))}"
    with tempfile.TemporaryDirectory(prefix="backhaul-footprint-") as folder:
        directory = Path(folder)
        async with servers.Mosquitto(directory / "broker") as broker:
            bench = Bench(directory, sizes, broker)
            material = pictures.lay_out(directory)
            idle = [await bench.idle(material) for _ in range(options.rounds)]
            flood = await bench.flood()
    idle_mb = figures.median(before for before, _ in idle)
    working_mb = figures.median(after for _, after in idle)
    _report(imports, idle_mb, working_mb, flood, sizes)
    return {
        "idle_rss_mb": figures.significant(idle_mb),
        "working_rss_mb": figures.significant(working_mb),
        "flood_rss_mb": figures.significant(flood.peak_mb),
        "flood_growth_mb": round(flood.end_mb - flood.quarter_mb, 1),
        "flood_jobs": sizes.flood,
        "flood_jobs_per_s": round(flood.jobs_per_s),
        "flood_waiting": flood.waiting,
        "import_ms": round(imports["edge_agent.agent"].took_ms),
    }


def _report(
    imports: dict[str, Import], idle_mb: float, working_mb: float, flood: Flood, sizes: Sizes
) -> None:
    figures.show(
        "Imports, each in a fresh Python",
        ("module", "ms", "resident MB"),
        ((name, f"{one.took_ms:.0f}", f"{one.resident_mb:.0f}") for name, one in imports.items()),
        (f"The agent loads none of {', '.join(sorted(FORBIDDEN))}.",),
    )
    bare_mb = imports["os"].resident_mb
    states = (
        ("idle, its model loaded", idle_mb),
        (f"after {sizes.work:,} jobs (pyarrow is loaded)", working_mb),
        (f"a flood, at {sizes.flood // 4:,} jobs", flood.quarter_mb),
        (f"a flood, at {sizes.flood:,} jobs", flood.end_mb),
        ("a flood, peak", flood.peak_mb),
    )
    figures.show(
        "An agent's memory, its cloud gone",
        ("state", "resident MB", "of a bare Python"),
        ((state, f"{mb:.0f}", f"{mb / bare_mb:.1f}") for state, mb in states),
        (
            f"Taken in: {flood.jobs_per_s:,.0f} jobs of {PAYLOAD_BYTES:,} bytes a second; "
            f"{flood.waiting:,} waited in the journal at the end.",
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options("footprint", "an agent's memory and imports", argv)
    figures.save(options.json, "footprint", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
