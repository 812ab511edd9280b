"""Where a task goes: to the one that will complete it first, of the executors that can run it and have room.

    predicted completion = the wait that the executor advertises + what it was given since
                         + payload / its link's bytes per second + items / its measured items per second
                         + `away_s` if the task has a home site and this is another

The executors that can run a kind of task are ranked in heaps, one for each kind and size of task, so that a
decision costs O(log executors). What is given to an executor makes it come later in all of its heaps: these
are told when it comes to the top. What makes it come sooner is told them at once.
"""

from __future__ import annotations

import heapq
import operator
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias

from cloud_hub.scheduler import snapshot
from shared import selectors

CONSIDERED: Final = 4
"""So many of the first of a ranking are scored exactly: the choice and its runners-up."""

_KINDS: Final = 8192
"""So many kinds of tasks are remembered between passes before all are forgotten."""

_SLACK: Final = 64
"""So many outdated entries a ranking may hold, beside one for each seat."""

FEW: Final = 16
"""So many executors are compared one by one: a ranking would not be quicker."""

Size = tuple[int, int]
"""Of a task: powers of 4 of items, powers of 16 of bytes."""

_Entry: TypeAlias = "tuple[float, int, _Seat]"
"""Predicted completion of a task of the ranking's size, the agent, its seat."""

_SCORE: Final = operator.itemgetter(0, 1)


class Choice(NamedTuple):
    """Where a task goes, and why there."""

    agent_id: int
    predicted_s: float
    """Until completion, with `away_s` if that counted: wait, transfer and run."""
    wait_s: float
    """Before its turn: what the agent advertised and what it was given since."""
    transfer_s: float
    run_s: float
    able: int
    """How many executors can run it, those without room too."""
    others: tuple[tuple[int, float], ...]
    """The runners-up: (agent, predicted completion), best first."""


class Fleet:
    """The executors, indexed by what they can run, with what they were given since they last reported.

    One may be made for each pass, or kept and told of changes: `put` and `report` set an executor right
    whatever was given to it. Both come to the same placements.
    """

    def __init__(
        self, executors: Iterable[snapshot.Executor] = (), rules: snapshot.Rules | None = None
    ) -> None:
        self._rules = rules or snapshot.Rules()
        self._loads: dict[int, _Load] = {}
        self._by_model: defaultdict[str, set[int]] = defaultdict(set)
        self._by_label: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        self._pools: dict[tuple[str, str | None, str, str | None], _Pool] = {}
        self._room = 0
        for executor in executors:
            self.put(executor)

    @property
    def room(self) -> int:
        """Tasks that the fleet would take, of whatever kind."""
        return self._room

    def put(self, executor: snapshot.Executor) -> None:
        """An executor is new, or reports anything."""
        known = self._loads.get(executor.agent_id)
        if known is None or not known.alike(executor):
            self.remove(executor.agent_id)
            self._loads[executor.agent_id] = _Load(executor)
            for model, _ in executor.models:
                self._by_model[model].add(executor.agent_id)
            for label in executor.labels.items():
                self._by_label[label].add(executor.agent_id)
            self._forget()
        elif known.executor.models != executor.models or known.executor.bytes_per_s != executor.bytes_per_s:
            known.executor = executor
            for member in known.memberships:
                member.measure(self._rules)
        self._set(self._loads[executor.agent_id], executor.credits, executor.predicted_wait_s)

    def report(self, agent_id: int, credits_: int, predicted_wait_s: float) -> None:
        """The same executor as before, with other credits or another wait."""
        load = self._loads[agent_id]
        if (credits_, predicted_wait_s) == (load.credits, load.wait_s):
            load.advertised_s = predicted_wait_s
        else:
            self._set(load, credits_, predicted_wait_s)

    def credit(self, agent_id: int, credits_: int) -> None:
        """It would take so many more tasks; what it was given since it reported still waits there."""
        load = self._loads[agent_id]
        self._room += max(0, credits_) - max(0, load.credits)
        load.credits = credits_
        if credits_ > 0:
            for seat in load.seats:  # its wait may have fallen while it had no room
                if seat.entry is None or load.wait_s + seat.base_s < seat.entry[0]:
                    seat.rise()

    def speed(self, agent_id: int, model: str, version: str | None) -> float:
        """Items per second that an executor does of a model; 0 if that is not known."""
        load = self._loads.get(agent_id)
        models = load.executor.models.items() if load else ()
        return max(
            (its for (name, has), its in models if name == model and version in (None, has)), default=0.0
        )

    def remove(self, agent_id: int) -> None:
        """An executor is no more."""
        load = self._loads.pop(agent_id, None)
        if load is None:
            return
        self._room -= max(0, load.credits)
        for model, _ in load.executor.models:
            self._by_model[model].discard(agent_id)
        for label in load.executor.labels.items():
            self._by_label[label].discard(agent_id)
        self._forget()

    def credits(self, agent_id: int) -> int:
        """How many more tasks an executor would take; 0 for one that is not known."""
        load = self._loads.get(agent_id)
        return load.credits if load else 0

    def able(self, model: str, version: str | None, selector: str) -> Collection[int]:
        """The executors that can run such tasks, those without room too."""
        return self._pool(model, version, selector, None).members

    def barred(self, task: snapshot.Task) -> int | None:
        """The executor that must not get `task` although it can run it: its origin.

        What was handed over for want of time does not go back, unless its origin is idle by now or alone
        in being able to run it.
        """
        if task.origin_agent is None:
            return None
        return self.barred_origin(task.model, task.version, task.selector, task.origin_agent)

    def barred_origin(self, model: str, version: str | None, selector: str, origin_agent: int) -> int | None:
        """The same of a kind of tasks that `origin_agent` handed over."""
        members = self._pool(model, version, selector, None).members
        origin = members.get(origin_agent)
        if origin is None or len(members) == 1 or origin.load.advertised_s <= 0:
            return None
        return origin_agent

    def place(self, task: snapshot.Task) -> Choice | None:
        """Give `task` to the executor that will complete it first; None if none that may take it has room."""
        pool = self._pool(task.model, task.version, task.selector, None)
        if not pool.members:
            return None
        origin = None if task.origin_agent is None else self.barred(task)
        items = max(1, task.items)
        size = items.bit_length() // 2, task.payload_bytes.bit_length() // 4
        able = pool.first(size, origin)
        if task.home is not None:
            near = self._pool(task.model, task.version, task.selector, task.home)
            if near.members:
                away = [member for member in able if member.load.executor.site != task.home]
                able = near.first(size, origin) + away
        if not able:
            return None
        scored: list[tuple[float, int, _Member]] = []
        for member in able:
            load = member.load
            predicted_s = load.wait_s + task.payload_bytes * member.s_per_byte + items * member.s_per_item
            if task.home is not None and load.executor.site != task.home:
                predicted_s += self._rules.away_s
            scored.append((predicted_s, load.agent_id, member))
        scored.sort(key=_SCORE)
        predicted_s, agent_id, best = scored[0]
        load = best.load
        run_s = items * best.s_per_item
        choice = Choice(
            agent_id,
            predicted_s,
            load.wait_s,
            task.payload_bytes * best.s_per_byte,
            run_s,
            len(pool.members),
            tuple((other, score) for score, other, _ in scored[1:CONSIDERED]),
        )
        load.credits -= 1
        load.wait_s += run_s
        self._room -= 1
        return choice

    def _set(self, load: _Load, credits_: int, predicted_wait_s: float) -> None:
        self._room += max(0, credits_) - max(0, load.credits)
        load.credits = credits_
        load.wait_s = load.advertised_s = predicted_wait_s
        if credits_ > 0:
            for seat in load.seats:
                if seat.entry is None or predicted_wait_s + seat.base_s < seat.entry[0]:
                    seat.rise()

    def _pool(self, model: str, version: str | None, selector: str, site: str | None) -> _Pool:
        """The executors for a kind of task, at one site or anywhere."""
        kind = (model, version, selector, site)
        pool = self._pools.get(kind)
        if pool is None:
            if len(self._pools) >= _KINDS:
                self._forget()
            having = [self._by_model.get(model, set())]
            having += [self._by_label.get(label, set()) for label in _labels(selector)]
            if site is not None:
                having.append(self._by_label.get(("site", site), set()))
            some = set.intersection(*sorted(having, key=len))
            loads = (self._loads[agent_id] for agent_id in sorted(some))
            able = [load for load in loads if load.runs(model, version)]
            pool = self._pools[kind] = _Pool(model, version, self._rules, able)
        return pool

    def _forget(self) -> None:
        """Kinds are indexed anew when they are looked for."""
        if self._pools:
            self._pools.clear()
            for load in self._loads.values():
                load.memberships.clear()
                load.seats.clear()


def _labels(selector: str) -> Iterable[tuple[str, str]]:
    """The labels that it asks for. One that cannot be read came past the door somehow: nobody has those."""
    try:
        return selectors.parse(selector).items()
    except selectors.BadSelector:
        return [("", selector)]


def fleet(executors: Iterable[snapshot.Executor] | Fleet, rules: snapshot.Rules) -> Fleet:
    """An index of `executors`, unless it is one."""
    return executors if isinstance(executors, Fleet) else Fleet(executors, rules)


class _Load:
    """An executor, with what it was given since it reported."""

    __slots__ = ("advertised_s", "agent_id", "credits", "executor", "memberships", "seats", "wait_s")

    def __init__(self, executor: snapshot.Executor) -> None:
        self.executor = executor
        self.agent_id = executor.agent_id
        self.credits = 0
        self.advertised_s = self.wait_s = executor.predicted_wait_s
        self.memberships: list[_Member] = []
        self.seats: list[_Seat] = []

    def alike(self, executor: snapshot.Executor) -> bool:
        """Whether the other can run the same tasks."""
        mine = self.executor
        return mine is executor or (
            mine.site == executor.site
            and mine.models.keys() == executor.models.keys()
            and mine.labels == executor.labels
        )

    def runs(self, model: str, version: str | None) -> bool:
        return any(name == model and version in (None, has) for name, has in self.executor.models)


class _Member:
    """An executor in one pool: how fast it is at that kind of task."""

    __slots__ = ("_model", "_version", "load", "s_per_byte", "s_per_item", "seats")

    def __init__(self, load: _Load, model: str, version: str | None, rules: snapshot.Rules) -> None:
        self.load = load
        self.seats: list[_Seat] = []
        self._model = model
        self._version = version
        self.s_per_byte = self.s_per_item = 0.0
        self.measure(rules)
        load.memberships.append(self)

    def measure(self, rules: snapshot.Rules) -> None:
        """Take over the executor's speeds."""
        executor = self.load.executor
        speeds = [
            speed
            for (name, has), speed in executor.models.items()
            if name == self._model and self._version in (None, has)
        ]
        self.s_per_item = 1.0 / (max(speeds) or rules.unmeasured_items_per_s)
        self.s_per_byte = 1.0 / (executor.bytes_per_s or rules.unmeasured_bytes_per_s)
        for seat in self.seats:
            seat.measure()


class _Pool:
    """The executors that can run one kind of task."""

    __slots__ = ("_rankings", "members")

    def __init__(
        self, model: str, version: str | None, rules: snapshot.Rules, loads: Iterable[_Load]
    ) -> None:
        self.members = {load.agent_id: _Member(load, model, version, rules) for load in loads}
        self._rankings: dict[Size, _Ranking] = {}

    def first(self, size: Size, barred: int | None) -> list[_Member]:
        """Executors with room, `barred` aside: the first for tasks of that size, or all if they are few."""
        if len(self.members) <= FEW:
            return [
                member
                for agent_id, member in self.members.items()
                if member.load.credits > 0 and agent_id != barred
            ]
        ranking = self._rankings.get(size)
        if ranking is None:
            ranking = self._rankings[size] = _Ranking(size, self.members.values())
        return ranking.first(CONSIDERED, barred)


class _Ranking:
    """Executors by predicted completion of a task of one kind and about one size."""

    __slots__ = ("heap", "items", "payload_bytes", "seats")

    def __init__(self, size: Size, members: Collection[_Member]) -> None:
        self.items = 4.0 ** size[0]
        self.payload_bytes = 2.0 * 16.0 ** size[1]
        self.seats = len(members)
        self.heap: list[_Entry] = []
        """Each seat with room has one entry that counts, and outdated ones maybe.

        It is a lower bound: its executor does not complete such a task sooner.
        """
        for member in members:
            seat = _Seat(self, member)
            if member.load.credits > 0:
                seat.rise()

    def first(self, count: int, barred: int | None) -> list[_Member]:
        """The first `count` with room, `barred` aside, in order."""
        heap = self.heap
        taken: list[_Entry] = []
        found = 0
        while heap and found < count:
            entry = heap[0]
            completion_s, agent_id, seat = entry
            load = seat.load
            if seat.entry is not entry:
                heapq.heappop(heap)
            elif load.credits <= 0:
                heapq.heappop(heap)
                seat.entry = None
            elif load.wait_s + seat.base_s > completion_s:
                seat.entry = (load.wait_s + seat.base_s, agent_id, seat)
                heapq.heapreplace(heap, seat.entry)
            else:
                taken.append(heapq.heappop(heap))
                found += agent_id != barred
        for entry in taken:
            heapq.heappush(heap, entry)
        return [seat.member for _, agent_id, seat in taken if agent_id != barred]

    def push(self, entry: _Entry) -> None:
        """An entry that counts from now."""
        if len(self.heap) >= 2 * self.seats + _SLACK:
            self.heap = [one for one in self.heap if one[2].entry is one]
            heapq.heapify(self.heap)
        heapq.heappush(self.heap, entry)


class _Seat:
    """An executor's place in one ranking."""

    __slots__ = ("_ranking", "base_s", "entry", "load", "member")

    def __init__(self, ranking: _Ranking, member: _Member) -> None:
        self._ranking = ranking
        self.member = member
        self.load = member.load
        self.entry: _Entry | None = None
        """The one that counts in the ranking's heap; None if there is none."""
        self.base_s = 0.0
        """What a task of the ranking's size takes there, its wait aside."""
        self.measure()
        member.seats.append(self)
        self.load.seats.append(self)

    def measure(self) -> None:
        """Take over the member's speeds."""
        member, ranking = self.member, self._ranking
        self.base_s = ranking.items * member.s_per_item + ranking.payload_bytes * member.s_per_byte

    def rise(self) -> None:
        """The executor has room, and sooner than its entry says: it gets another."""
        self.entry = (self.load.wait_s + self.base_s, self.load.agent_id, self)
        self._ranking.push(self.entry)
