"""The site as files: what its pages point to is there, and it is small. No browser is needed."""

from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from coalora_lib.book.execution import listed
from tests.pages.browser import REQUIRED, SITE, pages

MB = 1e6
#: Shared by all pages, and loaded once.
SHARED = "_static"
ROOT = SITE.parents[1]


class Page(HTMLParser):
    """What can be pointed to on a page, and what it points to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.targets = {"", "top"}, set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.targets |= {attrs[name] for name in ("href", "src") if attrs.get(name)}


read = cache(Page)


def own(page):
    """The site's files that a page points to, each with an anchor."""
    for target in read(SITE / page).targets:
        address, anchor = urldefrag(target)
        if not urlsplit(address).scheme:
            path = unquote(urlsplit(address).path)
            yield ((SITE / page).parent / path).resolve() if path else SITE / page, unquote(anchor)


def test_every_chapter_is_rendered():
    chapters = [chapter.with_suffix(".html") for chapter in listed(ROOT)]
    missing = [str(page) for page in chapters if not (SITE / page).is_file()]
    if missing and not REQUIRED:
        pytest.skip("the pages are not rendered; `make pages` does")
    assert not missing, "`make pages` renders them"


@pytest.mark.parametrize("page", [*pages(), "index.html"])
def test_what_a_page_points_to_is_there(page):
    if not (SITE / page).is_file():
        pytest.skip("the pages are not rendered; `make pages` does")
    broken = [
        f"{path.relative_to(SITE)}#{anchor}"
        for path, anchor in own(page)
        if not path.is_file() or (path.suffix == ".html" and anchor not in read(path).anchors)
    ]
    assert not broken


@pytest.mark.parametrize("page", pages())
def test_a_page_is_small(page):
    files = {path for path, _ in own(page) if path.suffix not in (".html", ".ipynb")}
    alone = [path for path in files if SHARED not in path.parts]
    assert sum(path.stat().st_size for path in [SITE / page, *alone]) < 3 * MB


def test_the_site_is_small():
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < 25 * MB
