"""The book as one PDF: all pages rendered as one, which Chromium prints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader

from coalora_lib import __version__
from coalora_lib.book.browser import NAMES, find_browser
from coalora_lib.book.execution import build, copy_sources
from coalora_lib.files import atomic_file

#: Style and script of the printed page, in the book's folder. No page of the site has them.
ASSETS = Path("book/_print")
#: Not printed: what one looks up by a click. Links to them become plain text.
LEFT_OUT = ("book/reference/library/coalora_lib", "book/reference/command_line.md")
#: Extensions that are for a screen.
FOR_SCREENS = {"sphinx_book_theme", "sphinx_comments", "sphinx_copybutton"}
#: Pixels between the margins of an A4 page, 170 mm at 96 to an inch; print.css sets the margins.
WIDTH = 642


def print_book(root: Path, pdf: Path) -> int:
    """Write the committed chapters, as they are, to a PDF; the number of its pages.

    Raises:
        FileNotFoundError: there is no Chromium; or as of
            :func:`~coalora_lib.book.execution.copy_sources`.
        RuntimeError: the pages could not be rendered.
    """
    if (browser := find_browser()) is None:
        raise FileNotFoundError(
            f"no browser to print with, of {', '.join(NAMES)}; `apt install chromium` brings one"
        )
    source, made = root / "_build" / "printed", root / "_build" / "printed-new"
    copy_sources(root, source)
    config = _arrange(source)
    built = build(source, made, "singlehtml", "-qq")
    first = Path(yaml.safe_load((source / "_toc.yml").read_text())["root"]).with_suffix("")
    # The page is written for the top of the folder, wherever the first chapter is.
    page = (built / first).with_suffix(".html").rename(built / "book.html")
    cover = {key: config[key] for key in ("title", "author")}
    cover |= {"version": __version__, "first": first.as_posix()}
    with sync_playwright() as playwright, atomic_file(pdf) as file:
        chromium = playwright.chromium.launch(executable_path=browser)
        tab = chromium.new_page(viewport={"width": WIDTH, "height": 900})
        tab.emulate_media(media="print")
        tab.goto(page.resolve().as_uri())
        tab.evaluate("window.MathJax?.startup?.promise.then(() => null)")
        tab.add_style_tag(path=root / ASSETS / "print.css")
        tab.add_script_tag(path=root / ASSETS / "print.js")
        tab.evaluate("prepare", cover)
        # The contents name pages, which are known when the book was printed once.
        tab.evaluate("number", _targets(_print(tab, file)))
        pages = len(_print(tab, file).pages)
        chromium.close()
    shutil.rmtree(made)
    return pages


def _print(tab: Page, file: Path) -> PdfReader:
    tab.pdf(path=file, prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    return PdfReader(file)


def _targets(reader: PdfReader) -> dict[str, int]:
    """On which page each target of a link is, from 1."""
    return {
        name.removeprefix("/"): (reader.get_destination_page_number(target) or 0) + 1
        for name, target in reader.named_destinations.items()
    }


def _arrange(source: Path) -> dict[str, Any]:
    """Change copied sources to what is printed; their configuration."""
    contents = yaml.safe_load((source / "_toc.yml").read_text())
    for part in contents.get("parts", [contents]):
        part["chapters"] = [each for each in part["chapters"] if each["file"] not in LEFT_OUT]
    (source / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False))
    config = yaml.safe_load((source / "_config.yml").read_text())
    sphinx = config["sphinx"]["config"]
    sphinx["extensions"] = [each for each in sphinx["extensions"] if each not in FOR_SCREENS]
    sphinx |= {
        "html_theme": "basic",
        "html_theme_options": {},
        "html_static_path": [],
        "html_css_files": [],
        "html_js_files": [],
        "command_line": "",
        "library_pages": False,
        "bibtex_cite_id": "cite-{key}",  # on one page, numbers of several pages would be the same
    }
    (source / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    return config
