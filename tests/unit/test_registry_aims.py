"""What an agent works towards, by the hub's word, its own models, and what it has gone back from."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import models
from edge_agent.registry import aims, wanted
from shared.rollouts import stages, trials

SPLIT, SERVE, SHADOW = stages.Mode.SPLIT, stages.Mode.SERVE, stages.Mode.SHADOW


def package(version: str) -> wanted.Wanted:
    return wanted.Wanted(model="m", version=version, sha256=version * 64, size=10)


OLD, NEW = package("1"), package("2")
OTHER = wanted.Wanted(model="n", version="5", sha256="5" * 64, size=10)


def trial(mode: stages.Mode, old: wanted.Wanted | None = OLD) -> trials.Trial:
    new, before = (one and trials.Package(**msgspec.structs.asdict(one)) for one in (NEW, old))
    assert new is not None
    return trials.Trial(rollout="r", model="m", mode=mode, new=new, old=before)


def desired(mode: stages.Mode, old: wanted.Wanted | None = OLD) -> wanted.Desired:
    """As the hub says it: the model beside is what an agent without trials would understand."""
    plain = NEW if mode is SERVE else old
    return wanted.Desired((OTHER, *((plain,) if plain else ())), (trial(mode, old),))


@pytest.mark.parametrize("mode", [SPLIT, SHADOW])
def test_until_it_serves_the_new_version_is_beside_the_old_one(mode: stages.Mode) -> None:
    """The old one is needed most, and serves who names no version, though the new one is newer."""
    found = aims.aims(desired(mode), (), ())
    assert (found.first, found.beside) == ((OTHER, OLD), (NEW,))
    assert found.preferred == {"n": ("5",), "m": ("1", "2")}


def test_a_version_that_serves_has_the_old_one_beside_it() -> None:
    """So that the way back takes no fetch and no load."""
    found = aims.aims(desired(SERVE), (), ())
    assert (found.first, found.beside) == ((OTHER, NEW), (OLD,))
    assert found.preferred["m"] == ("2", "1")


@pytest.mark.parametrize("mode", list(stages.Mode))
def test_who_has_gone_back_wants_the_old_version_alone(mode: stages.Mode) -> None:
    """Whatever the hub still says; another rollout is tried again."""
    found = aims.aims(desired(mode), (), {"r"})
    assert (found.first, found.beside, found.preferred["m"]) == ((OTHER, OLD), (), ("1",))
    assert aims.aims(desired(mode), (), {"another"}) == aims.aims(desired(mode), (), ())


def test_the_old_version_may_be_the_agents_own() -> None:
    """Where the hub knows of none, the newest of the agent's own folder goes on until the new one serves."""
    own = {models.Key("m", "0.9"), models.Key("m", "0.10"), models.Key("n", "7")}
    found = aims.aims(desired(SPLIT, None), own, ())
    assert (found.first, found.preferred["m"]) == ((OTHER, NEW), ("0.10", "2"))
    assert aims.aims(desired(SERVE, None), own, ()).preferred["m"] == ("2", "0.10")
    back = aims.aims(desired(SERVE, None), own, {"r"})
    assert (back.first, back.beside, back.preferred["m"]) == ((OTHER,), (), ("0.10",))


def test_with_nothing_to_go_back_to_the_new_version_stays() -> None:
    """A version that fails is better than none at all: to take it away is the hub's to say."""
    for back in ((), ("r",)):
        found = aims.aims(desired(SERVE, None), (), back)
        assert (found.first, found.beside, found.preferred["m"]) == ((OTHER, NEW), (), ("2",))


@given(st.sampled_from(list(stages.Mode)), st.booleans(), st.booleans())
def test_every_aim_is_there_once_and_can_be_preferred(mode: stages.Mode, has_old: bool, back: bool) -> None:
    """No package is asked for twice, what is beside is of a model that is there, and is preferred too."""
    found = aims.aims(desired(mode, OLD if has_old else None), (), {"r"} if back else ())
    names = [one.name for one in found.all]
    assert len(set(names)) == len(names)
    assert {one.model for one in found.beside} <= {one.model for one in found.first}
    assert {(one.model, one.version) for one in found.all} == {
        (model, version) for model, order in found.preferred.items() for version in order
    }


def test_what_is_desired_comes_back_from_the_file_that_keeps_it() -> None:
    """The trial, both packages and the gates are there at a start without the hub."""
    said = desired(SPLIT)
    assert wanted.parse(msgspec.json.encode(said)) == said


def test_a_trial_of_a_kind_that_is_not_known_is_left_out() -> None:
    """A newer hub may ask for more: the version that serves is understood all the same."""
    said = msgspec.json.encode(desired(SPLIT)).replace(b'"split"', b'"mirror"')
    assert wanted.parse(said) == wanted.Desired((OTHER, OLD))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"rollout":"r","model":"m"', b'"rollout":"r","model":"n"'),
        (b'"sha256":"' + b"2" * 64, b'"sha256":"../../etc'),
    ],
)
def test_a_trial_that_makes_no_sense_is_no_answer(before: bytes, after: bytes) -> None:
    """Packages of another model, or of no name that could be a file's."""
    said = msgspec.json.encode(desired(SPLIT))
    assert before in said
    with pytest.raises(wanted.BadAnswer):
        wanted.parse(said.replace(before, after))
