"""The composition root of an agent: builds everything, wires it, owns start and stop.

Stop, on SIGTERM or SIGINT, within ten seconds: no new jobs, what runs comes to its end and its commit,
replies and results that can go out go out, then both links say goodbye. What is left is in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_agent import (
    clock,
    engine,
    http,
    hub,
    intake,
    loading,
    models,
    reloads,
    replies,
    runner,
    settings,
    status,
    uplink,
    window,
)
from edge_agent.builds import builds
from edge_agent.journal import journal, records
from edge_agent.oip import service, surface
from shared import backoff, lanes, link

if TYPE_CHECKING:
    from edge_agent.registry import registry
    from edge_agent.trials import trials

log: Final = logging.getLogger(__name__)

STOP_RUNNING_S: Final = 5.0
STOP_FLUSH_S: Final = 2.0
SITE_RECONNECT_MAX_S: Final = 2.0
"""The site's broker has few clients, and devices wait: no long pauses there."""
SWITCH_INTERVAL_S: Final = 0.0005
"""Python's threads take turns this often: the loop must not wait 5 ms for one that decodes an image."""


async def run(policy: settings.Settings) -> None:
    """Run an agent until SIGTERM, SIGINT or cancellation."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            await _live(policy, stop)
        except* lanes.JournalRegressed as errors:
            # The journal was put back to an older state: its numbers would be given out twice.
            log.error("%s; taking a new epoch", _first(errors))
            async with _journal(policy) as book:
                await book.new_epoch()


def _journal(policy: settings.Settings) -> contextlib.AbstractAsyncContextManager[journal.Journal]:
    return journal.Journal.open(Path(policy.state) / "journal.db", policy.site, policy.name, policy.journal)


async def _registry(
    policy: settings.Settings,
    catalogue: models.Catalogue,
    machine: engine.Engine,
    away: Sequence[models.Model],
) -> registry.Registry | None:
    """The hub's registry of models, those served that are on disk; None where none is asked."""
    if policy.registry.url is None:
        return None
    from edge_agent.registry import registry  # an agent that fetches nothing does not load it

    own = {model.key for model in (*catalogue, *away)}
    fetched = registry.Registry(policy, machine, own)
    await fetched.restore()
    return fetched


def _trials(
    fetched: registry.Registry | None, machine: engine.Engine, waiting: window.Window, executor: runner.Runner
) -> trials.Trials | None:
    """The trials of the hub's models; None where none is fetched."""
    if fetched is None:
        return None
    from edge_agent.trials import trials  # likewise

    made = trials.Trials(fetched, machine, is_quiet=lambda: executor.is_quiet, on_back=waiting.reroute)
    waiting.routes, executor.watching = made.routes, made.watching
    made.changed()
    return made


async def _live(policy: settings.Settings, stop: asyncio.Event) -> None:
    """One life of the agent, from opening the journal to closing it."""
    async with contextlib.AsyncExitStack() as stack:
        book = await stack.enter_async_context(_journal(policy))
        numbers, cursors = await book.lanes(), await book.cursors()
        catalogue = models.Catalogue()
        machine, engines, away = await asyncio.to_thread(loading.load, policy, catalogue)
        stack.callback(machine.close)
        fetched = await _registry(policy, catalogue, machine, away)
        agent = Agent(policy, book, catalogue, machine, engines, away, fetched, numbers, cursors)
        port = await stack.enter_async_context(
            http.Server.open(policy.http.host, policy.http.port, agent.pages(), agent.services())
        )
        log.info("%s epoch %d: http://%s:%d/status", policy.agent, book.epoch, policy.http.host, port.port)
        await agent.run(stop)


class Agent:
    """The parts of a running agent and how they are wired."""

    def __init__(
        self,
        policy: settings.Settings,
        book: journal.Journal,
        catalogue: models.Catalogue,
        machine: engine.Engine,
        engines: builds.Builds,
        away: Sequence[models.Model],
        fetched: registry.Registry | None,
        numbers: Mapping[lanes.Lane, records.Numbers],
        cursors: Mapping[lanes.Lane, records.Cursor],
    ) -> None:
        """`engines` are TensorRT's, `away` models whose servers are not there yet, `fetched` those that the
        hub wants; `numbers` and `cursors` are those of the journal's lanes."""
        self._policy = policy
        self._journal = book
        self._engine = machine
        self._engines = engines
        self._away = away
        self._registry = fetched
        self._offset = clock.Offset()
        self._hub = hub.Hub(there=policy.uplink_broker is not None, heartbeat_s=policy.uplink.telemetry_s)
        self._reloads = (
            reloads.Reloads(machine, policy.engine.reload_s, self._woken) if machine.limits else None
        )
        self._window = window.Window(
            book,
            catalogue,
            policy.engine,
            policy.intake.queue_weights,
            machine.sizing,
            None if self._reloads is None else self._reloads.away,
        )
        self._runner = runner.Runner(
            book,
            machine,
            self._window,
            self._offset,
            policy.site,
            policy.engine.threads,
            self._finished,
            syncs=self._hub.there,
        )
        self._status = status.Status(
            policy, book, machine, self._window, self._runner, self._offset, self._hub
        )
        self._oip = service.Service(book, machine, self._window, self._runner, policy)
        self._status.oip = self._oip
        self._status.registry = fetched
        self._status.engines = engines
        if fetched is not None:
            fetched.on_changed = self._models_changed
            fetched.is_needed = self._window.needs
        self._trials = _trials(fetched, machine, self._window, self._runner)
        self._status.trials = self._trials
        self._links: list[link.Link] = []
        self._replies: replies.Replies | None = None
        self._intake: intake.Intake | None = None
        self._uplink: uplink.Uplink | None = None
        if policy.broker is not None:
            site = link.Link(
                policy.broker.address(),
                f"backhaul-{policy.site}-{policy.name}",
                receive_maximum=policy.intake.in_flight,
                session_expiry_s=policy.intake.session_expiry_s,
                backoff=backoff.Backoff(base_s=0.2, cap_s=SITE_RECONNECT_MAX_S),
            )
            # A connection of their own: a backlog of jobs must not stand before the broker's word that it
            # has a reply.
            answers = link.Link(
                policy.broker.address(),
                f"backhaul-{policy.site}-{policy.name}-replies",
                backoff=backoff.Backoff(base_s=0.2, cap_s=SITE_RECONNECT_MAX_S),
            )
            self._replies = replies.Replies(book, answers)
            self._intake = intake.Intake(
                site,
                book,
                machine,
                self._window,
                self._runner,
                self._replies,
                self._hub,
                policy.agent,
                policy,
                self._overflowed,
            )
            if self._trials is not None:
                self._intake.tags = self._trials.tags
            self._links += [site, answers]
            self._status.site_link, self._status.intake, self._status.replies = (
                site,
                self._intake,
                self._replies,
            )
        if policy.uplink_broker is not None:
            cloud = link.Link(
                policy.uplink_broker.address(),
                f"backhaul-{policy.site}-{policy.name}-uplink",
                will=uplink.Uplink.will(policy.agent, book.epoch),
                keepalive_s=policy.uplink.keepalive_s,
                in_flight_limit=policy.uplink.in_flight,
                backoff=backoff.Backoff(
                    base_s=min(0.5, policy.uplink.reconnect_max_s), cap_s=policy.uplink.reconnect_max_s
                ),
            )
            self._uplink = uplink.Uplink(
                cloud,
                book,
                machine,
                self._window,
                self._runner,
                self._replies,
                self._hub,
                self._offset,
                policy.agent,
                policy,
                self._status.telemetry,
                numbers=numbers,
                cursors=cursors,
            )
            self._links.append(cloud)
            self._status.cloud_link, self._status.uplink = cloud, self._uplink

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then stop in order."""
        counts = await self._journal.counts()
        away = await self._journal.waiting(counts.handed_over, holder=records.Holder.HUB)
        self._hub.handed_over.update(task.task_id for task in away)
        self._window.recover(counts)
        async with asyncio.TaskGroup() as group:
            running = _start(group, "runner", self._runner.run())
            links = [_start(group, f"link {one}", one.run()) for one in self._links]
            ways = []
            taking = []
            if self._replies is not None:
                ways.append(_start(group, "replies", self._replies.run()))
            if self._uplink is not None:
                ways.append(_start(group, "uplink", self._uplink.run()))
            if self._intake is not None:
                taking.append(_start(group, "intake", self._intake.run()))
            if self._away:
                later = loading.load_later(
                    self._engine, self._away, self._policy.engine.provider, self._models_changed
                )
                taking.append(_start(group, "models of other servers", later))
            built = loading.build(
                self._engines, self._engine, self._policy.engine.provider, self._models_changed
            )
            taking.append(_start(group, "engines of TensorRT", built))
            if self._reloads is not None:
                ways.append(_start(group, "models that made room", self._reloads.run()))
            if self._registry is not None:
                taking.append(_start(group, "registry", self._registry.run()))
            if self._trials is not None:
                taking.append(_start(group, "trials", self._trials.run()))
            self._status.working = self._oip.taking = True
            await stop.wait()
            log.info("stopping")
            self._status.working = self._oip.taking = False
            await _cancel(taking)
            if self._uplink is not None:
                self._uplink.beat()  # the hub should give its work to others now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_RUNNING_S):
                    await self._runner.stop()
            self._oip.leave()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_FLUSH_S):
                    await self._flush()
            if self._uplink is not None:
                await self._uplink.leave()
            await _cancel([running, *ways, *links])

    async def _flush(self) -> None:
        if self._replies is not None:
            await self._replies.flush()
        if self._uplink is not None:
            await self._uplink.flush()

    def _finished(self, finished: Sequence[records.Finished]) -> None:
        """Tasks whose end is committed: answer their devices, or wait for the hub's answer."""
        self._hub.handed_over.update(one.task_id for one in finished if one.given_back)
        said = [one.reply for one in finished if one.reply is not None]
        self._oip.ended([reply for reply in said if reply.topic == records.NOWHERE])
        if self._replies is not None:
            self._replies.put([reply for reply in said if reply.topic != records.NOWHERE])

    def _models_changed(self) -> None:
        if self._trials is not None:
            self._trials.changed()
        self._window.models_changed()
        self._runner.wake()
        if self._uplink is not None:
            self._uplink.beat()

    def _woken(self) -> None:
        """A model is back in memory, or is waited for no longer."""
        self._runner.wake()

    def _overflowed(self) -> None:
        if self._uplink is not None:
            self._uplink.beat()

    def pages(self) -> dict[str, http.Page]:
        """The pages of the local port."""
        metrics = status.Metrics(self._status, self._journal)

        def ready() -> tuple[int, str, bytes]:
            return (
                (200, "text/plain", b"ready\n") if self._status.ready else (503, "text/plain", b"not ready\n")
            )

        return {
            "/healthz/live": lambda: (200, "text/plain", b"alive\n"),
            "/healthz/ready": ready,
            "/metrics": lambda: (200, "text/plain; version=0.0.4", status.exposition(metrics)),
            "/status": lambda: (200, "application/json", msgspec.json.encode(self._status.as_dict())),
        }

    def services(self) -> dict[str, http.Service]:
        """What takes requests at the local port."""
        policy = self._policy.oip
        if not policy.enabled:
            return {}
        served = surface.Surface(self._engine, self._oip, policy, lambda: self._oip.taking)
        if self._trials is not None:
            served.routes = self._trials.routes
        return {surface.WORD: served}


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error itself, however deep the groups lie in one another."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _start(group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return group.create_task(work, name=name)


async def _cancel(running: Sequence[asyncio.Task[None]]) -> None:
    """Cancel these and wait until they are gone."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
