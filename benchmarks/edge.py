"""Jobs through an edge agent: MQTT, the durable journal, inference, the reply over MQTT.

The agent is the real program with one inference thread, between it and the driver a real Mosquitto; 64 jobs
are without a reply at any time. Its cloud does not answer, so that its journal keeps every result as well. In
turn with it:

    bare loop       decode and run in one thread: no network, no store, one picture at a time
    plain script    paho and ONNX Runtime, the same driver and broker; keeps nothing: the model runs in
                    paho's callback, or in a second thread
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import figures, meters, pictures, plain, worker
from demo import program, servers
from demo.servers import ports
from shared import topics

AGENT: Final = topics.Agent("plant-a", "edge-1")
IN_FLIGHT: Final = 64


@dataclass(frozen=True)
class Sizes:
    """Jobs of each way, those before the clock runs, pictures of the bare loop; jobs without a reply."""

    jobs: int = 10_000
    warm: int = 1_000
    loop: int = 10_000
    in_flight: int = IN_FLIGHT


QUICK: Final = Sizes(jobs=300, warm=100, loop=300)


@dataclass(frozen=True)
class Run:
    """One measurement of one way through the broker."""

    jobs_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    """CPU milliseconds for a job, by process."""


class Bench:
    """The broker, the model, and the ways."""

    def __init__(
        self, directory: Path, sizes: Sizes, broker: servers.Mosquitto, *, demo: bool = False
    ) -> None:
        """`demo`: with the demo's model, though a faster one may be here."""
        self._directory = directory
        self._sizes = sizes
        self._broker = broker
        self.material = pictures.lay_out(directory, demo=demo)

    async def loop(self) -> float:
        """Pictures a second of the bare loop."""
        async with worker.Worker("benchmarks.plain", self._plain("loop", count=self._sizes.loop)) as bare:
            await bare.hear()
            bare.say({"go": True})
            told = await bare.hear()
        return float(told["per_s"])

    async def script(self, threads: int) -> Run:
        given = self._plain("serve", port=self._broker.port, threads=threads)
        async with worker.Worker("benchmarks.plain", given) as script:
            await script.hear()
            return await self._drive(plain.JOBS, script.pid)

    async def agent(self, models: Path | None = None) -> Run:
        """With the package of `material`, or with that of the same name in another folder of models."""
        home = self._directory / "agent"
        shutil.rmtree(home, ignore_errors=True)
        agent = program.Program("agent", ["edge-agent", "run"], home / "agent.toml")
        agent.configure(
            {
                "site": AGENT.site,
                "name": AGENT.name,
                "state": "state",
                "models": str(models or self.material.models),
                "broker": {"host": self._broker.host, "port": self._broker.port},
                "uplink_broker": {"host": self._broker.host, "port": ports.free()},
                "engine": {"threads": 1},
            }
        )
        try:
            await agent.start()
            return await self._drive(topics.job(AGENT.site, "camera-01", self.material.model), agent.pid)
        except worker.WorkerFailed as error:
            status = await agent.ask("/status")
            error.add_note(f"the agent says: {status}; its log:\n{agent.log.read_text()[-4000:]}")
            raise
        finally:
            await agent.close()

    async def _drive(self, topic: str, pid: int) -> Run:
        sizes = self._sizes
        given = {"port": self._broker.port, "topic": topic, "pictures": str(self.material.pictures)}
        given |= {"in_flight": sizes.in_flight, "warm": sizes.warm, "count": sizes.jobs}
        async with worker.Worker("benchmarks.driver", given) as driver:
            await driver.hear()
            driver.say({"go": True})
            await driver.hear()  # warm
            meter = {"service": meters.Cpu(pid), "broker": meters.Cpu(self._broker.pid)}
            told = await driver.hear()
            cpu_s = {name: one.seconds() for name, one in meter.items()} | {"driver": told["cpu_s"]}
        return Run(
            jobs_per_s=told["jobs_per_s"],
            p50_ms=told["p50_ms"],
            p99_ms=told["p99_ms"],
            cpu_ms={name: 1000 * seconds / sizes.jobs for name, seconds in cpu_s.items()},
        )

    def _plain(self, role: str, **more: Any) -> dict[str, Any]:
        material = self.material
        common = {"graph": str(material.graph), "size": material.size, "scale": material.scale}
        return {"role": role, "pictures": str(material.pictures), **common, **more}


async def measure(options: figures.Options) -> dict[str, float | int]:
    """Run all ways in turn, print the table, return the figures."""
    loops: list[float] = []
    scripts: dict[int, list[Run]] = {1: [], 2: []}
    agents: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="backhaul-edge-") as folder:
        directory = Path(folder)
        async with servers.Mosquitto(directory / "broker") as broker:
            bench = Bench(directory, QUICK if options.quick else Sizes(), broker)
            for _ in range(options.rounds):
                loops.append(await bench.loop())
                agents.append(await bench.agent())
                for threads, runs in scripts.items():
                    runs.append(await bench.script(threads))
    return _report(figures.median(loops), _middle(agents), *(_middle(runs) for runs in scripts.values()))


def _middle(runs: Sequence[Run]) -> Run:
    """The medians of all that was measured."""
    return Run(
        jobs_per_s=figures.median(run.jobs_per_s for run in runs),
        p50_ms=figures.median(run.p50_ms for run in runs),
        p99_ms=figures.median(run.p99_ms for run in runs),
        cpu_ms={name: figures.median(run.cpu_ms[name] for run in runs) for name in runs[0].cpu_ms},
    )


def _report(loop: float, agent: Run, script: Run, threaded: Run) -> dict[str, float | int]:
    def row(way: str, run: Run) -> tuple[str, ...]:
        costs = (f"{run.cpu_ms[name]:.2f}" for name in ("service", "broker", "driver"))
        rates = (f"{run.jobs_per_s:,.0f}", f"{run.jobs_per_s / loop:.2f}")
        return (way, *rates, f"{run.p50_ms:.1f}", f"{run.p99_ms:.1f}", *costs)

    figures.show(
        f"Jobs through an edge agent, one inference thread, {IN_FLIGHT} in flight",
        ("way", "jobs/s", "of the bare loop", "p50 ms", "p99 ms", "service", "broker", "driver"),
        (
            ("bare loop", f"{loop:,.0f}", "1.00", "-", "-", f"{1000 / loop:.2f}", "-", "-"),
            row("edge agent", agent),
            row("plain script", script),
            row("plain script, two threads", threaded),
        ),
        ("Medians; the last three columns are CPU milliseconds for a job. The scripts keep nothing.",),
    )
    return {
        "jobs_per_s": round(agent.jobs_per_s),
        "p50_ms": figures.significant(agent.p50_ms),
        "p99_ms": figures.significant(agent.p99_ms),
        "bare_per_s": round(loop),
        "plain_per_s": round(script.jobs_per_s),
        "ratio_to_bare": figures.significant(agent.jobs_per_s / loop),
        "ratio_to_plain": figures.significant(agent.jobs_per_s / script.jobs_per_s),
        "ratio_to_plain_threaded": figures.significant(agent.jobs_per_s / threaded.jobs_per_s),
        "driver_cpu_ms_per_job": figures.significant(agent.cpu_ms["driver"]),
        "broker_cpu_ms_per_job": figures.significant(agent.cpu_ms["broker"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options("edge", "jobs through an edge agent", argv)
    figures.save(options.json, "edge", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
