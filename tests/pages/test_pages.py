"""Every page as its readers have it: opened from a folder, on a desktop and a phone, in both themes.

A page is loaded once; window and theme then change under it, as they do under a reader.
"""

from pathlib import Path

import pytest

from coalora_lib.book.execution import listed
from tests.pages.browser import REQUIRED, SITE, SIZES, opened, pages

ROOT = SITE.parents[1]
LAYOUT = (Path(__file__).parent / "layout.js").read_text()
AXE = (Path(__file__).parent / "axe.js").read_text()


def test_every_chapter_is_rendered():
    missing = [
        chapter.stem
        for chapter in listed(ROOT)
        if not (SITE / chapter.with_suffix(".html")).is_file()
    ]
    if missing and not REQUIRED:
        pytest.skip("`make pages` renders what is tried here")
    assert not missing, "`make pages` renders them"


@pytest.mark.parametrize("page", pages())
def test_a_page(browser, page):
    from axe_playwright_python.base import AXE_SCRIPT

    faults = []
    with opened(browser, page) as (tab, wrong):

        def look(size, theme, *parts):
            tab.set_viewport_size(SIZES[size])
            tab.emulate_media(color_scheme=theme)
            # The theme looks for what scrolls a third of a second after the window changed.
            tab.wait_for_timeout(400)
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
            found = [*tab.evaluate(LAYOUT), *tab.evaluate(AXE, parts)]
            faults.extend(f"{size}, {theme}: {fault}" for fault in found)

        tab.evaluate(AXE_SCRIPT)
        look("desktop", "light", "colours", "rest")
        look("desktop", "dark", "colours")
        look("phone", "dark", "rest")
        look("phone", "light")
    assert not wrong + faults, "\n".join(wrong + faults)
