"""The models that are served, and which of them are in memory.

Where memory is bounded, models that have not been used for longest leave it when another one needs the room.
They are served all the same: who needs one of them has it loaded again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from edge_agent import models, postprocess, room, runtime, served

TURN_S: Final = 1.0
"""How long to wait for whoever loads the same model already."""
ASKED_S: Final = 0.5
"""How long those in use stand back for one that needs their room, unless it asks again."""
PATIENCE_S: Final = 5.0
"""How long a model that comes anew waits for those that are to make room: they run, or have just come."""
LOOK_S: Final = 0.02
"""Between two looks meanwhile."""


class NotLoaded(LookupError):
    """The model is not served, or no longer."""


class Residents:
    """Safe to use from several threads; different models may be loaded at one time."""

    def __init__(
        self,
        opener: runtime.Opener,
        limits: room.Limits,
        *,
        clock: served.Clock = time.perf_counter,
        work_clock: served.Clock = time.thread_time,
    ) -> None:
        self._opener = opener
        self._limits = limits
        self._clock = clock
        self._work_clock = work_clock
        self._served: Mapping[models.Key, served.Served] = {}
        self._changing = threading.Lock()
        self._loading: defaultdict[models.Key, threading.Lock] = defaultdict(threading.Lock)
        """One thread at a time loads a model, or unloads it."""
        self._coming: dict[models.Key, int] = {}
        """Bytes of those that are being loaded."""
        self._kept: frozenset[models.Key] = frozenset()
        self._asked: dict[models.Key, float] = {}
        """Those in use that are in the way of another one; until when, monotonic seconds."""
        self.unloads = 0
        """How often a model made room."""
        self.reloads = 0
        """How often one of these was loaded again."""

    def get(self, key: models.Key) -> served.Served | None:
        return self._served.get(key)

    def __iter__(self) -> Iterator[models.Key]:
        return iter(sorted(self._served))

    def load(self, model: models.Model, order: Sequence[str], on_loaded: Callable[[], None]) -> served.Served:
        """Serve a model, in place of any other of its name and version; `on_loaded` is told at once.

        Raises NoRoom, TooLarge and what opening and warming up raises; then nothing has changed.
        """
        with self._loading[model.key], self._room_for(model, PATIENCE_S):
            one = self._opened(model, order)
            with self._changing:
                before = self._served.get(model.key)
                self._served = {**self._served, model.key: one}
            on_loaded()
        if before is not None:
            before.retire()
        return one

    def unload(self, key: models.Key, on_unloaded: Callable[[], None]) -> None:
        """Serve it no longer; `on_unloaded` is told whether it was served or not."""
        with self._loading[key]:
            on_unloaded()
            with self._changing:
                one = self._served.get(key)
                self._served = {other: its for other, its in self._served.items() if other != key}
            if one is not None:
                one.retire()

    def borrow(self, model: models.Model) -> served.Served:
        """What serves the model now, in memory until it is given back.

        Loads it, should it have made room, and blocks meanwhile. Raises NotLoaded, and what `wake` raises.
        """
        while True:
            one = self._served.get(model.key)
            if one is None:
                raise NotLoaded(f"{model} is not loaded")
            if one.borrow():
                return one
            if not one.awake:
                self.wake(model.key)
            # Else it was replaced between the lines: its successor is there already.

    def wake(self, key: models.Key) -> bool:
        """Load a model again that made room; False where it is in memory, or not served.

        Blocks for as long as that takes. Raises NoRoom, also where another thread loads it and takes long,
        and what opening and warming up raises.
        """
        if not self._loading[key].acquire(timeout=TURN_S):
            raise room.NoRoom(f"{key} is being loaded")
        try:
            one = self._served.get(key)
            if one is None or one.awake:
                return False
            with self._room_for(one.model):
                one.wake(self._opener)
            self.reloads += 1
            return True
        finally:
            self._loading[key].release()

    def is_away(self, key: models.Key) -> bool:
        """Whether it is served, and not in memory."""
        one = self._served.get(key)
        return one is not None and not one.awake

    def is_to_go(self, key: models.Key) -> bool:
        """Whether it is to leave memory as soon as nothing runs on it: another one needs the room."""
        return self._asked.get(key, 0.0) > time.monotonic()

    def keep(self, keys: Collection[models.Key]) -> None:
        """These do not make room, and no others stay for having been named before."""
        self._kept = frozenset(keys)

    def _opened(self, model: models.Model, order: Sequence[str]) -> served.Served:
        read = postprocess.Outputs(model)
        began = time.monotonic()
        one = served.Served(
            model,
            order,
            self._opener(model, order),
            read,
            weight=room.weigh(model),
            clock=self._clock,
            work_clock=self._work_clock,
        )
        try:
            one.warm_up()
        except BaseException:
            one.retire()
            raise
        one.loaded(time.monotonic() - began)
        return one

    @contextlib.contextmanager
    def _room_for(self, model: models.Model, patience_s: float = 0.0) -> Iterator[None]:
        """Have others make room, and keep it while the model is loaded."""
        if not self._limits or not room.gives_way(model):
            yield
            return
        weight = room.weigh(model)
        until = time.monotonic() + patience_s
        while True:
            try:
                if self._made_room(model, weight):
                    break
                # Else one of those that should go was taken into use: others are asked.
            except room.NoRoom:
                if time.monotonic() >= until:
                    raise
                time.sleep(LOOK_S)
        try:
            yield
        finally:
            with self._changing:
                self._coming.pop(model.key, None)

    def _made_room(self, model: models.Model, weight: int) -> bool:
        with self._changing:
            now = time.monotonic()
            tenants = self._tenants(model.key)
            try:
                going = room.make(tenants, model, weight, self._limits, now)
            except room.NoRoom:
                self._ask(tenants, model, weight, now)
                raise
            for key in going:
                if not self._served[key].sleep():
                    return False
                self.unloads += 1
            self._asked.clear()
            self._coming[model.key] = weight
            return True

    def _ask(self, tenants: Sequence[room.Tenant], model: models.Model, weight: int, now: float) -> None:
        """Have nothing more run on those that would make room if they were not in use: where work never ends,
        nobody else would have a turn."""
        staying = self._kept | self._coming.keys()
        free = [one._replace(fixed=one.key in staying) for one in tenants]
        with contextlib.suppress(room.NoRoom):
            for key in room.make(free, model, weight, self._limits, now):
                self._asked[key] = now + ASKED_S

    def _tenants(self, but: models.Key) -> list[room.Tenant]:
        there = [
            room.Tenant(
                key=key,
                bytes=one.weight,
                used_at=one.used_at,
                stays_until=one.loaded_at + room.STAY * one.load_s if one.needed else 0.0,
                fixed=one.in_use or key in self._kept,
            )
            for key, one in self._served.items()
            if one.awake and key != but and key not in self._coming and room.gives_way(one.model)
        ]
        coming = [
            room.Tenant(key, weight, 0.0, 0.0, fixed=True)
            for key, weight in self._coming.items()
            if key != but
        ]
        return there + coming
