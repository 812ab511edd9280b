"""The whole of Backhaul on one machine: servers, sites, cloud pool and hub, as child processes.

    async with system.System(directory) as whole:
        await whole.sites["plant-a"].agent.kill()    # as every other part
        await whole.sites["plant-a"].agent.start()
        whole.sites["plant-b"].relay.cut()

Every part is the real one: the cloud's PostgreSQL, Valkey and broker, each site's own broker and agent, the
same agent program as the cloud's pool, and the hub. A site's agent reaches the cloud through a relay that
can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from demo import background, toml
from demo.program import Program
from demo.relay import Relay
from demo.servers import Mosquitto, Postgres, Server, Valkey, ports
from shared import link, topics

MODELS: Final = Path(__file__).resolve().parent / "models"
MODEL: Final = "surface-defects"
"""The one model here; all agents have it."""

SITES: Final = ("plant-a", "plant-b")
EDGE: Final = "edge-1"
"""The name of each site's agent."""
POOL: Final = topics.Agent("cloud", "pool-1")

POLL_S: Final = 0.5
"""Between two looks of an agent at what the hub wants it to serve."""

AGENT: Final[toml.Document] = {
    "overflow": {"max_wait_s": 0.3, "reclaim_after_s": 1.0},
    "uplink": {"telemetry_s": 0.5, "keepalive_s": 3, "reconnect_max_s": 1.0},
}
"""Settings of all agents here: short times, so that half a minute is enough to see everything."""

HUB: Final[toml.Document] = {
    "gateway": {"silent_after_s": 4.0},
    "leases": {"ttl_s": 4.0, "look_every_s": 0.5},
    "scheduler": {"idle_s": 0.5},
}
"""Settings of the hub here, likewise."""


@dataclass(frozen=True)
class Site:
    """A plant: its broker, its agent, and its line to the cloud."""

    name: str
    broker: Mosquitto
    relay: Relay
    """Its way to the cloud's broker."""
    web: Relay
    """Its way to the hub's HTTP port."""
    agent: Program

    @property
    def address(self) -> link.Address:
        """Where its devices publish."""
        return link.Address(self.broker.host, self.broker.port)

    def cut(self) -> None:
        """It reaches nothing in the cloud any more."""
        self.relay.cut()
        self.web.cut()

    async def heal(self) -> None:
        """It reaches the cloud again."""
        await self.relay.heal()
        await self.web.heal()


class System:
    """Everything, with its files below `directory`, which should be empty.

    `sites`: their names. `agent_settings` and `hub_settings` are laid over `AGENT` and `HUB`. With
    `trusted_key` the agents have no models of their own: they fetch those that are signed with that public
    key from the hub.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sites: Sequence[str] = SITES,
        agent_settings: toml.Document | None = None,
        hub_settings: toml.Document | None = None,
        trusted_key: str | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._trusted_key = trusted_key
        self._agent_settings = toml.merged(AGENT, agent_settings or {})
        self._hub_settings = toml.merged(HUB, hub_settings or {})
        cloud = self.directory / "cloud"
        self.postgres = Postgres(cloud / "postgres", port=ports.free())
        self.valkey = Valkey(cloud / "valkey", port=ports.free())
        self.broker = Mosquitto(cloud / "broker", port=ports.free())
        """The cloud's."""
        self.hub = Program("hub", ["cloud-hub", "serve"], cloud / "hub" / "hub.toml")
        self.pool = self._agent(POOL, cloud / "pool")
        self.sites = {name: self._site(name) for name in sites}
        self._stack = contextlib.AsyncExitStack()

    @property
    def dsn(self) -> str:
        """The hub's database."""
        return self.postgres.dsn

    @property
    def dashboard(self) -> str:
        """Where to look at it all in a browser."""
        return f"{self.hub.url}/"

    @property
    def cloud_address(self) -> link.Address:
        """The cloud's broker, for who is in the cloud."""
        return link.Address(self.broker.host, self.broker.port)

    @property
    def agents(self) -> dict[topics.Agent, Program]:
        """Every agent, the pool's last."""
        edges = {topics.Agent(site.name, EDGE): site.agent for site in self.sites.values()}
        return edges | {POOL: self.pool}

    @property
    def programs(self) -> list[Program]:
        return [self.hub, *self.agents.values()]

    @property
    def servers(self) -> list[Server]:
        return [self.postgres, self.valkey, self.broker, *(site.broker for site in self.sites.values())]

    @property
    def parts(self) -> list[Server | Program]:
        """All that runs as a process."""
        return [*self.servers, *self.programs]

    async def fleet(self) -> dict[str, Any] | None:
        """What the hub says of its agents (`GET /v1/fleet`); None while it does not answer."""
        found: dict[str, Any] | None = await self.hub.ask("/v1/fleet")
        return found

    async def status(self) -> dict[topics.Agent, dict[str, Any] | None]:
        """What each agent says of itself (`GET /status`); None for one that does not answer."""
        agents = self.agents
        told = await asyncio.gather(*(one.ask("/status") for one in agents.values()))
        return dict(zip(agents, told, strict=True))

    # Start and stop

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        """Whatever does not wait for another starts beside it; all is stopped in the opposite order."""
        self._configure()
        for server in self.servers:
            self._stack.push_async_exit(server)  # clears up after a start that failed, too
        for site in self.sites.values():
            await self._stack.enter_async_context(site.relay)
            await self._stack.enter_async_context(site.web)
        self._stack.push_async_callback(self._close_programs)
        await background.together([self._start_cloud(), self._start_agents()])

    async def _start_cloud(self) -> None:
        await background.together([self.postgres.start(), self.valkey.start(), self.broker.start()])
        await self.hub.start()  # which makes its tables first

    async def _start_agents(self) -> None:
        await background.together(site.broker.start() for site in self.sites.values())
        await background.together(agent.start() for agent in self.agents.values())

    async def _close_programs(self) -> None:
        """The agents first, so that the hub gets what they have left to say."""
        try:
            await background.together(one.close() for one in self.agents.values())
        finally:
            await self.hub.close()

    # The parts

    def _site(self, name: str) -> Site:
        home = self.directory / name
        return Site(
            name,
            Mosquitto(home / "broker", port=ports.free()),
            Relay(self.broker.host, self.broker.port),
            Relay(ports.HOST, self.hub.port),
            self._agent(topics.Agent(name, EDGE), home),
        )

    def _agent(self, agent: topics.Agent, home: Path) -> Program:
        return Program(str(agent), ["edge-agent", "run"], home / "agent" / "agent.toml")

    def _configure(self) -> None:
        """Write the programs' settings."""
        cloud = _address(self.broker)
        hub: toml.Document = {"database": self.dsn, "redis": self.valkey.url, "broker": cloud}
        self.hub.configure(toml.merged(hub, self._hub_settings))
        self._configure_agent(POOL, self.pool, {"uplink_broker": cloud}, self.hub.url)
        for site in self.sites.values():
            brokers = {"broker": _address(site.broker), "uplink_broker": _address(site.relay)}
            web = f"http://{site.web.host}:{site.web.port}"
            self._configure_agent(topics.Agent(site.name, EDGE), site.agent, brokers, web)

    def _configure_agent(self, agent: topics.Agent, one: Program, brokers: toml.Document, web: str) -> None:
        own: toml.Document = {"site": agent.site, "name": agent.name, "state": "state"}
        models = self._models(web)
        one.configure(toml.merged({**own, **models, **brokers}, self._agent_settings))

    def _models(self, web: str) -> toml.Document:
        """Where an agent has its models from."""
        if self._trusted_key is None:
            return {"models": str(MODELS)}
        none = self.directory / "no-models"
        none.mkdir(parents=True, exist_ok=True)
        return {
            "models": str(none),
            "registry": {"url": web, "trusted_keys": [self._trusted_key], "poll_s": POLL_S},
        }


def _address(one: Mosquitto | Relay) -> toml.Table:
    return {"host": one.host, "port": one.port}
