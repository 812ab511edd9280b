"""Decides which engines of TensorRT are built when, and has them taken when they are ready.

Whoever opens a model asks here for its engine (`opening`). If there is none, it runs by other means for the
time being, and one build after the other (`run`) makes what was asked for. A build that fails is tried again,
less and less often; what it did is remembered beyond the agent's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edge_agent import models, sessions
from edge_agent.builds import builder, cache, host, identity

log: Final = logging.getLogger(__name__)

AGAIN_S: Final = 60.0
AGAIN_MAX_S: Final = 6 * 3600.0
"""Longest pause before a build is tried again."""
FORGOTTEN_S: Final = 60.0
"""A model that is served by nobody, and was not asked for as long, needs no engine."""


class State(enum.StrEnum):
    """How far an engine is."""

    BUILT = "built"
    WAITING = "waiting"
    """For its turn, or to be tried again."""
    BUILDING = "building"


@dataclasses.dataclass(slots=True)
class _Aim:
    """An engine that somebody wants."""

    model: models.Model
    identity: identity.Identity
    asked: float
    failed: cache.Failed
    not_before: float
    built: bool = False


def again_s(times: int) -> float:
    """Seconds to wait before the next try, after so many failures in a row."""
    return min(AGAIN_MAX_S, AGAIN_S * 2.0 ** (min(times, 30) - 1)) if times else 0.0


class Builds:
    """The engines of TensorRT that this agent has and wants. `opening` may be called from any thread."""

    def __init__(
        self,
        kept: cache.Cache,
        maker: builder.Builder,
        *,
        look: Callable[[], identity.Host] = host.look,
        again_s: Callable[[int], float] = again_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = kept
        self._builder = maker
        self._look = look
        self._again_s = again_s
        self._clock = clock
        self._host: identity.Host | str | None = None
        """A text says why there is none."""
        self._aims: dict[models.Key, _Aim] = {}
        self._building: tuple[_Aim, float] | None = None
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        """Held for moments: the agent's loop takes it too."""
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.outcomes: Final[Counter[builder.Outcome]] = Counter()
        """Of the builds since the agent started."""
        self.discarded = 0
        """Engines that were thrown away, for they were broken or of other versions."""
        self.is_served: Callable[[models.Model], bool] = lambda model: True
        """Whether somebody is served by that model."""

    # For whoever opens a model

    @contextlib.contextmanager
    def opening(self, model: models.Model) -> Iterator[Path]:
        """See `sessions.Engines`."""
        aim = self._aim(model)
        try:
            folder = self._cache.find(aim.identity)
            self._cache.opening(aim.identity, begins=True)
        except cache.Absent:
            raise self._missing(aim) from None
        except (cache.Unusable, OSError) as why:
            log.warning("the engine of %s is thrown away: %s", model, why)
            self.discarded += 1
            if isinstance(why, cache.Deadly):
                self._failed(aim, str(why))
            raise self._missing(aim) from None
        try:
            yield folder
        except Exception as error:
            log.warning("the engine of %s is thrown away, for it does not open: %s", model, error)
            self.discarded += 1
            with contextlib.suppress(OSError):
                self._cache.discard(aim.identity)
            self._failed(aim, f"it does not open: {sessions.line(error)}")
            self._wake()
            raise
        finally:
            with contextlib.suppress(OSError):
                self._cache.opening(aim.identity, begins=False)
        with self._lock:
            aim.built, aim.failed = True, cache.Failed()
        self._note(aim, None)

    def _aim(self, model: models.Model) -> _Aim:
        """What is wanted, as the machine and the package are now. Raises NotBuilt where no engine can be."""
        with self._looking:
            if self._host is None:
                self._host = self._found()
        if isinstance(self._host, str):
            raise sessions.NotBuilt(self._host, is_coming=False)
        try:
            wanted = identity.of(model, self._host, sessions.engine_options(model))
        except OSError as error:
            raise sessions.NotBuilt(f"the package cannot be read: {error}", is_coming=False) from None
        failures = self._cache.failures()
        with self._lock:
            now = self._clock()
            aim = self._aims.get(model.key)
            if aim is None or aim.identity != wanted:
                failed = failures.get(wanted.digest, cache.Failed())
                aim = _Aim(model, wanted, now, failed, now + self._again_s(failed.times))
                self._aims[model.key] = aim
            aim.model, aim.asked = model, now
            return aim

    def _found(self) -> identity.Host | str:
        """This machine, or why TensorRT cannot run on it; what engines of another one are here, go."""
        try:
            found = self._look()
        except host.Missing as missing:
            return str(missing)
        try:
            gone = self._cache.tidy(found)
        except OSError as error:
            log.warning("the folder of engines cannot be tidied: %s", error)
            return found
        for digest, why in gone.items():
            log.info("the engine %s is thrown away: %s", digest, why)
        self.discarded += len(gone)
        return found

    def _missing(self, aim: _Aim) -> sessions.NotBuilt:
        """Have the engine built, and say so."""
        with self._lock:
            aim.built = False
            building = self._building is not None and self._building[0] is aim
            failed = aim.failed
        self._wake()
        why = "its engine is being built" if building else "its engine is yet to be built"
        if failed.times:
            why += f", after {failed.times} failed: {failed.reason}"
        return sessions.NotBuilt(why, is_coming=True)

    def _failed(self, aim: _Aim, reason: str) -> None:
        failed = cache.Failed(aim.failed.times + 1, reason)
        self._note(aim, failed)
        with self._lock:
            aim.built = False
            aim.failed = failed
            aim.not_before = self._clock() + self._again_s(failed.times)

    def _note(self, aim: _Aim, failed: cache.Failed | None) -> None:
        try:
            self._cache.note(aim.identity.digest, failed)
        except OSError as error:
            log.warning("what became of the engine of %s cannot be kept: %s", aim.model, error)

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the agent stops
                self._loop.call_soon_threadsafe(self._changed.set)

    # The builds

    async def run(self, on_built: Callable[[models.Model], Awaitable[None]]) -> None:
        """Build what is wanted, one after the other, until cancelled; `on_built` takes each to be used."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            aim = self._next()
            if aim is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rest_s()):
                        await self._changed.wait()
            elif await self._build(aim):
                await on_built(aim.model)

    def _next(self) -> _Aim | None:
        """What to build now; what nobody needs is forgotten."""
        with self._lock:
            now = self._clock()
            for key, aim in list(self._aims.items()):
                if now - aim.asked > FORGOTTEN_S and not self.is_served(aim.model):
                    del self._aims[key]
            due = [aim for aim in self._aims.values() if not aim.built and aim.not_before <= now]
            return min(due, key=lambda aim: (aim.failed.times, aim.asked), default=None)

    def _rest_s(self) -> float | None:
        """How long there is nothing to build, unless something is asked for."""
        with self._lock:
            waiting = [aim.not_before for aim in self._aims.values() if not aim.built]
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    async def _build(self, aim: _Aim) -> bool:
        """Whether the engine is there now."""
        began = self._clock()
        with self._lock:
            self._building = (aim, began)
        log.info("TensorRT builds the engine of %s", aim.model)
        try:
            ended = await self._built(aim, began)
        except OSError as error:
            ended = builder.Ended(builder.Outcome.FAILED, str(error))
        finally:
            with self._lock:
                self._building = None
            await asyncio.shield(asyncio.to_thread(self._cache.unstage, aim.identity))
        self.outcomes[ended.outcome] += 1
        took_s = self._clock() - began
        if ended.outcome is builder.Outcome.BUILT:
            aim.built = True
            log.info("the engine of %s is built, in %.0f s", aim.model, took_s)
            await self._collect()
            return True
        await asyncio.to_thread(self._failed, aim, f"{ended.outcome} after {took_s:.0f} s: {ended.reason}")
        log.warning(
            "the engine of %s is not built: %s; it is tried again in %.0f s",
            aim.model,
            aim.failed.reason,
            max(0.0, aim.not_before - self._clock()),
        )
        return False

    async def _built(self, aim: _Aim, began: float) -> builder.Ended:
        folder = await asyncio.to_thread(self._cache.stage, aim.identity)
        if calibration := aim.model.manifest.providers.tensorrt.calibration:
            table = aim.model.folder / calibration
            await asyncio.to_thread(shutil.copyfile, table, folder / sessions.CALIBRATION)
        ended = await self._builder.build(aim.model, folder)
        if ended.outcome is builder.Outcome.BUILT:
            try:
                await asyncio.to_thread(self._cache.seal, aim.identity, self._clock() - began)
            except cache.Unusable as why:
                return builder.Ended(builder.Outcome.BROKEN, str(why))
        return ended

    async def _collect(self) -> None:
        with self._lock:
            needed = {aim.identity.digest for aim in self._aims.values() if self.is_served(aim.model)}
        try:
            for digest in await asyncio.to_thread(self._cache.collect, needed):
                log.info("the engine %s is thrown away, to make room", digest)
        except OSError as error:
            log.warning("engines that are not needed cannot be thrown away: %s", error)

    # What is said of them

    def building(self) -> tuple[models.Model, float] | None:
        """Of which model the engine is being built, and for how many seconds."""
        with self._lock:
            if self._building is None:
                return None
            aim, began = self._building
            return aim.model, self._clock() - began

    def as_dicts(self) -> list[dict[str, Any]]:
        """What `/status` says of them, an engine each."""
        with self._lock:
            building, now = self._building, self._clock()
            return [
                {
                    "model": aim.model.name,
                    "version": aim.model.version,
                    "state": State.BUILT
                    if aim.built
                    else State.BUILDING
                    if building is not None and building[0] is aim
                    else State.WAITING,
                    "seconds": round(now - building[1], 1) if building and building[0] is aim else None,
                    "failures": aim.failed.times,
                    "reason": aim.failed.reason,
                }
                for _, aim in sorted(self._aims.items())
            ]

    def bytes(self) -> int:
        """Of all engines on disk."""
        try:
            return sum(one.size for one in self._cache.kept())
        except OSError:
            return 0
