"""Streams: items of one source, of which a model's state goes from each to the next.

A stream's state is in memory, and only there. It is moved on when a run succeeded, never before; so what is
tried again finds it as it was. A restart loses it, and so may the bounds here: then the stream begins anew,
with zeros, which is counted. A stream is of one version of a model: another one begins its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from edge_agent import models, states
from edge_agent.journal import records
from shared import tasks

log: Final = logging.getLogger(__name__)

REASONS: Final = ("full", "idle")
"""Why the state of a stream may be let go."""
MOST: Final = 1024
IDLE_S: Final = 3600.0


class Stream(NamedTuple):
    """The stream of a task, for the engine."""

    name: str
    own: bool
    """Of this task alone: it ends with it."""
    final: bool
    """Whether an item on which the model fails has failed for good, and the stream goes on behind it. Else it
    is to be tried again, and nothing behind it may run before."""


class Key(NamedTuple):
    """Whose state it is."""

    model: models.Key
    sha256: str
    stream: str
    own: bool


def of(model: models.Model, task: records.Task) -> Stream | None:
    """The stream that a task runs in; None for a model without a state."""
    if not model.manifest.states:
        return None
    name = task.runs_in
    final = task.origin is records.Origin.DEVICE and task.attempt + 1 >= task.max_attempts
    return Stream(tasks.format_id(task.task_id) if name is None else name, name is None, final)


def key(model: models.Model, stream: Stream) -> Key:
    """Where the state of a stream is."""
    return Key(model.key, model.sha256, stream.name, stream.own)


class Streams:
    """The states of all streams, the `most` lately used of them. Safe to use from any thread."""

    def __init__(
        self,
        most: int = MOST,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._states: OrderedDict[Key, tuple[states.State, float]] = OrderedDict()
        """And when each was used last; who is first has rested longest."""
        self._said: set[str] = set()
        self.begun = 0
        """Streams that began with zeros."""
        self.dropped: Counter[str] = Counter()
        """Streams of which the state was let go, by the reason: `full` or `idle`."""

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._states)

    def get(self, key: Key) -> states.State | None:
        """The state in which a stream is; None for one that begins, or begins anew."""
        with self._lock:
            self._sweep()
            held = self._states.get(key)
            if held is None:
                self.begun += 1
                return None
            return held[0]

    def put(self, key: Key, state: states.State) -> None:
        """A stream has come to this state."""
        with self._lock:
            self._states[key] = state, self._clock()
            self._states.move_to_end(key)
            while len(self._states) > self._most:
                self._drop("full")

    def end(self, key: Key) -> None:
        """A stream is over."""
        with self._lock:
            self._states.pop(key, None)

    def forget(self, model: models.Key) -> None:
        """A model is served no longer."""
        with self._lock:
            for key in [key for key in self._states if key.model == model]:
                del self._states[key]

    def _sweep(self) -> None:
        """Let go of what has rested for too long."""
        rested = self._clock() - self._idle_s
        while self._states and next(iter(self._states.values()))[1] <= rested:
            self._drop("idle")

    def _drop(self, why: str) -> None:
        key, _ = self._states.popitem(last=False)
        self.dropped[why] += 1
        if why not in self._said:  # the metrics tell how often
            self._said.add(why)
            limit = f"max = {self._most}" if why == "full" else f"idle_s = {self._idle_s:g}"
            log.warning(
                "the state of stream %s of %s is let go (streams.%s); it will begin anew, and so may others, "
                "of which only backhaul_agent_streams_dropped_total will tell",
                key.stream,
                key.model,
                limit,
            )
