"""Rollouts on the dashboard, in a real browser on a real hub: what is seen, and what can be done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from cloud_hub.store import apply
from shared import signals, topics
from tests.e2e import pages
from tests.e2e.pages import NARROW, WIDE, opened
from tests.integration import api_server, shipped
from tests.integration.api_server import PRESS_A, Served, join, results, telemetry

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's, which takes long to start

PRESS_B = topics.Agent("lyon", "press-b")
STAGES = ["shadow", "internal/traffic:10%+tag:group=beta", "100%"]


@pytest_asyncio.fixture(loop_scope="module")
async def hub(database: str, tmp_path: Path) -> AsyncIterator[Served]:
    """A hub with two versions of a model, the first of which two agents are to serve."""
    async with api_server.serving(database) as served:
        for version in ("1", "2"):
            await shipped.pushed(served, shipped.package(tmp_path, version=version), version=version)
        await shipped.aim(served, "1")
        for place in (PRESS_A, PRESS_B):
            await join(served.pool, place, telemetry=telemetry(labels={"ring": "internal"}))
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests here: pages share nothing."""
    async with pages.chromium() as started:
        yield started


async def begin(hub: Served, **said: Any) -> str:
    """The id of a rollout that was started."""
    wanted = {"model": "defects", "version": "2", "stages": STAGES, "min_results": 20, **said}
    answer = await hub.client.post("/v1/rollouts", json=wanted)
    assert answer.status_code == 201, answer.text
    rollout_id: str = answer.json()["rollout_id"]
    return rollout_id


async def change(hub: Served, rollout_id: str, word: str, reason: str = "") -> None:
    answer = await hub.client.post(f"/v1/rollouts/{rollout_id}/{word}", json={"reason": reason})
    assert answer.status_code == 200, answer.text


async def report(hub: Served, rollout_id: str, place: topics.Agent, state: str, **said: Any) -> int:
    """What an agent says of a rollout; its id in the store."""
    trial = signals.TrialReport(rollout=rollout_id, state=state, **said)
    return await join(hub.pool, place, telemetry=telemetry(labels={"ring": "internal"}, trials=[trial]))


def panel(page: Page) -> Locator:
    return page.get_by_role("region", name="Rollouts")


async def test_a_rollout_is_seen_stage_by_stage(hub: Served, browser: Browser) -> None:
    """What is behind, now and to come; agents that are ready, results, and each gate beside its limit."""
    async with opened(browser, hub.url) as watched:
        shown = panel(watched.page)
        await expect(shown).to_be_hidden()
        rollout_id = await begin(hub)
        stage = shown.locator(".stages li")
        await expect(shown.locator("h3")).to_have_text("defects to 2")
        await expect(shown.locator(".about .badge")).to_have_text("Running")
        await expect(stage.first).to_contain_text("0 of 2 agents ready")
        await report(hub, rollout_id, PRESS_B, "ready")
        await report(hub, rollout_id, PRESS_A, "ready", compared=12, agreed=12)
        await expect(stage.first).to_contain_text("2 of 2 agents ready")
        await expect(stage.first).to_contain_text("12 of 20 compared")
        gate = shown.locator(".gates li", has_text="agreement")
        await expect(gate.locator(".value")).to_have_text("100.0 %")
        await expect(gate.locator(".of")).to_have_text("at least 95 %")
        await expect(gate.locator(".badge")).to_have_text("open")
        await expect(shown.locator(".reason")).to_contain_text("12 of 20 shadowed jobs")

        await change(hub, rollout_id, "promote")
        await expect(stage.nth(0)).to_have_attribute("data-way", "behind")
        await expect(stage.nth(1)).to_have_attribute("aria-current", "step")
        await expect(stage.nth(2)).to_have_attribute("data-way", "ahead")
        await expect(watched.page.locator("#announcer")).to_have_text(
            "Rollout of defects 2: running, stage internal/traffic:10%+tag:group=beta"
        )
        await change(hub, rollout_id, "rollback", "seen on the floor")
        await expect(shown.locator(".about .badge")).to_have_text("Rolled back")
        await expect(shown.locator(".reason")).to_have_text("seen on the floor")
        await expect(shown.locator(".gates")).to_be_hidden()
        await expect(shown.locator("#rollouts-note")).to_have_text("none under way")
        assert watched.complaints == []


async def test_a_rollout_is_paused_and_taken_back(hub: Served, browser: Browser) -> None:
    """Looked at closely it tells of its agents and its history; there it is paused, and taken back."""
    rollout_id = await begin(hub)
    await report(hub, rollout_id, PRESS_B, "refused", reason="<b>no</b> such provider")
    async with opened(browser, hub.url) as watched:
        page = watched.page
        await page.get_by_role("button", name="defects to 2").focus()
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        row = dialog.locator("tr", has_text="press-b")
        await expect(row).to_have_attribute("data-tone", "bad")
        await expect(row).to_contain_text("<b>no</b> such provider")
        await dialog.get_by_role("button", name="Pause").press("Enter")
        await expect(dialog).to_contain_text("paused")
        await dialog.get_by_role("button", name="Resume").click()
        await expect(dialog).to_contain_text("resumed")
        await dialog.get_by_role("button", name="Roll back").click()
        assert (await hub.client.get(f"/v1/rollouts/{rollout_id}")).json()["state"] == "running"
        await dialog.get_by_role("button", name="Roll back: all agents, now").click()
        await expect(dialog).to_contain_text("rolled back")
        await expect(dialog.get_by_role("button")).to_have_text(["Close"])
        assert (await hub.client.get(f"/v1/rollouts/{rollout_id}")).json()["state"] == "rolled_back"
        assert watched.complaints == []


async def put_rollouts(hub: Served) -> None:
    """One that went back, and one in its second stage with a gate that failed."""
    await change(hub, await begin(hub), "rollback", "a reason of many words that has to be broken into lines")
    rollout_id = await begin(hub, selector="site=lyon")
    await change(hub, rollout_id, "promote")
    agent_id = await report(hub, rollout_id, PRESS_A, "ready")
    bad = results(30, version="2", outcome="failed", label=None)
    async with hub.pool.connection() as connection:
        await apply.results(connection, agent_id, bad, hub.app.state.hub.rollouts.watched)


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (NARROW, "light"), (NARROW, "dark")])
async def test_it_fits_and_can_be_read(
    hub: Served, browser: Browser, size: dict[str, int], scheme: str
) -> None:
    """Wide and on a telephone, in light and dark: nothing is cut off, and every text has contrast."""
    await put_rollouts(hub)
    async with opened(browser, hub.url, size, scheme) as watched:
        page = watched.page
        await expect(panel(page).locator(".rollout")).to_have_count(2)
        await expect(panel(page).locator(".gates .badge").first).to_have_text("failed")
        assert await page.evaluate(pages.BEYOND_THE_EDGE) == []
        assert await page.evaluate(pages.TOO_FAINT) == []
        await panel(page).get_by_role("button").first.click()
        await expect(page.get_by_role("dialog")).to_contain_text("History")
        assert await page.evaluate(pages.BEYOND_THE_EDGE) == []
        assert await page.evaluate(pages.TOO_FAINT) == []
