"""One browser for all pages."""

import pytest

from tests.pages.browser import CHROMIUM, need_browser


@pytest.fixture(scope="session")
def browser():
    need_browser()
    from playwright.sync_api import sync_playwright  # here, so that nothing else needs its driver

    with sync_playwright() as playwright:
        # Its own flag would hide the bars of what scrolls, which are looked for.
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, ignore_default_args=["--hide-scrollbars"]
        )
        yield chromium
        chromium.close()
