"""The agent's registry without a hub: what is on disk at a start, and what the network may do to a fetch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from edge_agent import engine, runtime, settings
from edge_agent import models as catalogues
from edge_agent.registry import blocks, lives, partings, plan, registry, shelf, source, wanted
from edge_agent.trials import trials as trying
from shared import packages, topics
from shared.rollouts import stages, trials
from tests import models

AGENT = topics.Agent("lyon", "press-a")
ONE = wanted.Wanted(model="m", version="1", sha256="a" * 64, size=10)


def policy(tmp_path: Path) -> settings.Settings:
    return settings.Settings(
        site="lyon",
        name="press-a",
        state=str(tmp_path),
        models=str(tmp_path / "own"),
        registry=settings.Registry(url="http://127.0.0.1:9", unsigned=True),
    )


def on_disk(tmp_path: Path, version: str, **said: float) -> plan.Stored:
    """A package that was fetched before."""
    here = shelf.Shelf(tmp_path / "models", packages.LIMITS)
    folder = models.write_classifier(tmp_path / f"made-{version}", version=version)
    with (tmp_path / "archive").open("wb") as sink:
        packed = packages.pack(folder, sink)
    (tmp_path / "archive").rename(here.partial(packed.sha256))
    one = wanted.Wanted(model="brightness", version=version, sha256=packed.sha256, size=packed.size)
    here.put(one)
    found = plan.Stored(wanted=one, served_at=said.get("served_at", 0.0), deaths=int(said.get("deaths", 0)))
    here.note(found)
    return found


async def test_a_package_that_kills_the_agent_is_given_up(tmp_path: Path) -> None:
    """After three deaths while it was loaded it is refused, and the version that was served before serves."""
    deadly, before = on_disk(tmp_path, "2", deaths=3), on_disk(tmp_path, "1", served_at=5.0)
    here = shelf.Shelf(tmp_path / "models", packages.LIMITS)
    here.desire(wanted.Desired((deadly.wanted,)))
    seen: list[int] = []

    def opener(model: catalogues.Model, order: Sequence[str]) -> runtime.Runtime:
        seen.append(here.stored()[before.wanted.sha256].deaths)
        return runtime.opener()(model, order)

    machine = engine.Engine(catalogues.Catalogue(), opener=opener)
    one = registry.Registry(policy(tmp_path), machine, ())
    await one.restore()
    assert [model.version for model in machine.loaded()] == ["1"]
    assert seen == [1], "a death while it was loaded would have been noted"
    assert here.stored()[before.wanted.sha256].deaths == 0
    (told,) = one.as_dict()["wanted"]
    assert (told["state"], "died 3 times" in told["reason"]) == ("refused", True)
    machine.close()


def tried() -> wanted.Desired:
    """What an agent is told in a rollout."""
    old, new = (trials.Package(model="m", version=v, sha256=v * 64, size=10) for v in "12")
    one = trials.Trial(rollout="r", model="m", mode=stages.Mode.SERVE, new=new, old=old)
    return wanted.Desired((wanted.of(new),), (one,))


async def test_a_full_disk_does_not_forget_what_was_gone_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there is room again it is written down, so that a later start does not try the version anew."""
    monkeypatch.setattr(partings, "DISK_AGAIN_S", 0.01)
    here = shelf.Shelf(tmp_path / "models", packages.LIMITS)
    here.desire(tried())
    machine = engine.Engine(catalogues.Catalogue())
    one = registry.Registry(policy(tmp_path), machine, ())
    await one.restore()
    full = tmp_path / "models" / ".gone-back.json.draft"
    full.mkdir()
    running = asyncio.create_task(one.run())
    one.go_back("r", "errors 50%")
    await asyncio.sleep(0.05)
    assert here.gone_back() == {}
    full.rmdir()
    async with asyncio.timeout(10):
        while not here.gone_back():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert here.gone_back() == {"r": "errors 50%"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    machine.close()


async def life(tmp_path: Path, machine: engine.Engine, *, stops: bool = False) -> registry.Standing:
    """An agent begins, and dies or `stops`; how it stood with its trial."""
    one = registry.Registry(policy(tmp_path), machine, ())
    await one.restore()
    (standing,) = one.standings()
    if stops:
        running = asyncio.create_task(one.run())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return standing


async def test_an_agent_that_dies_again_and_again_goes_back(tmp_path: Path) -> None:
    """What kills it leaves no result to judge by: after some deaths in a row the version is left, for good.
    A stop is no death, nor does what was before it count."""
    shelf.Shelf(tmp_path / "models", packages.LIMITS).desire(tried())
    machine = engine.Engine(catalogues.Catalogue())
    before = [await life(tmp_path, machine) for _ in range(lives.DEATHS - 1)]
    await life(tmp_path, machine, stops=True)
    again = [await life(tmp_path, machine) for _ in range(lives.DEATHS)]
    assert {one.state for one in before + again} == {trials.State.WAITING}
    for stops in (False, True, True):
        back = await life(tmp_path, machine, stops=stops)
        assert (back.state, "died 3 times" in back.reason) == (trials.State.ROLLED_BACK, True)
    machine.close()


async def test_a_reason_is_short_and_can_be_kept(tmp_path: Path) -> None:
    """Every heartbeat has it, and the hub writes it down: what a graph fails with may be long, and bytes."""
    shelf.Shelf(tmp_path / "models", packages.LIMITS).desire(tried())
    machine = engine.Engine(catalogues.Catalogue())
    one = registry.Registry(policy(tmp_path), machine, ())
    await one.restore()
    tries = trying.Trials(one, machine, is_quiet=lambda: True, on_back=lambda model: None)
    one.go_back("r", "\0" + "x" * 5000)
    tries.changed()
    (told,) = tries.reports()
    assert told.reason == "x" * trying.MAX_REASON
    assert told.life
    machine.close()


def test_what_is_put_off_comes_again_and_what_is_refused_does_not() -> None:
    """A refusal has no end; a pause has one, and what waits for nobody keeps nothing busy."""
    held = blocks.Blocks()
    other = wanted.Wanted(model="n", version="1", sha256="b" * 64, size=10)
    held.refuse(ONE, "bad")
    assert (held.now(), held.rest_s()) == ({ONE}, None)
    held.put_off(other, "away", 60.0)
    assert held.now() == {ONE, other}
    assert 50.0 < (held.rest_s() or 0.0) <= 60.0
    held.release_waiting()
    assert (held.now(), held.rest_s()) == ({ONE}, blocks.LOOK_S)
    held.keep([other])
    assert held.now() == set()
    held.release(other)
    assert held.rest_s() is None


@contextlib.asynccontextmanager
async def answering(*parts: bytes, then_wait: bool = False) -> AsyncIterator[str]:
    """A server that answers any request with these bytes, and then hangs up, or does nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
            await writer.drain()
            if then_wait:
                await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "does not speak HTTP|cannot be reached"),
        (b"nonsense\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (b'HTTP/1.1 429 X\r\nContent-Length: 17\r\n\r\n{"detail": "full"}', "answered 429"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "broke off after 5 of 10"),
        (
            b"HTTP/1.1 206 X\r\nContent-Range: bytes 3-9/10\r\nContent-Length: 7\r\n\r\n3456789",
            "another part",
        ),
        (b"HTTP/1.1 206 X\r\nContent-Length: 10\r\n\r\n0123456789", "another part"),
    ],
)
async def test_whatever_a_server_answers_is_told_as_its_fault(
    tmp_path: Path, answer: bytes, says: str
) -> None:
    """No answer, nonsense, a refusal, too little, another part: each is one that may be right later."""
    async with answering(answer) as url:
        with pytest.raises(source.Away, match=says):
            await asyncio.to_thread(source.Source(url).fetch, ONE, tmp_path / "part", lambda have: None)


async def test_a_part_goes_on_where_it_was_or_from_the_beginning(tmp_path: Path) -> None:
    """206 is put behind what is there; 200 means that all of it comes again."""
    part = tmp_path / "part"
    for answer in (
        b"HTTP/1.1 206 X\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6\r\n\r\n456789",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
    ):
        part.write_bytes(b"0123")
        seen: list[int] = []
        async with answering(answer) as url:
            await asyncio.to_thread(source.Source(url).fetch, ONE, part, seen.append)
        assert part.read_bytes() == b"0123456789"
        assert (seen[0], seen[-1]) == (4, 10)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01"])
async def test_a_server_that_says_nothing_does_not_hold_up_a_stop(tmp_path: Path, answer: bytes) -> None:
    """An interrupt ends a call that waits, and any that comes after it."""
    async with answering(answer, then_wait=True) as url:
        hub = source.Source(url)
        fetching = asyncio.create_task(
            asyncio.to_thread(hub.fetch, ONE, tmp_path / "part", lambda have: None)
        )
        async with asyncio.timeout(5):
            while not hub._open:  # noqa: ASYNC110 - set in a thread
                await asyncio.sleep(0.01)
            hub.interrupt()
            with pytest.raises(source.Away):
                await fetching
            with pytest.raises(source.Away, match="stops"):
                await asyncio.to_thread(hub.desired, AGENT, None)
