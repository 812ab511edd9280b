"""A made-up fleet, and what it is asked to do: arrivals as a production service had them, or generated ones.

One site in which an agent in twenty is the cloud pool, ten times as fast; the others are plants of the same
size. Half of the tasks come from devices, in bursts; a backlog of three queues stands at the hub from the
start; and the rest comes to the hub by and by, urgent tasks and night work, some of it for one site alone.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from benchmarks.simulation import agents

TRACE: Final = Path(__file__).parents[3] / "shared/data/arrivals/azure_llm_code_2023.csv"

MODELS: Final = {"detect": 1.0, "inspect": 0.6, "read": 0.8, "score": 2.0}
"""With their relative speeds."""
CLOUD: Final = "cloud"
CLOUD_SHARE: Final = 0.05
"""Of the agents."""
CLOUD_SPEED: Final = 10.0
PLANT_ITEMS_PER_S: Final = 4.0
TOKENS_PER_ITEM: Final = 75
MOST_ITEMS: Final = 100

WEIGHTS: Final = {"bulk": 1.0, "lab": 2.0, "training": 5.0}
"""Queues of the backlog. Another queue has weight 1."""
SHAPES: Final = {"bulk": (1, 100), "lab": (1, 30), "training": (40, 100)}
"""Their tasks' items, from and to: so costs are as 1 to 100."""
BACKLOG_PRIORITY: Final = 3
DEVICE_PRIORITIES: Final = (4, 5, 5, 6, 7)
URGENT_PRIORITY: Final = 8
NIGHT_PRIORITY: Final = 1

DEVICES: Final = 0.5
BACKLOG: Final = 0.4
URGENT: Final = 0.05
"""Shares of the tasks; night work is what is left."""
PINNED: Final = 0.2
"""Of the urgent tasks: for one site."""
LOAD: Final = 0.85
"""All work over what the fleet can do while tasks arrive."""
MODEL_HERE: Final = 0.98
"""Of the devices' jobs are for a model that their agent is sure to have."""
GENERATED: Final = 9_000
"""Arrivals in a trace that is made up."""
SITES_OF_A_TRACE: Final = 16
"""So many plants see the same bursts."""
CUT_SITES: Final = 0.1
"""Of the plants lose their link once."""
CUT_S: Final = 30.0
"""For so long, on average."""

_ARRIVAL: Final = operator.attrgetter("arrived_s")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a world, and which one."""

    agents: int = 10_000
    sites: int = 1_000
    tasks: int = 1_000_000
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """A site's link is down."""

    site: int
    from_s: float
    until_s: float


class World:
    """The fleet of `sizes`, and what happens to it. Equal sizes make equal worlds."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._dice = random.Random(sizes.seed)
        self._numbers = itertools.count(1)
        self.sites: list[list[agents.Agent]] = []
        """The cloud first."""
        self.agents: list[agents.Agent] = []
        self._populate()
        self._trace = _trace() or _generated(self._dice)
        items = sum(size for _, size in self._trace) / len(self._trace)
        device_items = sum(_pictures(size) for _, size in self._trace) / len(self._trace)
        mean = {queue: (low + high) / 2 for queue, (low, high) in SHAPES.items()}
        parts = {queue: 1 / mean[queue] for queue in WEIGHTS}  # as much work in each
        count = BACKLOG * sizes.tasks
        self.backlogs = {queue: round(count * part / sum(parts.values())) for queue, part in parts.items()}
        """By queue: tasks that wait at the hub from the start."""
        work = sum(self.backlogs[queue] * mean[queue] for queue in mean) + sizes.tasks * (
            DEVICES * device_items + (1 - BACKLOG - DEVICES) * items
        )
        self.arrivals_s = work / (LOAD * sum(one.speed for one in self.agents))
        """Tasks arrive for so long."""

    def _populate(self) -> None:
        sizes, dice = self.sizes, self._dice
        cloud = max(1, round(CLOUD_SHARE * sizes.agents))
        plants = max(1, min(sizes.sites - 1, sizes.agents - cloud))
        self.sites = [[] for _ in range(1 + plants)]
        links = [dice.lognormvariate(14.5, 0.7) for _ in self.sites]  # 2 MB/s
        for agent_id in range(sizes.agents):
            here = 0 if agent_id < cloud else 1 + (agent_id - cloud) % plants
            site = CLOUD if here == 0 else f"plant-{here}"
            having = list(MODELS) if here == 0 else dice.sample(list(MODELS), 3)
            pace = PLANT_ITEMS_PER_S * dice.lognormvariate(0, 0.5) * (CLOUD_SPEED if here == 0 else 1.0)
            agent = agents.Agent(
                agent_id,
                site,
                {"site": site, "agent": f"agent-{agent_id}", "gpu": "yes" if here == 0 else "no"},
                {model: pace * MODELS[model] for model in having},
                links[here],
            )
            self.sites[here].append(agent)
            self.agents.append(agent)

    def backlog(self) -> Iterator[agents.Job]:
        """What waits at the hub from the start, its queues well mixed."""
        dice = self._dice
        queues = [queue for queue, count in self.backlogs.items() for _ in range(count)]
        dice.shuffle(queues)
        models = list(MODELS)
        for queue in queues:
            items = dice.randint(*SHAPES[queue])
            yield agents.Job(next(self._numbers), 0.0, dice.choice(models), queue, BACKLOG_PRIORITY, items)

    def arrivals(self) -> Iterator[agents.Job]:
        """What comes by and by, in order of time; a device's job names the agent that it comes to."""
        tasks = self.sizes.tasks
        plants = self.sites[1:]
        groups = [plants[at : at + SITES_OF_A_TRACE] for at in range(0, len(plants), SITES_OF_A_TRACE)]
        streams = []
        left = tasks - sum(self.backlogs.values())
        for group in groups:
            count = round(DEVICES * tasks * len(group) / len(plants))
            streams.append(self._stream(count, [one for site in group for one in site]))
            left -= count
        urgent = round(URGENT * tasks)
        streams += [self._stream(urgent, URGENT_PRIORITY), self._stream(left - urgent, NIGHT_PRIORITY)]
        return heapq.merge(*streams, key=_ARRIVAL)

    def cuts(self) -> list[Cut]:
        """When links are down."""
        dice = self._dice
        plants = range(1, len(self.sites))
        return [
            Cut(site, from_s := dice.uniform(0, self.arrivals_s), from_s + dice.expovariate(1 / CUT_S))
            for site in dice.sample(plants, round(CUT_SITES * len(plants)))
        ]

    def _stream(self, count: int, to: list[agents.Agent] | int) -> Iterator[agents.Job]:
        """So many arrivals as the trace has them: at devices of these agents, or at the hub with a priority.

        The trace is brought to the time of the world, over and over if need be, begun at any place in it.
        """
        dice = random.Random(self._dice.random())
        points: list[tuple[float, int]] = []
        while len(points) < count:
            shift = dice.random()
            some = dice.sample(self._trace, min(len(self._trace), count - len(points)))
            points += [((at + shift) % 1.0, items) for at, items in some]
        points.sort()
        for at, items in points:
            if isinstance(to, list):
                yield self._device_job(at * self.arrivals_s, items, dice.choice(to), dice)
            else:
                yield self._rest_job(at * self.arrivals_s, items, to, dice)

    def _device_job(self, at_s: float, items: int, agent: agents.Agent, dice: random.Random) -> agents.Job:
        here = list(agent.s_per_item) if dice.random() < MODEL_HERE else list(MODELS)
        priority = dice.choice(DEVICE_PRIORITIES)
        number = next(self._numbers)
        return agents.Job(
            number, at_s, dice.choice(here), "line", priority, _pictures(items), agent_id=agent.agent_id
        )

    def _rest_job(self, at_s: float, items: int, priority: int, dice: random.Random) -> agents.Job:
        selector, models = "", list(MODELS)
        if priority == URGENT_PRIORITY and dice.random() < PINNED:
            site = dice.choice(self.sites)
            selector, models = f"site={site[0].site}", list(site[0].s_per_item)
        queue = "urgent" if priority == URGENT_PRIORITY else "night"
        return agents.Job(
            next(self._numbers), at_s, dice.choice(models), queue, priority, items, selector=selector
        )


def _trace() -> list[tuple[float, int]] | None:
    """Arrivals as (when, from 0 to 1 of the trace; items); None if there is no trace here."""
    if not TRACE.exists():
        return None
    with TRACE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26] + "+00:00").timestamp() for row in rows]
    span = times[-1] - times[0] + 1.0
    return [
        ((at - times[0]) / span, _items(int(row["ContextTokens"]) + int(row["GeneratedTokens"])))
        for at, row in zip(times, rows, strict=True)
    ]


def _generated(dice: random.Random) -> list[tuple[float, int]]:
    """Arrivals alike: bursts of a geometric number, sizes lognormal."""
    points: list[tuple[float, int]] = []
    while len(points) < GENERATED:
        at = dice.random()
        for _ in range(1 + int(dice.expovariate(1 / 8))):
            at = (at + dice.expovariate(2000)) % 1.0
            points.append((at, _items(round(dice.lognormvariate(7.3, 0.8)))))
    return sorted(points)


def _pictures(items: int) -> int:
    """A device's job is smaller than what clients submit."""
    return -(-items // 8)


def _items(tokens: int) -> int:
    return min(MOST_ITEMS, max(1, tokens // TOKENS_PER_ITEM))
