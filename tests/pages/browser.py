"""The browser that the rendered pages are tried in, and how they are opened.

As a program it says whether the pages are left out of the tests; ``make test`` ends with that.
"""

import os
from contextlib import contextmanager
from pathlib import Path

from coalora_lib.book.browser import find_browser

#: Where ``make pages`` renders the book.
SITE = Path(__file__).parents[2] / "_build" / "html"
CHROMIUM = find_browser()
#: ``COALORA_BROWSER=required``: a missing browser is a failure, as in continuous integration.
REQUIRED = os.environ.get("COALORA_BROWSER") == "required"
LEFT_OUT = "The pages were not tried in a browser: no Chromium was found (apt install chromium)."
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def need_browser():
    """Leave the test out where there is no browser, or fail where one is required."""
    import pytest  # here, so that the program needs no test packages

    if CHROMIUM is None:
        (pytest.fail if REQUIRED else pytest.skip)(LEFT_OUT)


def pages():
    """The pages of the site, below it. ``index.html`` only leads on to the first."""
    return sorted(
        path.relative_to(SITE).as_posix()
        for path in SITE.rglob("*.html")
        if path != SITE / "index.html"
    )


@contextmanager
def opened(browser, page, folder=SITE):
    """A page, opened from its folder on a light desktop, and a list that gets what goes wrong.

    All equations are set and all toggles are open.
    """
    wrong = []
    tab = browser.new_page(viewport=SIZES["desktop"], color_scheme="light")
    tab.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    tab.on("console", lambda said: said.type == "error" and wrong.append(f"console: {said.text}"))
    tab.on("requestfailed", lambda request: wrong.append(f"request failed: {request.url}"))
    tab.on(
        "request",
        lambda request: (
            request.url.startswith((folder.as_uri(), "data:"))
            or wrong.append(f"request leaves the folder: {request.url}")
        ),
    )
    try:
        tab.goto(f"{folder.as_uri()}/{page}")
        tab.evaluate("window.MathJax?.startup?.promise.then(() => null)")
        tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        # Nothing to wait for: toggles that open fade in, and are pale until then.
        tab.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        yield tab, wrong
    finally:
        tab.close()


if __name__ == "__main__" and CHROMIUM is None:
    print(LEFT_OUT)
