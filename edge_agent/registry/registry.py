"""Keeps the agent serving what the hub wants of it: asks, plans, and takes one step after the other."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edge_agent import engine, loading, models, runtime, settings
from edge_agent.registry import aims, blocks, partings, plan, shelf, source, wanted
from shared import backoff, packages, signatures
from shared.rollouts import stages, trials

log: Final = logging.getLogger(__name__)

ASK_BASE_S: Final = 1.0
ASK_MAX_S: Final = 60.0
"""Longest pause between two questions to a hub that is away, unless `poll_s` is longer."""
DISK_AGAIN_S: Final = 5.0
DEATHS: Final = 3
"""A package that was being loaded when the agent died so often is refused: it may be what kills it."""
LEAVE_S: Final = 1.0
"""How long a version that is served no longer stays at least, for tasks that are being accepted."""
LEAVE_LOOK_S: Final = 0.1
UNSIGNED: Final = "registry.unsigned: packages are taken whoever made them"


class Refused(Exception):
    """A package that is not taken, as long as it is the one that is wanted."""


class _Superseded(Exception):
    """What is being fetched is wanted no longer."""


class State(enum.StrEnum):
    """How far a wanted version is."""

    OWN = "own"
    """The agent's own folder has it."""
    SERVED = "served"
    WAITING = "waiting"
    """It will be tried, or tried again."""
    FETCHING = "fetching"
    LOADING = "loading"
    """It is verified, unpacked, opened and warmed up."""
    REFUSED = "refused"


class Standing(NamedTuple):
    """How far this agent is with a trial."""

    trial: trials.Trial
    state: trials.State
    reason: str
    old: models.Key | None
    """The version that the new one is tried against, if there is any."""
    can_go_back: bool
    """Whether that version is loaded."""


class Registry:
    """The agent's side of the hub's registry of models."""

    def __init__(
        self, policy: settings.Settings, machine: engine.Engine, own: Collection[models.Key]
    ) -> None:
        """`own`: the models of the agent's own folder, which come before the hub's."""
        assert policy.registry.url is not None
        self._policy = policy
        self._settings = policy.registry
        self._engine = machine
        self._own = frozenset(own)
        limits = packages.Limits(max_bytes=self._settings.max_package_bytes)
        self._shelf = shelf.Shelf(Path(policy.state) / "models", limits)
        self._partings = partings.Partings(self._shelf)
        self._source = source.Source(policy.registry.url, self._settings.ca_file)
        self._desired: wanted.Desired | None = None
        self._aims = aims.Aims()
        self._etag: str | None = None
        self._stored: dict[str, plan.Stored] = {}
        self._loaded: dict[models.Key, str] = {}
        self._leaving: dict[models.Key, float] = {}
        """Served no longer, but tasks may be here that run on them; the earliest time to let each go."""
        self._fresh: set[str] = set()
        """Packages that were verified since the agent started."""
        self._blocks = blocks.Blocks()
        self._busy: tuple[wanted.Wanted, State] | None = None
        self._have = 0
        """Bytes of what is being fetched."""
        self._changed = asyncio.Event()
        self._rng = random.Random()
        self._waits = backoff.Backoff(
            min(ASK_BASE_S, self._settings.poll_s), max(ASK_MAX_S, self._settings.poll_s)
        )
        self._heard: float | None = None
        self._error: str | None = None
        self.on_changed: Callable[[], None] = lambda: None
        """Told when the models that are served have changed, or what is to become of them."""
        self.is_needed: Callable[[models.Key], bool] = lambda key: False
        """Whether tasks that are here are to run on that version."""

    async def restore(self) -> None:
        """Serve what is on disk already, without the hub."""
        self._desired = await asyncio.to_thread(self._shelf.desired)
        await self._partings.restore()
        await self._partings.begin(self._tried())
        self._aim()
        await asyncio.to_thread(self._shelf.tidy, {one.sha256 for one in self._aims.all})
        self._stored = await asyncio.to_thread(self._shelf.stored)
        if self._settings.unsigned:
            log.warning(UNSIGNED)
        while step := next((one for one in self._plan() if isinstance(one, plan.Load)), None):
            await self._load(step.wanted)

    async def run(self) -> None:
        """Do as the hub wants until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(), name="registry: ask")
                group.create_task(self._work(), name="registry: work")
                group.create_task(self._partings.run(), name="registry: partings")
        except asyncio.CancelledError:
            self._partings.stop()
            raise
        finally:
            self._source.interrupt()

    def as_dict(self) -> dict[str, Any]:
        """What `/status` says of it."""
        now = self._situation()
        return {
            "url": self._settings.url,
            "error": self._error,
            "heard_s": None if self._heard is None else round(time.monotonic() - self._heard, 1),
            "warning": UNSIGNED if self._settings.unsigned else None,
            "bytes": sum(one.wanted.size for one in self._stored.values()),
            "wanted": [self._one(now, aim) for aim in self._aims.all],
            "kept": sorted(
                str(one.wanted)
                for sha256, one in self._stored.items()
                if one.served_at and sha256 not in self._loaded.values()
            ),
        }

    def standings(self) -> list[Standing]:
        """The trials that the hub wants of this agent, and how far it is with each."""
        return [self._standing(trial) for trial in self._desired.trials] if self._desired else []

    def go_back(self, rollout: str, reason: str) -> None:
        """Serve the old version of a trial again, from this moment on until the hub ends the rollout; after a
        start as well, as soon as the disk has it."""
        self._partings.add(rollout, reason)
        self._aim()
        self._changed.set()
        self.on_changed()

    def _standing(self, trial: trials.Trial) -> Standing:
        now = self._situation()
        old = aims.old_key(trial, self._own)
        can_go_back = old is not None and (old in self._own or old in self._loaded)
        new = wanted.of(trial.new)
        block = self._blocks.get(new)
        reason = "" if block is None else block.reason
        state = self._state(now, new)
        if (said := self._partings.reasons.get(trial.rollout)) is not None:
            told, reason = trials.State.ROLLED_BACK, said
        elif state not in (State.OWN, State.SERVED):
            told = trials.State(state.value)
        elif trial.mode is not stages.Mode.SERVE and old is not None and not can_go_back:
            told, reason = trials.State.WAITING, f"the old version, {old}, is not loaded"
        else:
            told, reason = trials.State.READY, ""
        return Standing(trial, told, reason, old, can_go_back)

    def _state(self, now: plan.Situation, aim: wanted.Wanted) -> State:
        block = self._blocks.get(aim)
        if aim.name in self._own:
            return State.OWN
        if plan.is_served(now, aim):
            return State.SERVED
        if self._busy is not None and self._busy[0] == aim:
            return self._busy[1]
        return State.REFUSED if block is not None and block.again is None else State.WAITING

    def _one(self, now: plan.Situation, aim: wanted.Wanted) -> dict[str, Any]:
        block = self._blocks.get(aim)
        state = self._state(now, aim)
        is_here = aim.sha256 in self._stored
        return {
            "model": aim.model,
            "version": aim.version,
            "sha256": aim.sha256,
            "state": state,
            "size": aim.size,
            "have": aim.size if is_here else self._have if state is State.FETCHING else 0,
            "reason": None if block is None or state in (State.OWN, State.SERVED) else block.reason,
        }

    # What is wanted

    async def _ask(self) -> None:
        """Ask the hub now and then; one that is away is said once, and asked less and less often."""
        while True:
            try:
                answer = await asyncio.to_thread(self._source.desired, self._policy.agent, self._etag)
            except source.Away as away:
                if self._error is None:
                    log.warning("%s is asked for models again later: %s", self._settings.url, away)
                self._error = str(away)
                wait = self._waits.next()
                if away.retry_after_s is not None:
                    wait = min(away.retry_after_s, ASK_MAX_S) + self._rng.uniform(0, 1)
            else:
                await self._heard_of(answer)
                wait = self._settings.poll_s * self._rng.uniform(0.75, 1.25)
            await asyncio.sleep(wait)

    async def _heard_of(self, answer: source.Answer | None) -> None:
        self._heard = time.monotonic()
        self._waits.succeeded(float("inf"))
        if self._error is not None:
            log.info("%s answers", self._settings.url)
            self._error = None
            self._blocks.release_waiting()  # the hub is back
            self._changed.set()
        if answer is None:
            return
        self._etag = answer.etag
        if answer.desired != self._desired:
            told = ", ".join(map(str, answer.desired.models)) or "nothing"
            tried = "".join(f"; {trial.new} is tried ({trial.mode})" for trial in answer.desired.trials)
            log.info("the hub wants to have served: %s%s", told, tried)
            self._desired = answer.desired
            self._aim()
            self._blocks.keep(self._aims.all)
            self._changed.set()
            self.on_changed()
            try:
                await asyncio.to_thread(self._shelf.desire, answer.desired)
            except OSError as error:
                log.error("what the hub wants cannot be kept for the next start: %s", error)
            self._partings.keep_only({trial.rollout for trial in answer.desired.trials})

    def _aim(self) -> None:
        """Work towards what the hub wants, but for what this agent has gone back from."""
        if self._desired is not None:
            self._aims = aims.aims(self._desired, self._own, self._partings.reasons)
            self._engine.prefer(self._aims.preferred)

    def _tried(self) -> list[str]:
        """The rollouts whose new version this agent can leave for an old one."""
        wants = self._desired.trials if self._desired else ()
        return [trial.rollout for trial in wants if aims.old_key(trial, self._own) is not None]

    # What is done for it

    async def _work(self) -> None:
        while True:
            self._changed.clear()
            step = next(iter(self._plan()), None)
            if step is not None:
                try:
                    await self._take(step)
                except OSError as error:
                    log.error("the folder of models fails, and is tried again: %s", error)
                    await asyncio.sleep(DISK_AGAIN_S)
                continue
            await self._let_go()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rest_s()):
                    await self._changed.wait()

    def _rest_s(self) -> float | None:
        """How long there is nothing to do, unless something changes."""
        return LEAVE_LOOK_S if self._leaving else self._blocks.rest_s()

    def _plan(self) -> list[plan.Step]:
        return plan.steps(self._situation())

    def _situation(self) -> plan.Situation:
        return plan.Situation(
            wanted=None if self._desired is None else self._aims.first,
            beside=self._aims.beside,
            own=self._own,
            stored=self._stored,
            loaded=self._loaded,
            blocked=self._blocks.now(),
            max_bytes=self._settings.max_bytes,
            max_package_bytes=self._settings.max_package_bytes,
        )

    async def _take(self, step: plan.Step) -> None:
        match step:
            case plan.Unload(key):
                del self._loaded[key]
                self._leaving[key] = time.monotonic() + LEAVE_S
                self._engine.retire(key)
                self.on_changed()
            case plan.Load(one):
                await self._load(one)
            case plan.Remove(sha256):
                log.info("%s is taken off the disk", self._stored[sha256].wanted)
                await self._forget(sha256)
            case plan.Fetch(one):
                await self._fetch(one)
            case plan.Refuse(one, reason):
                self._refuse(one, reason)

    async def _let_go(self) -> None:
        """Unload what is served no longer, once all tasks have run that were to run on it."""
        for key, earliest in list(self._leaving.items()):
            if time.monotonic() >= earliest and not self.is_needed(key):
                del self._leaving[key]
                self._engine.hide(key)  # at once: a task that comes now must not find it
                await asyncio.to_thread(self._engine.unload, key)
                log.info("%s is served no longer", key)

    async def _load(self, one: wanted.Wanted) -> None:
        before = self._stored[one.sha256]
        if before.deaths >= DEATHS:
            self._refuse(one, f"the agent died {before.deaths} times while it was loading it")
            return
        with self._doing(one, State.LOADING):
            async with self._mourned(before):
                is_open = await self._opened(one)
        if not is_open:
            return
        self._fresh.add(one.sha256)
        self._loaded[one.name] = one.sha256
        self._leaving.pop(one.name, None)
        self._blocks.release(one)
        self.on_changed()
        stored = plan.Stored(wanted=one, served_at=time.time())
        self._stored[one.sha256] = stored
        await asyncio.to_thread(self._note, stored)

    async def _opened(self, one: wanted.Wanted) -> bool:
        """Whether the engine serves it now."""
        try:
            await asyncio.to_thread(self._open, one)
        except shelf.Damaged as damaged:
            log.error("%s is taken off the disk: %s", one, damaged)
            await self._forget(one.sha256)
        except Refused as refused:
            self._refuse(one, str(refused))
        except (OSError, runtime.Unavailable) as error:
            self._blocks.put_off(one, str(error))
        else:
            return True
        return False

    @contextlib.asynccontextmanager
    async def _mourned(self, before: plan.Stored) -> AsyncIterator[None]:
        """Should the agent die within, by a graph that crashes for one, the next start will know."""
        await asyncio.to_thread(self._note, msgspec.structs.replace(before, deaths=before.deaths + 1))
        alive = msgspec.structs.replace(before, deaths=0)
        try:
            yield
        except asyncio.CancelledError:
            self._note(alive)  # a stop is no death
            raise
        if before.wanted.sha256 in self._stored:  # or it was taken off the disk
            self._stored[before.wanted.sha256] = alive
            await asyncio.to_thread(self._note, alive)

    def _note(self, one: plan.Stored) -> None:
        try:
            self._shelf.note(one)
        except OSError as error:  # a disk that is full keeps nobody from serving
            log.error("what became of %s cannot be kept: %s", one.wanted, error)

    def _open(self, one: wanted.Wanted) -> None:
        """Verify what is on disk and have the engine serve it. Blocks; raises Refused, shelf.Damaged, OSError
        or runtime.Unavailable."""
        self._check_signature(one)
        if one.sha256 not in self._fresh:
            self._shelf.verify(one.sha256)
        try:
            model = models.load(self._shelf.folder(one.sha256))
            if model.key != one.name:
                raise Refused(f"its manifest says {model}")
            loading.load_one(self._engine, model, self._policy.engine.provider)
        except (Refused, OSError, runtime.Unavailable):
            raise
        except Exception as error:  # whatever a graph does, what was served before goes on
            raise Refused(str(error)) from error

    async def _fetch(self, one: wanted.Wanted) -> None:
        archive = self._shelf.partial(one.sha256)
        with self._doing(one, State.FETCHING):
            try:
                await asyncio.to_thread(self._check_signature, one)
                went_on = await asyncio.to_thread(self._source.fetch, one, archive, self._progressed(one))
            except _Superseded:
                return
            except Refused as refused:
                self._refuse(one, str(refused))
                return
            except (source.Away, OSError) as error:
                after = error.retry_after_s if isinstance(error, source.Away) else None
                self._blocks.put_off(one, str(error), after, have=self._have)
                return
        with self._doing(one, State.LOADING):
            try:
                await asyncio.to_thread(self._shelf.put, one)
            except packages.BadArchive as bad:
                if went_on:  # the part that was there may have been damaged, by a power cut for one
                    self._blocks.put_off(one, str(bad))
                else:
                    self._refuse(one, str(bad))
                return
            except OSError as error:
                self._blocks.put_off(one, str(error))
                return
        log.info("%s is here: %s bytes", one, f"{one.size:,}")
        self._fresh.add(one.sha256)
        self._stored[one.sha256] = plan.Stored(wanted=one)

    def _refuse(self, one: wanted.Wanted, reason: str) -> None:
        self._blocks.refuse(one, reason)
        self.on_changed()  # the hub may wait for it

    def _progressed(self, one: wanted.Wanted) -> Callable[[int], None]:
        def told(have: int) -> None:  # in the thread that fetches
            self._have = have
            if one not in self._aims.all:
                raise _Superseded

        return told

    def _check_signature(self, one: wanted.Wanted) -> None:
        """Raises Refused unless a key that is trusted has signed it, or none is asked for."""
        if self._settings.unsigned:
            return
        if one.key is None or one.signature is None:
            raise Refused("it is not signed; sign it, or take what is not signed by registry.unsigned")
        if one.key not in self._settings.trusted_keys:
            raise Refused(f"it is signed with {one.key}, which is none of registry.trusted_keys")
        try:
            signatures.verify(signatures.Signed(one.key, one.signature), one.model, one.version, one.sha256)
        except (signatures.BadSignature, signatures.BadKey) as wrong:
            raise Refused(str(wrong)) from None

    async def _forget(self, sha256: str) -> None:
        await asyncio.to_thread(self._shelf.remove, sha256)  # should the disk fail, it is tried again
        del self._stored[sha256]
        self._fresh.discard(sha256)

    @contextlib.contextmanager
    def _doing(self, one: wanted.Wanted, state: State) -> Iterator[None]:
        """While this goes on, the status says so."""
        self._busy = (one, state)
        try:
            yield
        finally:
            self._busy = None
            self._have = 0
