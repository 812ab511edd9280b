"""What an agent does about the hub's models: the plan, from what is wanted, stored and loaded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import models
from edge_agent.registry import plan, wanted
from edge_agent.registry.plan import Fetch, Load, Refuse, Remove, Situation, Unload


def one(version: str, model: str = "m", size: int = 10) -> wanted.Wanted:
    return wanted.Wanted(model=model, version=version, sha256=f"{model}{version}".ljust(64, "0"), size=size)


def stored(*found: tuple[wanted.Wanted, float]) -> dict[str, plan.Stored]:
    """Packages, and when each was served last."""
    return {one.sha256: plan.Stored(wanted=one, served_at=at) for one, at in found}


def loaded(*found: wanted.Wanted) -> dict[models.Key, str]:
    return {one.name: one.sha256 for one in found}


ONE, TWO, THREE = one("1"), one("2"), one("3")
CHANGED = wanted.Wanted(model="m", version="1", sha256="f" * 64, size=10)
LARGE = one("4", size=101)

TABLE = {
    "nothing is known": (Situation(wanted=None), []),
    "nothing is wanted": (Situation(wanted=[]), []),
    "wanted, and nowhere": (Situation(wanted=[ONE]), [Fetch(ONE)]),
    "wanted, and on disk": (Situation(wanted=[ONE], stored=stored((ONE, 0))), [Load(ONE)]),
    "wanted, and loaded": (Situation(wanted=[ONE], stored=stored((ONE, 1)), loaded=loaded(ONE)), []),
    "the agent has it itself": (Situation(wanted=[ONE], own={ONE.name}), []),
    "the new one is not here: the old one goes on": (
        Situation(wanted=[TWO], stored=stored((ONE, 1)), loaded=loaded(ONE)),
        [Fetch(TWO)],
    ),
    "the new one is on disk": (
        Situation(wanted=[TWO], stored=stored((ONE, 1), (TWO, 0)), loaded=loaded(ONE)),
        [Load(TWO)],
    ),
    "the new one is loaded": (
        Situation(wanted=[TWO], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(ONE, TWO)),
        [Unload(ONE.name)],
    ),
    "the old one is kept to go back to": (
        Situation(wanted=[TWO], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(TWO)),
        [],
    ),
    "only one is kept": (
        Situation(wanted=[THREE], stored=stored((ONE, 1), (TWO, 2), (THREE, 3)), loaded=loaded(THREE)),
        [Remove(ONE.sha256)],
    ),
    "what never ran is not kept": (
        Situation(wanted=[TWO], stored=stored((ONE, 0), (TWO, 2)), loaded=loaded(TWO)),
        [Remove(ONE.sha256)],
    ),
    "back to the one before": (
        Situation(wanted=[ONE], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(TWO)),
        [Load(ONE)],
    ),
    "no longer wanted: unloaded, and kept": (
        Situation(wanted=[], stored=stored((ONE, 1)), loaded=loaded(ONE)),
        [Unload(ONE.name)],
    ),
    "the new one is refused: the old one goes on": (
        Situation(wanted=[TWO], stored=stored((ONE, 1)), loaded=loaded(ONE), blocked={TWO}),
        [],
    ),
    "a start, and the new one is not here: the old one serves meanwhile": (
        Situation(wanted=[TWO], stored=stored((ONE, 1))),
        [Load(ONE), Fetch(TWO)],
    ),
    "a start that never heard from the hub": (
        Situation(wanted=None, stored=stored((ONE, 1), (TWO, 2))),
        [Load(TWO)],
    ),
    "other content under the same version": (
        Situation(wanted=[CHANGED], stored=stored((ONE, 1), (CHANGED, 0)), loaded=loaded(ONE)),
        [Load(CHANGED)],
    ),
    "a trial: both are brought here, first what is needed most": (
        Situation(wanted=[ONE], beside=[TWO]),
        [Fetch(ONE), Fetch(TWO)],
    ),
    "a trial: both are loaded": (
        Situation(wanted=[TWO], beside=[ONE], stored=stored((ONE, 1), (TWO, 0))),
        [Load(TWO), Load(ONE)],
    ),
    "a trial: both stay": (
        Situation(wanted=[TWO], beside=[ONE], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(ONE, TWO)),
        [],
    ),
    "a trial whose new version is refused": (
        Situation(
            wanted=[ONE], beside=[TWO], stored=stored((ONE, 1), (TWO, 0)), loaded=loaded(ONE), blocked={TWO}
        ),
        [],
    ),
    "a trial that ended: the new version goes, and is kept on disk": (
        Situation(wanted=[ONE], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(ONE, TWO)),
        [Unload(TWO.name)],
    ),
    "a trial of one that the agent has itself": (
        Situation(wanted=[ONE], beside=[TWO], own={TWO.name}, stored=stored((ONE, 1)), loaded=loaded(ONE)),
        [],
    ),
    "a trial makes no room by what serves": (
        Situation(wanted=[ONE], beside=[TWO], stored=stored((ONE, 1)), loaded=loaded(ONE), max_bytes=19),
        [Refuse(TWO, "there is no room for 10 bytes beside what is served: registry.max_bytes is 19")],
    ),
    "too large": (
        Situation(wanted=[LARGE], max_package_bytes=100),
        [Refuse(LARGE, "it has 101 bytes, and registry.max_package_bytes is 100")],
    ),
    "what is kept makes room": (
        Situation(
            wanted=[TWO, one("1", "n")], stored=stored((ONE, 1), (TWO, 2)), loaded=loaded(TWO), max_bytes=20
        ),
        [Remove(ONE.sha256), Fetch(one("1", "n"))],
    ),
    "what is served makes no room": (
        Situation(wanted=[TWO], stored=stored((ONE, 1)), loaded=loaded(ONE), max_bytes=19),
        [Refuse(TWO, "there is no room for 10 bytes beside what is served: registry.max_bytes is 19")],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_situation_has_its_steps(case: str) -> None:
    """The table is the policy."""
    situation, steps = TABLE[case]
    assert plan.steps(situation) == steps


VERSIONS = st.builds(one, st.sampled_from("123"), st.sampled_from("mn"), st.integers(0, 40))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    packages = draw(st.lists(VERSIONS, unique_by=lambda one: one.sha256, max_size=6))
    on_disk = [one for one in packages if draw(st.booleans())]
    running = [one for one in on_disk if draw(st.booleans())]
    aims = draw(
        st.none() | st.just(list({one.model: one for one in packages if draw(st.booleans())}.values()))
    )
    beside = [
        one
        for one in packages
        if aims and one not in aims and one.model in {aim.model for aim in aims} and draw(st.booleans())
    ]
    return Situation(
        wanted=aims,
        beside=beside,
        own={one.name for one in packages if one not in running and not draw(st.integers(0, 3))},
        stored=stored(*((one, draw(st.integers(0, 5)) or float(one in running)) for one in on_disk)),
        loaded=loaded(*running),
        blocked={one for one in packages if not draw(st.integers(0, 2))},
        max_bytes=draw(st.integers(20, 200)),
        max_package_bytes=30,
    )


def after(now: Situation, step: plan.Step) -> Situation:
    """The situation when the step was taken, and all went well."""
    match step:
        case Unload(key):
            return msgspec.structs.replace(now, loaded={k: v for k, v in now.loaded.items() if k != key})
        case Load(one):
            at = max((found.served_at for found in now.stored.values()), default=0.0) + 1
            return msgspec.structs.replace(
                now, loaded={**now.loaded, **loaded(one)}, stored={**now.stored, **stored((one, at))}
            )
        case Remove(sha256):
            return msgspec.structs.replace(now, stored={k: v for k, v in now.stored.items() if k != sha256})
        case Fetch(one):
            return msgspec.structs.replace(now, stored={**now.stored, **stored((one, 0.0))})
        case Refuse(one, _):
            return msgspec.structs.replace(now, blocked={*now.blocked, one})


@given(situations())
def test_the_plan_comes_to_an_end_and_nothing_that_serves_is_lost_on_the_way(now: Situation) -> None:
    """A model that is served and wanted is never without a version, what is loaded or wanted stays on disk,
    and at the end every wanted version is served, unless it is refused."""
    for _ in range(40):
        steps = plan.steps(now)
        if not steps:
            break
        step = steps[0]
        if isinstance(step, Fetch):
            used = sum(found.wanted.size for found in now.stored.values())
            assert used + step.wanted.size <= now.max_bytes
        if isinstance(step, Remove):
            assert step.sha256 not in now.loaded.values()
            asked = (*(now.wanted or ()), *now.beside)
            assert step.sha256 not in {one.sha256 for one in asked if one.name not in now.own}
        then = after(now, step)
        for aim in now.wanted or ():
            if any(key.name == aim.model for key in now.loaded):
                assert aim.name in now.own or any(key.name == aim.model for key in then.loaded)
        now = then
    assert plan.steps(now) == []
    for aim in (*(now.wanted or ()), *now.beside):
        assert plan.is_served(now, aim) or aim in now.blocked
    if now.wanted is not None:
        assert {key.name for key in now.loaded} <= {aim.model for aim in now.wanted}
