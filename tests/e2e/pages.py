"""The dashboard's pages in a real browser: opened, watched, and judged by what every page must be."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}

BEYOND_THE_EDGE = """() => [...document.querySelectorAll("body *")]
    .filter((node) => !node.closest(".unseen, .skip, svg, .scroll") && node.getClientRects().length)
    .filter((node) => node.getBoundingClientRect().right > innerWidth + 0.5)
    .map((node) => node.outerHTML.slice(0, 120))"""
"""What of a page is cut off at the right, as HTML; nothing may be."""

TOO_FAINT = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (...colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !node.getClientRects().length) continue;
        if (node.closest(".unseen, .skip, noscript")) continue;
        const behind = [];
        for (let up = node; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
        const back = light(paint("Canvas", ...behind));
        const front = light(paint("Canvas", ...behind, getComputedStyle(node).color));
        const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)}: ${node.className} ${walk.currentNode.data}`);
    }
    return faint;
}"""
"""Texts of less than 4.5 to 1 against what is behind them (WCAG 2.2, 1.4.3); none may be."""


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser; where there is none the test is skipped, or fails in CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed", pytrace=False)
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield started
        await started.close()


@dataclass
class Watched:
    """A page, and what it asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def opened(
    browser: Browser, url: str, size: dict[str, int] = WIDE, scheme: str = "light"
) -> AsyncIterator[Watched]:
    """The dashboard, connected."""
    page = await browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    watched = Watched(page)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("console", lambda line: watched.complaints.append(line.text))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    await page.goto(url)
    await expect(page.locator("#stream-text")).to_have_text("Live")
    yield watched
    await page.close()
