"""The installed browser, which prints the book and in which its pages are tried."""

import shutil

#: What a Chromium may be called; the first that is there is taken.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)
