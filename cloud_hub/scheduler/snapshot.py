"""What the scheduler's policy looks at: plain values, gathered by the hub or made up by a simulator.

Times are seconds, durations only: nothing here asks a clock. What there is one of for each task is a
NamedTuple, since thousands are made for each pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared import tasks


class Task(NamedTuple):
    """A queued task, as far as placing it needs to know it."""

    task_id: bytes
    """UUIDv7: it carries the age, and orders tasks of one queue and priority."""
    class_id: int
    """Tasks of one class are alike in model, version, queue, selector and origin: so in where they may go."""
    model: str
    version: str | None
    """None: any."""
    queue: str
    selector: str
    """Comma-separated `key=value`, all of which an executor's labels must match; '' is anywhere."""
    priority: int
    """As declared, 0 to 9, higher first."""
    items: int
    """Left to run."""
    payload_bytes: int
    waited_s: float
    origin_agent: int | None = None
    """Who handed it over."""
    home: str | None = None
    """The site that it came from."""


@dataclass(frozen=True, slots=True)
class Head:
    """The queued tasks of one class and priority: the first of them, and how many there are.

    No task is in two heads.
    """

    class_id: int
    priority: int
    queued: int
    tasks: Sequence[Task]
    """Oldest first; never empty unless the head is to be passed over."""

    @property
    def cut(self) -> bool:
        """Whether more tasks wait than are known here."""
        return len(self.tasks) < self.queued


@dataclass(frozen=True, slots=True)
class Executor:
    """An agent that may be given work."""

    agent_id: int
    site: str
    labels: Mapping[str, str]
    """With `site` and `agent` among them."""
    credits: int
    """How many more tasks it is ready to hold; below zero when it holds more than it would take now."""
    models: Mapping[tuple[str, str], float]
    """(name, version) of what it has ready, with the measured items per second; 0 if not measured."""
    predicted_wait_s: float
    """What a task would wait there before its turn, as the agent reported it."""
    bytes_per_s: float = 0.0
    """Of the link down to it; 0 if not measured."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A fair-share class."""

    name: str
    weight: float = 1.0
    """Its share against the other queues' weights, of the seconds that executors work."""
    room: int | None = None
    """How many more of its tasks may run; None: no limit."""


@dataclass(frozen=True, slots=True)
class Held:
    """A task that an agent holds: it runs there, or waits there for its turn."""

    task_id: bytes
    agent_id: int
    attempt: int
    class_id: int
    model: str
    version: str | None
    selector: str
    priority: int
    """Effective when it was granted, so never below the declared one."""
    items_left: int
    lost_s: float
    """Seconds of work that would be lost if it stopped now: since its last item boundary."""
    held_s: float
    """Since the grant."""
    preempted_ago_s: float | None = None
    """Since it was last preempted; None: never."""
    stopping: bool = False
    """A preemption is on its way to it."""
    queue: str = tasks.DEFAULT_QUEUE


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy's parameters."""

    aging_s: float = 300.0
    """Waiting so long raises a task's priority by one; 0: never."""
    aging_cap: int = 9
    """How many priorities waiting can raise a task, at most."""
    away_s: float = 0.05
    """What an executor at another site must be ahead by, to be given a task whose home has room."""
    cooldown_s: float = 30.0
    """A task that was preempted is not preempted again for so long."""
    unmeasured_items_per_s: float = 10.0
    """What a model that has not run yet on an agent is taken to do there."""
    unmeasured_bytes_per_s: float = 1.25e6
    """What a link that has carried nothing yet is taken to carry: 10 Mbit/s."""
    unplaced_per_head: int = 16
    """How many tasks of a head without room a plan names, for preemption to look at."""
    unplaced: int = 1024
    """How many tasks without room a plan names at most."""
