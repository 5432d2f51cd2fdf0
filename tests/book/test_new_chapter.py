"""`coalora new`: the pair and its line in the contents; the chapter meets the rules of all."""

import shutil
from pathlib import Path

import pytest
import test_chapters
import yaml
from typer.testing import CliRunner

from coalora_lib.book.execution import copy_sources, listed, refresh_outputs, render
from coalora_lib.book.new import new_chapter
from coalora_lib.cli import app

ROOT = Path(__file__).parents[2]
NEW = Path("book/11_pruning_heads.ipynb")


@pytest.fixture
def book(tmp_path):
    """A copy of what the book is made from."""
    for name in ("_config.yml", "_toc.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("results"))
    return tmp_path


def run(book, *words):
    return CliRunner().invoke(app, ["new", *words, "--root", str(book)])


def files(book):
    return {path: path.read_bytes() for path in book.rglob("*") if path.is_file()}


def test_a_chapter_is_the_last_of_the_numbered_ones_and_has_its_title(book):
    before = (book / "_toc.yml").read_text().splitlines()
    made = run(book, "11_pruning_heads", "--title", "Which heads matter?")
    assert made.exit_code == 0, made.output
    assert "coalora outputs 11_pruning_heads" in made.output
    wanted = listed(ROOT)
    numbered = [page for page in wanted if page.stem[:2].isdigit()]
    wanted.insert(len(numbered), NEW)
    assert listed(book) == wanted
    after = (book / "_toc.yml").read_text().splitlines()
    assert [line for line in after if line not in before] == [f"      - file: {NEW}"]
    assert yaml.safe_load("\n".join(after))["parts"][0]["chapters"][-1]["file"] == str(NEW)
    text = (book / NEW).with_suffix(".md").read_text()
    assert "(pruning-heads)=\n# Which heads matter?\n" in text
    assert "@" not in text


def test_without_a_title_the_name_is_it(book):
    text = new_chapter(book, "11_pruning_heads").read_text()
    assert "\n# Pruning heads\n" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["11-pruning"], "name='11-pruning' must be two digits, an underline and small letters"),
        (["pruning"], "as 11_pruning"),
        (["11_Pruning"], "as 11_pruning"),
        (["../11_pruning"], "as 11_pruning"),
        (["03_adapter"], "03_adapter: the number 03 is that of book/03_adapter"),
        (["03_other"], "03_other: the number 03 is that of book/03_adapter"),
        (["11_adapter"], "11_adapter: the label 'adapter' is that of book/03_adapter.md"),
        (["11_pruning", "--title", " "], "title='' must be one line of text"),
    ],
    ids=["dash", "no number", "capital", "path", "there", "number", "label", "title"],
)
def test_what_cannot_be_made_is_refused_on_one_line_and_nothing_is_written(words, message, book):
    before = files(book)
    refused = run(book, *words)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert files(book) == before


@pytest.mark.slow
def test_a_new_chapter_meets_the_rules_is_executed_and_rendered_strictly(book, monkeypatch):
    new_chapter(book, NEW.stem)
    refresh_outputs(book, lambda line: None, [NEW.stem])
    monkeypatch.setattr(test_chapters, "ROOT", book)
    test_chapters.test_every_notebook_is_in_the_contents_and_has_a_pair()
    rules = [rule for rule in vars(test_chapters).values() if hasattr(rule, "pytestmark")]
    assert len(rules) > 5
    for rule in rules:
        rule(NEW)
    source, page = book / "_build" / "source", book / "_build" / "html"
    copy_sources(book, source)
    render(source, page, strict=True)
    assert "Pruning heads" in (page / NEW).with_suffix(".html").read_text()
