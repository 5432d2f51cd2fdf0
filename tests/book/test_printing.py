"""A tiny book as a PDF: its text, formulas, numbers of pages and links."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from pypdf import PdfReader
from typer.testing import CliRunner

from coalora_lib.book import printing
from coalora_lib.cli import app
from tests.pages.browser import need_browser

ROOT = Path(__file__).parents[2]
FIRST = """# A tiny book

See {ref}`second`, and {doc}`/book/reference/library/coalora_lib`."""
SECOND = r"""(second)=
# The second page

As {eq}`eq-one` says, and [the first page](00_first.ipynb) does not.

```{math}
:label: eq-one
a = \frac{b}{c}
```

## A section

:::{dropdown} Solution
It is folded on a screen.
:::"""


def page(path, text, *code):
    """A notebook of one text and some cells, each a source and its tags."""
    cells = [nbformat.v4.new_markdown_cell(text)]
    for source, *tags in code:
        said = nbformat.v4.new_output("stream", name="stdout", text="what it printed\n")
        cell = nbformat.v4.new_code_cell(
            source, outputs=[said], execution_count=1, metadata={"tags": tags}
        )
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture
def book(tmp_path):
    shutil.copytree(ROOT / printing.ASSETS, tmp_path / printing.ASSETS)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config |= {"title": "Tiny", "author": "Nobody", "bibtex_bibfiles": []}
    made = ("sphinxcontrib.bibtex", "coalora_lib.book.pages")  # pages that a tiny book has not
    sphinx = config["sphinx"]["config"]
    sphinx["extensions"] = [each for each in sphinx["extensions"] if each not in made]
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    contents = {
        "format": "jb-book",
        "root": "book/00_first.ipynb",
        "parts": [{"chapters": [{"file": "book/01_second.ipynb"}]}],
    }
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(contents))
    page(tmp_path / "book" / "00_first.ipynb", FIRST)
    wide = f"wide = '{'x' * 66}'  # end"
    cells = [(wide,), ("folded = True", "hide-input")]
    page(tmp_path / "book" / "01_second.ipynb", SECOND, *cells)
    return tmp_path


@pytest.mark.slow
def test_a_book_is_printed_with_numbers_contents_and_links(book):
    need_browser()
    # Its own process, since playwright runs once in each, and tests of the pages may have it.
    command = [sys.executable, "-m", "coalora_lib", "pdf", "--root", str(book)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file = book / "_build" / "book.pdf"
    assert f"The book: {file}, 4 pages" in done.stdout
    pages = PdfReader(file).pages
    cover, contents, first, second = (each.extract_text() for each in pages)
    assert "Tiny" in cover
    assert "Nobody" in cover
    assert contents.splitlines()[1:] == [
        "Contents",
        "A tiny book 3",
        "The second page 4",
        "A section 4",
    ]
    for number, text in enumerate((contents, first, second), 2):
        assert text.splitlines()[0] == str(number)
    assert "See The second page, and" in first
    for text in ("# end", "what it printed", "It is folded on a screen."):
        assert text in second
    assert "folded = True" not in second
    assert r"\frac" not in second
    assert second.count("(1)") == 2  # the equation's number, and what points to it
    # Links: of the contents; to the second page, not to what is left out; to the equation and back.
    assert [len(each.get("/Annots", [])) for each in pages] == [0, 3, 1, 2]


def test_without_a_browser_it_says_what_to_install(book, monkeypatch):
    monkeypatch.setattr(printing, "find_browser", lambda: None)
    done = CliRunner().invoke(app, ["pdf", "--root", str(book)])
    assert done.exit_code == 2
    assert "no browser to print with, of chromium, " in done.stderr
    assert "`apt install chromium` brings one" in done.stderr
    assert not (book / "_build" / "book.pdf").exists()
