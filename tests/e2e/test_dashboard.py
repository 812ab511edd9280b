"""The dashboard in a real browser, on a real hub: what an operator sees and can do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from cloud_hub.api import context
from cloud_hub.store import agents, apply, schedule
from cloud_hub.store import tasks as task_store
from demo import servers
from shared import tasks, topics, wire
from tests.e2e import pages
from tests.e2e.pages import NARROW, WIDE, opened
from tests.integration import api_server, stores
from tests.integration.api_server import PRESS_A, Served, join, model, record, results, telemetry

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's, which takes long to start

PRESS_B = topics.Agent("lyon", "press-b")
JETSON = topics.Agent("gdansk", "jetson")


@pytest_asyncio.fixture(loop_scope="module")
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database, broker=lambda: True, redis=lambda: False) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests here: pages share nothing."""
    async with pages.chromium() as started:
        yield started


async def put_a_fleet(hub: Served) -> None:
    """Three agents at two sites: one well, one fallen back to CPU with a backlog, one offline."""
    well = await join(hub.pool, telemetry=telemetry(items_per_s=128.4, queued=3, jobs_total=1204))
    await record(hub.pool, well, results(1204))
    fell = telemetry(models=[model(wanted="CUDA")], overflowed_total=41, jobs_total=30)
    await record(hub.pool, await join(hub.pool, PRESS_B, telemetry=fell), results(20), numbered=35)
    await join(hub.pool, JETSON, online=False)


async def put_a_dead_letter(hub: Served, error: str = "the model takes 3 channels") -> str:
    """A task that failed for good."""
    task_id = await hub.submit()
    async with hub.pool.connection() as connection:
        agent_id = (await agents.seen(connection, PRESS_A, 1)).agent_id
        await stores.lease(connection, [schedule.Grant(tasks.parse_id(task_id), agent_id, 30.0)])
        ended = {
            "attempt": [1],
            "state": ["FAILED"],
            "retriable": [False],
            "items_done": [0],
            "error": [error],
        }
        await apply.attempts(
            connection, agent_id, wire.build(wire.ATTEMPTS, {"task_id": [tasks.parse_id(task_id)], **ended})
        )
    return task_id


# What is seen


async def test_agents_are_shown_as_they_are(hub: Served, browser: Browser) -> None:
    """Each agent has its row: state, models by the provider that runs, throughput, queue, and its ledger."""
    await put_a_fleet(hub)
    async with opened(browser, hub.url) as watched:
        page = watched.page
        well = page.locator('tr.agent[data-key="lyon/press-a"]')
        await expect(well.locator(".badge")).to_have_text("Online")
        await expect(well.locator(".models")).to_have_text("defects 3CPU")
        await expect(well.locator(".flow .figure")).to_have_text("128")
        await expect(well.locator(".queue")).to_contain_text("3")
        await expect(well.locator(".ledger")).to_contain_text("0 missing")
        await expect(well.locator(".ledger")).to_contain_text("of 1,204")
        fell = page.locator('tr.agent[data-key="lyon/press-b"]')
        await expect(fell.locator(".models")).to_contain_text("CPU, not CUDA")
        await expect(fell.locator(".overflow")).to_contain_text("41")
        await expect(fell.locator(".sync")).to_contain_text("15")
        await expect(page.locator('tr.agent[data-key="gdansk/jetson"] .badge')).to_have_text("Offline")
        await expect(page.locator("#attention-list")).to_contain_text("defects 3 runs on CPU, not CUDA")
        await expect(page.locator("#rail")).to_contain_text("0 missing of 1,239")
        await expect(page.locator("#fleet-note")).to_have_text("2 of 3 agents online at 2 sites")
        assert watched.complaints == []


async def test_a_dead_agent_does_not_look_online(database: str, browser: Browser) -> None:
    """An agent that was not heard for too long is Silent, whatever its presence on the broker says."""
    async with api_server.serving(database, context.Settings(silent_after_s=0.0)) as hub:
        await join(hub.pool, online=True, telemetry=telemetry())
        async with opened(browser, hub.url) as watched:
            await expect(watched.page.locator("tr.agent .badge")).to_have_text("Silent")
            await expect(watched.page.locator("#fleet-note")).to_have_text("0 of 1 agent online at 1 site")


async def test_an_empty_hub_says_what_will_come(hub: Served, browser: Browser) -> None:
    """A hub of no agents and no tasks is not a blank page: it says what will appear and how."""
    async with opened(browser, hub.url) as watched:
        await expect(watched.page.locator("#fleet-empty")).to_contain_text("as soon as it connects")
        await expect(watched.page.locator("#recent-empty")).to_contain_text("backhaul submit")


async def test_what_happens_is_seen_without_a_reload(hub: Served, browser: Browser) -> None:
    """An agent that comes, records that arrive and a task that is submitted appear by themselves."""
    async with opened(browser, hub.url) as watched:
        page = watched.page
        agent_id = await join(hub.pool, telemetry=telemetry())
        await expect(page.locator("tr.agent .badge")).to_have_text("Online")
        await record(hub.pool, agent_id, results(7))
        await expect(page.locator("tr.agent .ledger")).to_contain_text("of 7")
        task_id = await hub.submit()
        await expect(page.locator("#recent")).to_contain_text(task_id[-8:])
        await expect(page.locator("#recent")).to_contain_text("Queued")
        await hub.client.post(f"/v1/tasks/{task_id}/cancel")
        await expect(page.locator("#failures")).to_contain_text("cancelled")


class Relay:
    """A way to the hub that can be cut, and mended."""

    def __init__(self, hub: Served) -> None:
        self._port = int(hub.url.rpartition(":")[2])
        self._writers: set[asyncio.StreamWriter] = set()
        self.whole = True

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, up_writer}

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while chunk := await source.read(65536):
                    target.write(chunk)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))
        self._writers -= {writer, up_writer}

    def cut(self) -> None:
        self.whole = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self.whole = True


async def test_a_lost_connection_is_plain_and_mends_by_itself(hub: Served, browser: Browser) -> None:
    """When the hub cannot be reached the page says so and how old its figures are; later it is live again."""
    await join(hub.pool, telemetry=telemetry())
    relay = Relay(hub)
    server = await asyncio.start_server(relay.pass_on, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with opened(browser, url) as watched:
        page = watched.page
        await expect(page.locator("tr.agent")).to_have_count(1)
        relay.cut()
        await expect(page.locator("#stream-text")).to_have_text("Connection lost")
        await expect(page.get_by_role("alert")).to_contain_text("Connection to the hub lost")
        await expect(page.locator("#banner-age")).to_contain_text("What is shown is")
        await join(hub.pool, PRESS_B)
        relay.mend()
        await expect(page.locator("#stream-text")).to_have_text("Live", timeout=20_000)
        await expect(page.locator("#banner")).to_be_hidden()
        await expect(page.locator("tr.agent")).to_have_count(2)
    server.close()


async def test_figures_that_grow_old_say_so(tmp_path: Path, browser: Browser) -> None:
    """While the hub is there and PostgreSQL is not, the page shows that, and how old its figures are."""
    async with (
        servers.Postgres(tmp_path / "postgres") as postgres,
        api_server.serving(postgres.dsn, context.Settings(database_wait_s=1)) as hub,
        opened(browser, hub.url) as watched,
    ):
        page = watched.page
        await postgres.stop()
        await expect(page.locator("#parts")).to_contain_text("PostgreSQL cannot be reached", timeout=20_000)
        await expect(page.locator("#stream-text")).to_have_text("Waiting", timeout=20_000)
        await expect(page.locator("#banner")).to_contain_text("cannot read its database. What is shown is")
        await postgres.start()
        await expect(page.locator("#stream-text")).to_have_text("Live", timeout=20_000)
        await expect(page.locator("#banner")).to_be_hidden()


async def put_queues(hub: Served) -> None:
    """A queue at its limits, and one without any."""
    limits = {"weight": 0.5, "max_queued": 3, "max_running": 1, "default_priority": 2}
    assert (await hub.client.put("/v1/queues/archive", json=limits)).status_code == 200
    for priority in (7, 2, 2):
        await hub.submit(queue="archive", priority=priority)
    await hub.submit()


async def test_queues_are_shown_with_their_limits(hub: Served, browser: Browser) -> None:
    """What waits in each queue by priority, beside what may; what is at its limit stands out."""
    await put_queues(hub)
    async with opened(browser, hub.url) as watched:
        row = watched.page.locator('#queues tr[data-key="archive"]')
        await expect(row.locator("th")).to_contain_text("priority 2 if none is named")
        await expect(row.locator(".waiting")).to_have_text("3of 3")
        await expect(row.locator(".waiting")).to_have_attribute("data-tone", "warn")
        await expect(row.locator(".running")).to_have_text("0of 1")
        await expect(row.locator(".priorities li")).to_have_text(["7 1", "2 2"])
        await expect(watched.page.locator('#queues tr[data-key="default"] .waiting')).to_have_text("1")
        await hub.client.delete("/v1/queues/archive")
        await expect(row.locator(".waiting")).to_have_text("3")


async def test_a_task_says_why_it_waits(hub: Served, browser: Browser) -> None:
    """Opened, a task that waits tells what for and what is before it; one that runs, why it went there."""
    agent_id = await join(hub.pool, PRESS_A, telemetry=telemetry())
    other = await join(hub.pool, PRESS_B)
    noted = {"predicted_s": 0.9, "able": 2, "others": [[other, 1.4]]}
    task_id = tasks.parse_id(await hub.submit())
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(task_id, agent_id, 30.0, 5, json.dumps(noted))])
    await hub.submit(model="ocr")
    async with opened(browser, hub.url) as watched:
        page = watched.page
        dialog = page.get_by_role("dialog")
        await page.locator("#recent button", has_text="ocr").click()
        await expect(dialog.locator(".cause")).to_have_text(["No agent has model ocr ready."])
        await expect(dialog).to_contain_text("Before it: 0 of higher priorities")
        await dialog.get_by_role("button", name="Close").click()
        await page.locator("#recent button", has_text="defects").click()
        await expect(dialog.locator(".whys")).to_contain_text(
            "Attempt 1 went to lyon/press-a: predicted in 900 ms, of 2 agents; others: lyon/press-b in 1.4 s."
        )
        assert not watched.complaints


# What can be done


async def test_an_agent_is_looked_at_closely_and_drained(hub: Served, browser: Browser) -> None:
    """By the keyboard alone an agent's books are opened lane by lane, and it is drained and resumed."""
    await put_a_fleet(hub)
    async with opened(browser, hub.url) as watched:
        page = watched.page
        await page.get_by_role("button", name="press-b", exact=True).focus()
        await page.keyboard.press("Enter")
        row = page.locator("tr.detail .books tbody tr")
        await expect(row.locator("td")).to_have_text(["35", "20", "0", "15"])
        await page.get_by_role("button", name="Drain").focus()
        await page.keyboard.press("Enter")
        badge = page.locator('tr.agent[data-key="lyon/press-b"] .badge')
        await expect(badge).to_have_text("Draining")
        await page.get_by_role("button", name="Resume").click()
        await expect(badge).to_have_text("Online")


async def test_the_fleet_is_searched_and_narrowed_to_trouble(hub: Served, browser: Browser) -> None:
    """In a large fleet an agent is found by any of its names, and trouble is shown alone."""
    await put_a_fleet(hub)
    async with opened(browser, hub.url) as watched:
        page = watched.page
        agents = page.locator("tr.agent")
        await expect(agents).to_have_count(3)
        await page.get_by_label("Find an agent").fill("jet")
        await expect(agents).to_have_count(1)
        await page.get_by_label("Find an agent").fill("")
        await page.get_by_role("checkbox", name="Needs attention").check()
        await expect(agents).to_have_count(2)


async def test_a_dead_letter_is_opened_and_run_again(hub: Served, browser: Browser) -> None:
    """A dead letter tells what failed, and is put back into the queue with one button."""
    await join(hub.pool)
    task_id = await put_a_dead_letter(hub)
    async with opened(browser, hub.url) as watched:
        page = watched.page
        await page.locator("#failures .task").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text(task_id)
        await expect(dialog).to_contain_text("the model takes 3 channels")
        await dialog.get_by_role("button", name="Run again").click()
        await expect(dialog).to_contain_text("Queued")
        async with hub.pool.connection() as connection:
            task = await task_store.get(connection, tasks.parse_id(task_id))
        assert task is not None
        assert task.state is tasks.State.QUEUED


# How it is made


async def test_what_devices_say_is_never_markup(hub: Served, browser: Browser) -> None:
    """A name or an error that looks like HTML is shown as the text that it is."""
    evil = '<img src=x onerror="document.title=1">'
    await join(hub.pool, telemetry=telemetry(models=[model(name=evil)]))
    await put_a_dead_letter(hub, error=evil)
    async with opened(browser, hub.url) as watched:
        page = watched.page
        await expect(page.locator("tr.agent .models")).to_contain_text(evil)
        await page.locator("#failures .task").click()
        await expect(page.get_by_role("dialog")).to_contain_text(evil)
        assert await page.locator("img").count() == 0
        assert await page.title() == "Backhaul"


async def test_the_page_needs_nothing_from_elsewhere(hub: Served, browser: Browser) -> None:
    """All that the page loads is the hub's own: it works in a plant without the internet."""
    await put_a_fleet(hub)
    async with opened(browser, hub.url) as watched:
        await expect(watched.page.locator("tr.agent")).to_have_count(3)
        assert all(address.startswith(hub.url) for address in watched.requests), watched.requests
        assert watched.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_telephone(hub: Served, browser: Browser, scheme: str) -> None:
    """At 390 pixels nothing is cut off and nothing scrolls sideways, looked at closely too."""
    await put_a_fleet(hub)
    await put_a_dead_letter(hub)
    await put_queues(hub)
    async with opened(browser, hub.url, NARROW, scheme) as watched:
        page = watched.page
        await page.get_by_role("button", name="press-b", exact=True).click()
        await expect(page.locator("tr.detail")).to_be_visible()
        await expect(page.locator("#failures .task")).to_be_visible()
        assert await page.evaluate(pages.BEYOND_THE_EDGE) == []
        await page.locator("#failures .task").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Attempts")
        assert await page.evaluate(pages.BEYOND_THE_EDGE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_contrast(hub: Served, browser: Browser, scheme: str) -> None:
    """Every text stands out from what is behind it by 4.5 to 1 (WCAG 2.2, 1.4.3), in light and in dark."""
    await put_a_fleet(hub)
    await put_a_dead_letter(hub)
    await put_queues(hub)
    async with opened(browser, hub.url, WIDE, scheme) as watched:
        page = watched.page
        await page.get_by_role("button", name="press-b", exact=True).click()
        await expect(page.locator("tr.detail")).to_be_visible()
        await expect(page.locator("#failures .task")).to_be_visible()
        assert await page.evaluate(pages.TOO_FAINT) == []


async def test_it_can_be_walked_by_landmarks_and_headings(hub: Served, browser: Browser) -> None:
    """A screen reader finds a banner, a main part and named regions, and hears of an agent that goes away."""
    agent_id = await join(hub.pool, telemetry=telemetry())
    async with opened(browser, hub.url) as watched:
        page = watched.page
        for role in ("banner", "main", "contentinfo", "search"):
            await expect(page.get_by_role(role)).to_have_count(1)
        for name in ("Fleet", "Recent tasks", "Dead letters"):
            await expect(page.get_by_role("region", name=name)).to_be_visible()
        await expect(page.locator("tr.agent .badge")).to_have_text("Online")
        async with hub.pool.connection() as connection:
            await agents.set_presence(connection, agent_id, False)
        await expect(page.locator("#announcer")).to_have_text("Agent lyon/press-a is offline")
