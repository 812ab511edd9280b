"""A trial on an agent: what is counted and when it fails, what is shadowed, and where jobs go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import engine, models, outcomes, settings, window
from edge_agent.journal import journal, records
from edge_agent.registry import registry, shelf, wanted
from edge_agent.trials import books, shadow, watch
from edge_agent.trials import trials as trying
from shared import jobs
from shared import packages as archives
from shared.rollouts import gates, stages, trials
from tests import models as packages
from tests.unit import journals

GOOD = outcomes.Prediction("bright", 0.9, None)
OTHER = outcomes.Prediction("dark", 0.9, None)
BAD = outcomes.ItemFailed("the model failed on it", outcomes.Failure.INFERENCE_FAILED)


def trial(mode: stages.Mode = stages.Mode.SERVE, *said: str, min_results: int = 100) -> trials.Trial:
    package = trials.Package(model="m", version="1", sha256="1" * 64, size=1)
    return trials.Trial(
        rollout="r",
        model="m",
        mode=mode,
        new=package,
        old=package,
        gates=list(said) or [str(gate) for gate in gates.DEFAULT],
        min_results=min_results,
    )


def test_a_version_that_fails_on_everything_is_seen_within_a_dozen_results() -> None:
    """Long before there are as many as the trial asks for."""
    one = books.Books()
    results = 0
    while not (one.worth_a_look and one.failure(trial())):
        one.ran([BAD], 1000, new=True)
        results += 1
        assert results < 20
    assert "errors 100%" in (one.failure(trial()) or "")


@pytest.mark.parametrize("mode", list(stages.Mode))
def test_two_versions_that_do_the_same_are_never_parted(mode: stages.Mode) -> None:
    """Whatever the old version fails on, it is not the books of the new one."""
    one = books.Books()
    for number in range(3000):
        one.ran([GOOD if number % 3 else OTHER], 1000, new=True)
        one.ran([GOOD if number % 3 else OTHER], 1000, new=False)
        one.ran([BAD], 1000, new=False)
        one.compared(agreed=True)
        if one.worth_a_look:
            assert one.failure(trial(mode)) is None


@pytest.mark.parametrize(
    ("made", "run_us", "says"),
    [(GOOD, 4000, "latency_p95"), (OTHER, 1000, "drift")],
)
def test_what_the_old_version_did_is_the_measure(made: outcomes.Outcome, run_us: int, says: str) -> None:
    """Slower by far, or another label: both are told from fifty results of each."""
    one = books.Books()
    one.ran([GOOD] * 50, 1000, new=False)
    one.ran([made] * 50, run_us, new=True)
    assert says in (one.failure(trial()) or "")


def test_shadows_that_disagree_fail_the_agreement() -> None:
    """And nothing else: what a shadow says is no result."""
    one = books.Books()
    for _ in range(30):
        one.compared(agreed=False)
    found = one.failure(trial(stages.Mode.SHADOW, min_results=20))
    assert found is not None
    assert found.startswith("agreement")
    assert ";" not in found


def test_what_was_held_back_is_no_failure() -> None:
    """Items behind one that is to be tried again have not run: they count for neither version."""
    held = outcomes.ItemFailed("not run", outcomes.Failure.NOT_RUN)
    seen = books.Books()
    for _ in range(100):
        seen.ran([GOOD, held, held], 1000, new=True)
        seen.ran([GOOD], 1000, new=False)
    assert seen.new.measures().items == 100
    assert seen.failure(trial()) is None


def test_what_was_long_ago_is_forgotten() -> None:
    """A version that was good for a long time and breaks now is judged by the latest thousands."""
    one = books.Recent()
    for _ in range(100):
        one.ran([GOOD] * 100, 1000)
    held = one.measures().items
    assert books.RECENT <= held <= 2 * books.RECENT + 100
    one.ran([BAD] * 2 * books.RECENT, 1000)
    one.ran([BAD], 1000)
    assert one.measures().error_rate == 1.0


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_looks_are_neither_rare_nor_at_every_result(batches: list[int]) -> None:
    """Between two looks there are some results, and never thousands."""
    one = books.Books()
    since = 0
    for count in batches:
        one.ran([GOOD] * count, 1000, new=True)
        since += count
        if one.worth_a_look:
            assert since >= books.LOOK_AFTER
            one.failure(trial())
            since = 0
        assert since < books.LOOK_AFTER_MOST


SAID = st.lists(st.builds(shadow.Said, st.booleans(), st.none() | st.sampled_from("ab")), max_size=5)


@given(SAID, SAID)
def test_jobs_agree_if_every_item_does(old: list[shadow.Said], new: list[shadow.Said]) -> None:
    """The same label of each, or a failure of each; and a new failure is told apart from any disagreement."""
    pairs = list(zip(old, new, strict=False))
    found = shadow.compare([one for one, _ in pairs], [other for _, other in pairs])
    assert found.agreed == all(one == other for one, other in pairs)
    assert found.failed == any(one.ok and not other.ok for one, other in pairs)
    assert not (found.agreed and found.failed)


class Machine:
    """Two versions of the classifier, loaded, and what becomes of shadows on the second."""

    def __init__(self, folder: Path) -> None:
        self.engine = engine.Engine(models.Catalogue())
        for version in ("1.0.0", "2.0.0"):
            made = packages.write_classifier(folder / version, version=version)
            self.engine.load(models.load(made))
        self.new = models.Key("brightness", "2.0.0")
        self.is_quiet = True
        self.compared: asyncio.Queue[shadow.Compared] = asyncio.Queue()
        self.dropped = 0
        self.shadows = shadow.Shadows(
            self.engine,
            is_quiet=lambda: self.is_quiet,
            on_compared=lambda rollout, said: self.compared.put_nowait(said),
            on_dropped=self._drop,
        )

    def _drop(self, rollout: str) -> None:
        self.dropped += 1
        self.compared.put_nowait(shadow.Compared(agreed=False, failed=False))

    def offer(self, grey: int, said: outcomes.Outcome, padding: int = 0) -> None:
        """A job with a picture of that grey, of which the old version has said this."""
        payload = packages.png(grey) + b"\0" * padding
        task = journals.task(payload, model="brightness", content_type=jobs.PNG)
        ran = watch.Ran(task, engine.Work(jobs.PNG, payload), 0, [said])
        self.shadows.offer(shadow.shadow("r", self.new, ran))


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    one = Machine(tmp_path)
    yield one
    one.engine.close()


async def test_shadows_wait_for_a_quiet_moment_and_are_compared(machine: Machine) -> None:
    """While the agent works none of them runs; then each is told with what the new version says."""
    machine.is_quiet = False
    running = asyncio.create_task(machine.shadows.run())
    machine.offer(250, GOOD)
    machine.offer(5, GOOD)
    machine.offer(5, BAD)
    await asyncio.sleep(5 * shadow.LOOK_S)
    assert machine.compared.empty()
    machine.is_quiet = True
    async with asyncio.timeout(10):
        said = [await machine.compared.get() for _ in range(3)]
    assert [one.agreed for one in said] == [True, False, False]
    assert not any(one.failed for one in said)
    running.cancel()


async def test_shadows_take_bounded_memory(machine: Machine) -> None:
    """What finds no room, by number or by bytes, is dropped and counted; what is forgotten makes room."""
    for _ in range(shadow.MOST + 3):
        machine.offer(250, GOOD)
    assert machine.dropped == 3
    machine.shadows.keep(set())
    machine.offer(250, GOOD, padding=shadow.MOST_BYTES // 2)
    machine.offer(250, GOOD, padding=shadow.MOST_BYTES // 2)
    assert machine.dropped == 4


async def test_a_shadow_of_a_version_that_has_gone_is_dropped(machine: Machine) -> None:
    """It is no disagreement of a version that nobody has asked."""
    machine.offer(250, GOOD)
    machine.engine.unload(machine.new)
    running = asyncio.create_task(machine.shadows.run())
    async with asyncio.timeout(10):
        await machine.compared.get()
    assert machine.dropped == 1
    running.cancel()


async def taking_part(machine: Machine, folder: Path, mode: stages.Mode) -> trying.Trials:
    """An agent that has both versions and was told to try the new one."""
    old, new = (
        wanted.Wanted(model="brightness", version=version, sha256=version[0] * 64, size=1)
        for version in ("1.0.0", "2.0.0")
    )
    one = trials.Trial(rollout="r", model="brightness", mode=mode, new=new, old=old, gates=[])
    told = wanted.Desired((old,), (one,))
    shelf.Shelf(folder / "state" / "models", archives.LIMITS).desire(told)
    policy = settings.Settings(
        site="lyon",
        name="press-a",
        state=str(folder / "state"),
        models=str(folder / "own"),
        registry=settings.Registry(url="http://127.0.0.1:9", unsigned=True),
    )
    fetched = registry.Registry(policy, machine.engine, [old.name, new.name])
    await fetched.restore()
    tries = trying.Trials(
        fetched, machine.engine, is_quiet=lambda: machine.is_quiet, on_back=lambda model: None
    )
    tries.changed()
    return tries


def ran(
    tries: trying.Trials,
    machine: Machine,
    version: str,
    *made: outcomes.Outcome,
    origin: records.Origin = records.Origin.DEVICE,
) -> None:
    """A job has run on that version."""
    payload = packages.png(250)
    task = journals.task(payload, model="brightness", content_type=jobs.PNG)
    task = msgspec.structs.replace(task, origin=origin)
    one = watch.Ran(task, engine.Work(jobs.PNG, payload, len(made)), 0, made)
    tries.watching["brightness"](machine.engine.find("brightness", version), [one], 1000)


async def test_the_hub_is_told_what_no_result_tells_of(machine: Machine, tmp_path: Path) -> None:
    """Items of its tasks that failed on the new version, and may be tried again; of a device's task there is
    a result in the end."""
    tries = await taking_part(machine, tmp_path, stages.Mode.SERVE)
    held = outcomes.ItemFailed("not run", outcomes.Failure.NOT_RUN)
    bad_input = outcomes.ItemFailed("no picture", outcomes.Failure.INVALID_INPUT)
    ran(tries, machine, "2.0.0", BAD, GOOD, BAD, held, bad_input, origin=records.Origin.HUB)
    ran(tries, machine, "2.0.0", BAD, BAD, BAD)
    ran(tries, machine, "1.0.0", BAD, origin=records.Origin.HUB)
    (told,) = tries.reports()
    assert told.unrecorded == 2


async def test_what_is_to_be_tried_again_is_not_compared(machine: Machine, tmp_path: Path) -> None:
    """The old version has not answered it yet, and the new one is not to blame for that."""
    tries = await taking_part(machine, tmp_path, stages.Mode.SHADOW)
    ran(tries, machine, "1.0.0", BAD)
    ran(tries, machine, "1.0.0", GOOD)
    running = asyncio.create_task(tries.run())
    async with asyncio.timeout(10):
        while not tries.reports()[0].compared:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (told,) = tries.reports()
    assert (told.compared, told.agreed) == (1, 1)
    running.cancel()


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[journal.Journal]:
    async with journals.opened(tmp_path / "state") as opened:
        yield opened


def catalogue(folder: Path) -> models.Catalogue:
    served = models.Catalogue()
    for version in "12":
        served.add(models.load(packages.write_classifier(folder / version, name="surface", version=version)))
    served.prefer({"surface": ("1", "2")})
    return served


def tagged(_: bytes, stream: str | None, tags: str | None) -> str | None:
    """To the new version what has any tag."""
    return None if tags is None else "2"


def turns(one: window.Window) -> dict[bytes, str]:
    """What runs, and on which version."""
    found: dict[bytes, str] = {}
    while (turn := one.take(ahead=False)) is not None:
        found |= {task.task_id: turn.model.version for task in turn.tasks}
    return found


async def test_jobs_go_the_same_way_after_a_restart(book: journal.Journal, tmp_path: Path) -> None:
    """What is read from the journal goes where it would have gone at once; who names a version, there."""
    arrived: list[records.Task] = [
        await journals.accept(book, tags='{"group":"beta"}'),
        await journals.accept(book),
        await journals.accept(book, version="1", tags='{"group":"beta"}'),
    ]
    seen: list[dict[bytes, str]] = []
    for from_journal in (False, True):
        one = window.Window(book, catalogue(tmp_path), settings.Engine(), {})
        one.routes = {"surface": tagged}
        if from_journal:
            one.recover(await book.counts())
            await one.refill()
        else:
            one.offer(arrived)
        seen.append(turns(one))
    assert seen[0] == seen[1]
    assert [seen[0][task.task_id] for task in arrived] == ["2", "1", "1"]


async def test_jobs_that_wait_for_a_version_that_was_left_go_to_the_other(
    book: journal.Journal, tmp_path: Path
) -> None:
    """Those that run are let run, and those that name the version stay with it."""
    running = await journals.accept(book)
    waiting = await journals.accept(book)
    pinned = await journals.accept(book, version="2")
    one = window.Window(book, catalogue(tmp_path), settings.Engine(), {})
    one.routes = {"surface": lambda task_id, stream, tags: "2"}
    one.offer([running])
    assert turns(one) == {running.task_id: "2"}
    one.offer([waiting, pinned])
    one.routes = {}
    one.reroute("surface")
    assert turns(one) == {waiting.task_id: "1", pinned.task_id: "2"}
    assert one.needs(models.Key("surface", "2"))
