"""One browser for all pages."""

import pytest

from tests.pages.browser import CHROMIUM, LEFT_OUT, REQUIRED


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        (pytest.fail if REQUIRED else pytest.skip)(LEFT_OUT)
    from playwright.sync_api import sync_playwright  # here, so that nothing else needs its driver

    with sync_playwright() as playwright:
        # Its own flag would hide the bars of what scrolls, which are looked for.
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, ignore_default_args=["--hide-scrollbars"]
        )
        yield chromium
        chromium.close()
