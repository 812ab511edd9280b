"""Which hub serves which agent."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub import replicas
from shared import topics

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
agents = st.builds(topics.Agent, names, names)
fleets = st.sets(agents, max_size=60)
hubs = st.sets(names.map(lambda name: f"{name}:8080/1f"), min_size=1, max_size=6)


@given(fleet=fleets, live=hubs, other=names)
def test_only_the_agents_of_a_hub_that_goes_move(
    fleet: set[topics.Agent], live: set[str], other: str
) -> None:
    """A hub that comes takes its share, and gives it back when it goes; nothing else moves."""
    comer = f"{other}:8081/2e"
    before = {agent: replicas.owner(agent, live) for agent in fleet}
    during = {agent: replicas.owner(agent, live | {comer}) for agent in fleet}
    assert all(during[agent] in (before[agent], comer) for agent in fleet)
    assert {agent: replicas.owner(agent, (live | {comer}) - {comer}) for agent in fleet} == before


@given(agent=agents, live=hubs)
def test_every_hub_comes_to_the_same_answer(agent: topics.Agent, live: set[str]) -> None:
    """The owner is one of the living, whatever the order in which a hub learned of them."""
    first = replicas.owner(agent, sorted(live))
    assert first == replicas.owner(agent, sorted(live, reverse=True))
    assert first in live


def test_the_work_is_divided_evenly() -> None:
    """Three hubs serve a third of 3,000 agents each, give or take a tenth; of four, each a quarter."""
    fleet = [topics.Agent(f"plant-{n % 40}", f"press-{n}") for n in range(3000)]
    for count in (3, 4):
        live = [f"hub-{n}:8080/{n:08x}" for n in range(count)]
        shares = Counter(replicas.owner(agent, live) for agent in fleet)
        assert all(abs(shares[hub] - 3000 / count) < 300 / count * 1.5 for hub in live), shares


def test_nobody_alive_owns_nothing() -> None:
    """Before it knows who is alive a hub serves nobody; alone, it serves all."""
    agent = topics.Agent("plant-a", "press-1")
    one = replicas.Replicas("a:1/x", "")
    assert not one.owns(agent)
    assert one.alone
    one.live = frozenset({"a:1/x"})
    assert one.owns(agent)
    assert one.alone
    with pytest.raises(ValueError, match="empty"):
        replicas.owner(agent, ())


def test_an_id_is_new_at_every_start() -> None:
    """A hub that comes back to its place is another one; the place can be told from the id."""
    first, second = replicas.hub_id("cloud-1", 8080), replicas.hub_id("cloud-1", 8080)
    assert first != second
    assert first.rpartition("/")[0] == second.rpartition("/")[0] == "cloud-1:8080"
