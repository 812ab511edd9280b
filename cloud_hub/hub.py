"""The composition root of a hub: builds everything, wires it, owns start and stop.

Stop, on SIGTERM or SIGINT: no new requests, what was submitted is committed, the broker is told goodbye.
All that was promised is in PostgreSQL; batches on their way up come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import prometheus_client
import uvicorn
from fastapi import FastAPI

from cloud_hub import (
    events,
    fleet,
    gateway,
    hot,
    leader,
    leases,
    metrics,
    news,
    queues,
    replicas,
    settings,
)
from cloud_hub.api import app, context, submissions
from cloud_hub.rollouts import active, conductor
from cloud_hub.scheduler import scheduler
from cloud_hub.store import blobs, hubs, migrate, partitions, pool, tasks
from shared import backoff, link, topics

log: Final = logging.getLogger(__name__)

STOP_S: Final = 5.0
KEEP_HOUSE_S: Final = 3600.0


class Hub:
    """The parts of a running hub and how they are wired."""

    def __init__(self, policy: settings.Settings, hub_id: str, connections: pool.Pool) -> None:
        self._policy = policy
        self._connections = connections
        self._replicas = replicas.Replicas(hub_id, policy.database)
        self._queues = queues.Queues(connections, lambda: max(1, len(self._replicas.live)))
        self.registry = prometheus_client.CollectorRegistry()
        self._events = events.Events()
        self._fleet = fleet.Fleet(policy.gateway.silent_after_s)
        self._hot = hot.Hot(policy.redis, self._on_news)
        self._rolling = active.Active(connections)
        self._scheduler = scheduler.Scheduler(
            connections, self._fleet, self._queues, policy.scheduler, policy.leases.ttl_s
        )
        self._leader = leader.Leader(
            connections, self._hot, self._replicas.hub_id, policy.leader, self._scheduler.lead
        )
        self._link = link.Link(
            policy.broker.address(),
            f"backhaul-hub-{socket.gethostname()}-{policy.http.port}",
            keepalive_s=policy.gateway.keepalive_s,
            in_flight_limit=100,
            receive_maximum=policy.gateway.in_flight,
            backoff=backoff.Backoff(base_s=0.2, cap_s=5.0),
        )
        self._gateway = gateway.Gateway(
            self._link,
            connections,
            self._fleet,
            self._events,
            self._hot,
            policy.gateway,
            policy.leases.ttl_s,
            self._replicas,
            self._rolling,
        )
        self._conductor = conductor.Conductor(
            connections, self._leader, self._fleet, policy.gateway.silent_after_s, self._rolling
        )
        self._keeper = leases.Keeper(self._leader, self._gateway.news, policy.leases)
        self._submitter = submissions.Submitter(
            submissions.into(connections, self._gateway.news.tell, self._queues), registry=self.registry
        )
        self.registry.register(
            metrics.HubMetrics(
                self._gateway, self._scheduler, self._keeper, self._hot, self._leader, self._conductor
            )
        )
        self._app = app.create(
            connections,
            self._submitter,
            self._events,
            self._fleet,
            context.Settings(
                **msgspec.structs.asdict(policy.api), silent_after_s=policy.gateway.silent_after_s
            ),
            limits=self._queues,
            rolling=self._rolling,
            rules=self._scheduler.rules,
            tell=self._gateway.news.tell,
            drained=self._drained,
            broker=lambda: self._link.connected,
            redis=lambda: self._hot.available if policy.redis else None,
            registry=self.registry,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then stop in order."""
        server = _server(self._app, self._policy.http)
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(server.serve(), name="http")
            working = [
                group.create_task(work, name=name)
                for name, work in (
                    ("submitter", self._submitter.run()),
                    ("replicas", self._replicas.run()),
                    ("queues", self._queues.run()),
                    ("gateway", self._gateway.run()),
                    ("leader", self._leader.run()),
                    ("scheduler", self._scheduler.run(self._leader, self._gateway.news)),
                    ("leases", self._keeper.run()),
                    ("rollouts", self._rolling.run()),
                    ("conductor", self._conductor.run()),
                    ("hot state", self._hot.run()),
                    ("snapshots", self._app.state.snapshots.run()),
                    ("drains", self._app.state.drains.run()),
                    ("housekeeping", self._keep_house()),
                    ("link", self._link.run()),
                )
            ]
            waiting = group.create_task(stop.wait(), name="stop")
            await asyncio.wait([waiting, answering], return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping")
            waiting.cancel()
            self._events.close()
            server.should_exit = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await answering
            for one in working:
                one.cancel()

    def _on_news(self, word: str) -> None:
        if word in (news.QUEUED, news.FREED):
            self._scheduler.wake()
        elif word == news.ENDED:
            self._scheduler.room()

    def _drained(self, agent: topics.Agent, draining: bool) -> None:
        member = self._fleet.find(agent)
        if member is not None:
            member.draining = draining
        self._scheduler.wake()

    async def _keep_house(self) -> None:
        """Partitions for the months to come; what is past its time goes, results by whole months; and what is
        left of models that nobody needs."""
        while True:
            now = datetime.now(UTC)
            try:
                async with self._connections.connection() as connection:
                    await partitions.ensure(connection, now)
                    if self._policy.retention.tasks_days:
                        oldest = now - timedelta(days=self._policy.retention.tasks_days)
                        while await tasks.forget(connection, oldest):
                            await connection.commit()
                    if self._policy.retention.results_months:
                        oldest = now - timedelta(days=31 * self._policy.retention.results_months)
                        for name in await partitions.drop_before(connection, oldest):
                            log.info("results older than %s dropped: %s", oldest.date(), name)
                if swept := await blobs.sweep(self._connections):
                    log.info("%d contents of models were swept away", swept)
            except pool.UNAVAILABLE as error:
                log.warning("housekeeping put off: %s", error)
                await asyncio.sleep(60)
                continue
            await asyncio.sleep(KEEP_HOUSE_S)


async def run(policy: settings.Settings) -> None:
    """Run a hub until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await _patiently(lambda: migrate.migrate(policy.database), stop)
    if stop.is_set():
        return
    hub_id = replicas.hub_id(socket.gethostname(), policy.http.port)
    async with pool.open_pool(
        policy.database, min_size=2, max_size=policy.connections, session=hubs.session(hub_id)
    ) as connections:
        await Hub(policy, hub_id, connections).run(stop)


async def _patiently(work: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Do `work`, again and again while PostgreSQL is not there yet, unless told to stop."""
    pause = backoff.Backoff(base_s=0.2, cap_s=5.0)
    while not stop.is_set():
        try:
            await work()
            return
        except pool.UNAVAILABLE as error:
            log.warning("PostgreSQL is not there yet: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause.next()):
                await stop.wait()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: this process has its own order of stopping."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(application: FastAPI, policy: settings.Http) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            application,
            host=policy.host,
            port=policy.port,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # nothing here asks where a client is
            lifespan="off",
            timeout_graceful_shutdown=int(STOP_S),
        )
    )
