"""The index for placement, kept in step with the fleet."""

from __future__ import annotations

import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from cloud_hub import fleet
from cloud_hub.scheduler import placement, readiness, snapshot
from shared import signals, topics
from tests.unit import snapshots

RULES = snapshot.Rules()
SILENT_S = 10.0
AGENTS = st.integers(1, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), AGENTS, st.integers(0, 4), st.sampled_from(["m", "n"])),
        st.tuples(st.just("hold"), AGENTS, st.integers(0, 5)),
        st.tuples(st.just("drain"), st.frozensets(AGENTS)),
        st.tuples(st.just("leave"), AGENTS),
        st.tuples(st.just("succeed"), AGENTS),
        st.tuples(st.just("pass"), st.floats(0, 8)),
        st.tuples(st.just("place"), st.sampled_from(["m", "n"]), st.integers(1, 3)),
    ),
    max_size=40,
)


class World:
    """A fleet that is kept, and what a new index would be made of."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.members = fleet.Fleet(SILENT_S)
        self.kept = readiness.Readiness(self.members, RULES)
        self.held: dict[int, int] = {}
        self.given: set[int] = set()
        self._ids = 0

    def member(self, number: int) -> fleet.Member:
        found = self.members.find(topics.Agent("lyon", f"press-{number}"))
        return found or self.join(number)

    def join(self, number: int) -> fleet.Member:
        """A new epoch of it."""
        self._ids += 1
        agent = topics.Agent("lyon", f"press-{number}")
        one = fleet.Member(agent_id=self._ids, agent=agent, epoch=self._ids, online=True, heard=self.now)
        self.members.join(one)
        return one

    def check(self) -> None:
        """Who can run what and how much more each would take: as of an index made anew."""
        self.kept.refresh(self.held, self.given)
        self.given = set()
        fresh = readiness.Readiness(self.members, RULES)
        fresh.refresh(self.held)
        assert set(self.kept.agent_ids) == set(fresh.agent_ids)
        assert self.kept.index.room == fresh.index.room
        for agent_id in fresh.agent_ids:
            assert self.kept.index.credits(agent_id) == fresh.index.credits(agent_id)
        for model in ("m", "n"):
            assert set(self.kept.index.able(model, None, "")) == set(fresh.index.able(model, None, ""))
            assert self._takers(self.kept.index, model) == self._takers(fresh.index, model)

    def _takers(self, index: placement.Fleet, model: str) -> int:
        """Tasks of a model that find room."""
        return sum(max(0, index.credits(agent_id)) for agent_id in index.able(model, None, ""))


@given(STEPS, st.sampled_from([0, 16]))
def test_what_is_kept_is_as_if_made_anew(steps: list[tuple[object, ...]], few: int) -> None:
    """Whoever reported, held, drained, fell silent or began a new epoch, and whatever was placed in vain."""
    world = World()
    with (
        mock.patch.object(placement, "FEW", few),
        mock.patch.object(time, "monotonic", side_effect=lambda: world.now),
    ):
        for step in steps:
            match step:
                case "report", int(number), int(capacity), str(model):
                    report = signals.ModelReport(name=model, version="1", provider="cpu", items_per_s=10.0)
                    member = world.member(number)
                    told = signals.Telemetry(
                        epoch=member.epoch, sequence=member.sequence + 1, capacity=capacity, models=[report]
                    )
                    world.members.heard(member, told)
                case "hold", int(number), int(count):
                    world.held[world.member(number).agent_id] = count
                case "drain", frozenset(numbers):
                    world.members.drain({world.member(number).agent_id for number in numbers})
                case "leave", int(number):
                    world.member(number).online = False
                case "succeed", int(number):
                    world.join(number)
                case "pass", float(seconds):
                    world.now += seconds
                case "place", str(model), int(count):
                    for _ in range(count):
                        choice = world.kept.index.place(snapshots.task(1, model=model))
                        if choice is not None:
                            world.given.add(choice.agent_id)
            world.check()
