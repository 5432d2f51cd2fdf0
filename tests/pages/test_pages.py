"""Every page as readers have it: opened from a folder, on a desktop and a phone, in both themes.

A page is loaded once; window and theme then change under it, as they do under a reader.
"""

from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.pages.browser import SIZES, opened, pages

LAYOUT = (Path(__file__).parent / "layout.js").read_text()
#: After the window changed, until the page has found out what scrolls now.
FRAMES = """() => new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"""
AXE = (Path(__file__).parent / "axe.js").read_text()


@pytest.mark.parametrize("page", pages())
def test_a_page(browser, page):
    faults = []
    with opened(browser, page) as (tab, wrong):

        def look(size, theme, *parts):
            tab.set_viewport_size(SIZES[size])
            tab.emulate_media(color_scheme=theme)
            tab.wait_for_selector(f"html[data-theme={theme}]")
            tab.evaluate(FRAMES)
            found = [*tab.evaluate(LAYOUT), *tab.evaluate(AXE, parts)]
            faults.extend(f"{size}, {theme}: {fault}" for fault in found)

        tab.evaluate(AXE_SCRIPT)
        look("desktop", "light", "colours", "rest")
        look("desktop", "dark", "colours")
        look("phone", "dark", "sizes")
        look("phone", "light")
    assert not wrong + faults, "\n".join(wrong + faults)


#: A chapter with toggles, wide tables and equations, and the page with sliders and menus.
WITH_CONTROLS = [page for page in pages() if page.startswith(("book/02", "book/adapt"))]
#: The button that leads back to the top comes and goes with the scrolling.
CONTROLS = """() => {
  const controls = document.querySelectorAll(
    "a[href], button, input, select, summary, [tabindex='0']");
  return [...controls].filter((each) =>
    each.checkVisibility({ visibilityProperty: true }) && each.id !== "pst-back-to-top");
}"""
#: What gets the focus, and what of it does not show that it has it.
WATCH = """() => {
  window.reached = new Set();
  window.unseen = [];
  document.addEventListener("focusin", ({ target }) => {
    const { outlineStyle, outlineWidth } = getComputedStyle(target);
    const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
    if (!seen || !target.checkVisibility()) unseen.push(target.outerHTML.slice(0, 120));
    reached.add(target);
  });
}"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", WITH_CONTROLS)
def test_the_tab_key_goes_through_a_page_and_is_seen(browser, page, size):
    with opened(browser, page) as (tab, _):
        tab.set_viewport_size(SIZES[size])
        tab.evaluate(FRAMES)
        tab.evaluate(WATCH)
        for _ in range(tab.evaluate(f"({CONTROLS})().length") + 5):
            tab.keyboard.press("Tab")
        missed = f"({CONTROLS})().filter((each) => !reached.has(each))"
        assert tab.evaluate("unseen") == []
        assert tab.evaluate(f"{missed}.map((each) => each.outerHTML.slice(0, 120))") == []
        assert tab.evaluate("reached.size") > 30


def test_the_search_finds_from_a_folder(browser):
    with opened(browser, "search.html?q=hypervolume") as (tab, wrong):
        tab.wait_for_selector("#search-results a[href*='04_search']")
    assert not wrong


#: A page on which everything is wrong, and what is said of each fault.
FAULTY = """<html lang="en"><title>faulty</title><main><h1>All wrong</h1>
<script>console.error("oh"); undefined_name()</script>
<img src="none.png" alt="none.png"><img src="https://example.com/far.png" alt="Far away">
<p>A formula $x^2$, and \\(y\\).</p><div style="width: 2000px">wide</div>
<div style="overflow: hidden; width: 9px"><mjx-container><svg width="300"></svg></mjx-container>
</div>
<p style="width: 60px"><span class="math"><mjx-container><svg width="58"></svg></mjx-container>
</span>, and so on</p>
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
    "a mark begins a line: , and so",
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
