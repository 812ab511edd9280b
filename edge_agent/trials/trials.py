"""The trials that this agent takes part in: which version a job runs on, what is counted, the way back."""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edge_agent import engine, models, outcomes
from edge_agent.journal import records
from edge_agent.registry import registry
from edge_agent.trials import books, shadow, watch
from shared import signals
from shared.rollouts import route, stages, trials

log: Final = logging.getLogger(__name__)

MAX_REASON: Final = 1000
"""Characters of a reason that the hub is told in each heartbeat: what a graph fails with may be long."""

_tags: Final = msgspec.json.Decoder(dict[str, str])


class _Running:
    """One trial, and what was seen of it since the agent started."""

    def __init__(self, standing: registry.Standing) -> None:
        self.standing = standing
        self.books = books.Books()
        self.has_states = False
        """Whether either version carries something from item to item."""
        self.compared = 0
        self.agreed = 0
        self.failed = 0
        self.dropped = 0
        self.unrecorded = 0
        self.life = secrets.randbits(48) | 1

    @property
    def trial(self) -> trials.Trial:
        return self.standing.trial

    @property
    def new(self) -> models.Key:
        return models.Key(self.trial.model, self.trial.new.version)

    @property
    def is_ready(self) -> bool:
        return self.standing.state is trials.State.READY

    def report(self, now: registry.Standing) -> signals.TrialReport:
        return signals.TrialReport(
            rollout=self.trial.rollout,
            state=now.state,
            reason=now.reason.replace("\0", "")[:MAX_REASON],
            compared=self.compared,
            agreed=self.agreed,
            shadow_failed=self.failed,
            shadow_dropped=self.dropped,
            unrecorded=self.unrecorded,
            life=self.life,
        )


class Trials:
    """All trials of an agent. Every method belongs to the event loop."""

    def __init__(
        self,
        fetched: registry.Registry,
        machine: engine.Engine,
        *,
        is_quiet: Callable[[], bool],
        on_back: Callable[[str], None],
    ) -> None:
        """`is_quiet` says whether the agent has nothing to run; `on_back` is told the name of a model of
        which the old version serves again, so that jobs that wait for the new one go there."""
        self._registry = fetched
        self._engine = machine
        self._on_back = on_back
        self._running: dict[str, _Running] = {}
        """By rollout."""
        self._shadows = shadow.Shadows(
            machine, is_quiet=is_quiet, on_compared=self._compared, on_dropped=self._dropped
        )
        self.routes: dict[str, watch.Route] = {}
        """By model, where it is not one version for all jobs."""
        self.watching: dict[str, watch.Watch] = {}
        """By model."""
        self.tags: dict[str, frozenset[str]] = {}
        """By model, the user properties by which a version is chosen."""

    def changed(self) -> None:
        """The hub wants other trials, or this agent is further with them."""
        standings = self._registry.standings()
        before = self._running
        self._running = {}
        for table in (self.routes, self.watching, self.tags):
            table.clear()
        for standing in standings:
            rollout = standing.trial.rollout
            one = self._running[rollout] = before.get(rollout) or _Running(standing)
            was, one.standing = one.standing.state, standing
            self._arrange(one)
            if was is not standing.state is trials.State.ROLLED_BACK:
                self._on_back(standing.trial.model)
        self._shadows.keep({rollout for rollout, one in self._running.items() if one.is_ready})
        self._engine.keep(
            {
                key
                for one in self._running.values()
                if one.standing.state not in trials.BACK
                for key in (one.new, one.standing.old)
                if key is not None
            }
        )  # either version can take over at once

    async def run(self) -> None:
        """Run shadows until cancelled."""
        await self._shadows.run()

    def reports(self) -> list[signals.TrialReport]:
        """What the hub is told."""
        return [
            one.report(now)
            for now in self._registry.standings()
            if (one := self._running.get(now.trial.rollout)) is not None
        ]

    def _arrange(self, one: _Running) -> None:
        """Have jobs of this model routed and watched as its trial asks."""
        trial, state = one.trial, one.standing.state
        if state in trials.BACK:
            return
        self.watching[trial.model] = functools.partial(self._ran, one)
        one.has_states = any(
            self._engine.find(*key).manifest.states
            for key in (one.new, one.standing.old)
            if key is not None and self._engine.has(*key)
        )
        if trial.mode is stages.Mode.SPLIT:
            if trial.tags:
                self.tags[trial.model] = frozenset(key for key, _ in trial.tags)
            if one.is_ready:
                self.routes[trial.model] = functools.partial(self._version, one)

    def _ran(self, one: _Running, model: models.Model, ran: Sequence[watch.Ran], run_us: int) -> None:
        is_new = model.key == one.new
        if not is_new and model.key != one.standing.old:
            return
        one.books.ran([outcome for task in ran for outcome in task.made], run_us, new=is_new)
        if is_new:
            one.unrecorded += sum(map(_unrecorded, ran))
        self._look(one)
        if not is_new and one.is_ready and one.trial.mode is stages.Mode.SHADOW:
            for task in ran:
                goes = self._route(one, task.task.task_id, task.task.runs_in, None)
                if goes is route.Route.OLD_SHADOWED and task.first == 0 and _is_answer(task):
                    self._shadows.offer(shadow.shadow(one.trial.rollout, one.new, task))

    def _compared(self, rollout: str, said: shadow.Compared) -> None:
        one = self._running.get(rollout)
        if one is not None:
            one.compared += 1
            one.agreed += said.agreed
            one.failed += said.failed
            one.books.compared(agreed=said.agreed)
            self._look(one)

    def _dropped(self, rollout: str) -> None:
        one = self._running.get(rollout)
        if one is not None:
            one.dropped += 1

    def _version(self, one: _Running, task_id: bytes, stream: str | None, tags: str | None) -> str | None:
        goes = self._route(one, task_id, stream, tags)
        return one.trial.new.version if goes is route.Route.NEW else None

    def _route(self, one: _Running, task_id: bytes, stream: str | None, tags: str | None) -> route.Route:
        """A job goes by its own id; where the model has a state, all jobs of a stream go the same way, for
        the state of one version is nothing to the other."""
        told = {} if tags is None else _tags.decode(tags)
        dealt_by = task_id if stream is None or not one.has_states else stream.encode()
        return route.route(one.trial.exposure, one.trial.rollout, dealt_by, told)

    def _look(self, one: _Running) -> None:
        """Go back to the old version if the books say so: at once, before the next batch."""
        if one.books.worth_a_look and one.is_ready and one.standing.can_go_back:
            why = one.books.failure(one.trial)
            if why is not None:
                log.error("back from %s to %s: %s", one.new, one.standing.old, why)
                self._registry.go_back(one.trial.rollout, why)


def _unrecorded(ran: watch.Ran) -> int:
    """How many items failed that no result tells of: a task of the hub's is its to try again or give up."""
    if ran.task.origin is not records.Origin.HUB:
        return 0
    return sum(_kind(one) is outcomes.Failure.INFERENCE_FAILED for one in ran.made)


def _is_answer(ran: watch.Ran) -> bool:
    """Whether this is what came of the items, and not an attempt that another follows."""
    return all(_kind(one) in (None, outcomes.Failure.INVALID_INPUT) for one in ran.made)


def _kind(one: outcomes.Outcome) -> outcomes.Failure | None:
    return one.kind if isinstance(one, outcomes.ItemFailed) else None
