"""A headless Chromium for the tests of the page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ELSEWHERE = "page.test"  # this machine under a name for which browsers allow less over plain HTTP
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine; on Debian: apt install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=path, args=["--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
        )
        try:
            yield browser
        finally:
            browser.close()


def ready(page: Any) -> None:
    """Waits until the page has started."""
    page.locator("body.ready").wait_for()


def reloaded(page: Any) -> None:
    """Loads the page again, as a user would."""
    page.reload()
    ready(page)


def settled(page: Any) -> None:
    """Wait until nothing moves any more that will ever come to rest."""
    moving = "document.getAnimations().filter(one => one.effect.getComputedTiming().endTime < Infinity)"
    page.evaluate(f"Promise.all({moving}.map(one => one.finished))")


@contextlib.contextmanager
def opened(browser: Any, url: str, *, trouble: tuple[str, ...] = (), script: str = "", **options: Any) -> Iterator[Any]:
    """A page in a profile of its own. Nothing may be complained about, and nothing asked of anybody else.

    Args:
        browser, url: what is opened where.
        trouble: parts of complaints in the browser's console that belong to the test.
        script: runs in the page before its own.
        options: of the profile, such as viewport.
    """
    complaints: list[str] = []
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    if script:
        context.add_init_script(script)

    def watch(page: Any) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or complaints.append(request.url))

    context.on("page", watch)
    try:
        page = context.new_page()
        page.goto(url)
        ready(page)
        yield page
        unexpected = [one for one in complaints if not any(part in one for part in trouble)]
        assert not unexpected
    finally:
        context.close()
