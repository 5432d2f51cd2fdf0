"""Every page as readers have it: opened from a folder, on a desktop and a phone, in both themes.

A page is loaded once; window and theme then change under it, as they do under a reader.
"""

from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.pages.browser import SIZES, opened, pages

LAYOUT = (Path(__file__).parent / "layout.js").read_text()
AXE = (Path(__file__).parent / "axe.js").read_text()


@pytest.mark.parametrize("page", pages())
def test_a_page(browser, page):
    faults = []
    with opened(browser, page) as (tab, wrong):

        def look(size, theme, *parts):
            tab.set_viewport_size(SIZES[size])
            tab.emulate_media(color_scheme=theme)
            tab.wait_for_timeout(200)  # colours change slowly
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
            found = [*tab.evaluate(LAYOUT), *tab.evaluate(AXE, parts)]
            faults.extend(f"{size}, {theme}: {fault}" for fault in found)

        tab.evaluate(AXE_SCRIPT)
        look("desktop", "light", "colours", "rest")
        look("desktop", "dark", "colours")
        look("phone", "dark", "rest")
        look("phone", "light")
    assert not wrong + faults, "\n".join(wrong + faults)


#: Chapters with toggles, tables and equations have the most that the keyboard must reach.
WITH_CONTROLS = [page for page in pages() if page.startswith("book/04")]
FOCUSED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const controls = window.controls ??= [];
  if (!controls.includes(at)) controls.push(at);
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 && at.checkVisibility();
  return [controls.indexOf(at), seen ? "" : at.outerHTML.slice(0, 120)];
}"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", WITH_CONTROLS)
def test_the_tab_key_goes_through_a_page_and_is_seen(browser, page, size):
    with opened(browser, page) as (tab, _):
        tab.set_viewport_size(SIZES[size])
        reached, unseen = [], []
        tab.keyboard.press("Tab")
        while (at := tab.evaluate(FOCUSED)) and at[0] == len(reached):
            reached.append(at[0])
            unseen += filter(None, at[1:])
            tab.keyboard.press("Tab")
        controls = tab.evaluate(
            """[...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
                .filter((each) => each.checkVisibility({visibilityProperty: true}))
                .filter((each) => !window.controls.includes(each))
                .map((each) => each.outerHTML.slice(0, 120))"""
        )
    assert not unseen
    assert not controls
    assert len(reached) > 50


def test_the_search_finds_from_a_folder(browser):
    with opened(browser, "search.html?q=hypervolume") as (tab, wrong):
        tab.wait_for_selector("#search-results a[href*='04_search']", timeout=5000)
    assert not wrong


#: A page on which everything is wrong, and what is said of each fault.
FAULTY = """<html lang="en"><title>faulty</title><main><h1>All wrong</h1>
<script>console.error("oh"); undefined_name()</script>
<img src="none.png" alt="none.png"><img src="https://example.com/far.png" alt="Far away">
<p>A formula $x^2$, and \\(y\\).</p><div style="width: 2000px">wide</div>
<div style="overflow: hidden; width: 9px"><mjx-container><svg width="300"></svg></mjx-container>
</div>
<div class="cell_input"><pre style="overflow: auto; width: 40px">a long line of code</pre></div>
<a href="#" tabindex="-1">not reached</a><p style="color: #ddd">pale</p><button></button>
</main></html>"""
SAID = (
    "console: oh",
    "script error: undefined_name",
    "request failed: file:",
    "request leaves the folder: https://example.com/far.png",
    "a picture without a text: none.png",
    "a broken picture: ",
    "raw TeX: A formula",
    "the page is wider than the window",
    "an equation is cut",
    "code is too wide: a long line",
    "the keyboard does not reach <a",
    "color-contrast: <p",
    "button-name: <button",
)


def test_every_kind_of_fault_is_found(browser, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY)
    with opened(browser, "faulty.html", tmp_path) as (tab, wrong):
        tab.evaluate(AXE_SCRIPT)
        found = [*tab.evaluate(LAYOUT), *tab.evaluate(AXE, ["colours", "rest"]), *wrong]
    missed = [said for said in SAID if not any(fault.startswith(said) for fault in found)]
    assert not missed, "\n".join(found)
