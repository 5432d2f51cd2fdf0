"""The .md and the .ipynb of a chapter: which was edited, and nothing is dropped unasked."""

import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from coalora_lib.book.pairs import STAMP, difference, digest, settle, synchronise
from coalora_lib.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebook(tmp_path):
    """A committed chapter, with the outputs that are stored."""
    for suffix in (".md", ".ipynb"):
        shutil.copy((ROOT / "book" / "00_introduction").with_suffix(suffix), tmp_path / "c")
        (tmp_path / "c").rename(tmp_path / f"chapter{suffix}")
    return tmp_path / "chapter.ipynb"


def read(notebook):
    return nbformat.read(notebook, as_version=4)


def code(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def change(cells):
    code_cell = next(cell for cell in cells if cell.cell_type == "code")
    code_cell.source += "\nx = 3"


def retag(cells):
    next(cell for cell in cells if cell.cell_type == "code").metadata.tags.append("hide-cell")


def insert(cells):
    cells.insert(2, nbformat.v4.new_markdown_cell("Of my own."))


def delete(cells):
    del cells[1]


def caption(cells):
    figure = next(cell for cell in cells if "mystnb" in cell.metadata).metadata.mystnb.figure
    figure.caption = "Of my own.\n"


EDITS = [change, retag, insert, delete, caption]
each_edit = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)


def edited(notebook, edit):
    content = read(notebook)
    edit(content.cells)
    nbformat.write(content, notebook)
    return content


def edit_text(notebook):
    text = notebook.with_suffix(".md")
    text.write_text(text.read_text() + "\nA new end.\n")


def test_a_chapter_as_it_is_stays_as_it_is(notebook):
    before = notebook.read_bytes()
    settle(notebook)
    synchronise(notebook)
    assert difference(notebook) is None
    assert notebook.read_bytes() == before


def test_an_edit_of_the_text_is_taken_over_and_unchanged_cells_keep_their_outputs(notebook):
    before = read(notebook)
    edit_text(notebook)
    settle(notebook)
    synchronise(notebook)
    after = read(notebook)
    assert after.cells[-1].source.endswith("A new end.")
    assert [cell.outputs for cell in code(after)] == [cell.outputs for cell in code(before)]
    assert [cell.id for cell in code(after)] == [cell.id for cell in code(before)]
    assert after.metadata[STAMP] == digest(after) != before.metadata[STAMP]


@each_edit
def test_an_edit_of_the_notebook_is_refused_until_one_says_which_counts(edit, notebook):
    text = notebook.with_suffix(".md")
    before = text.read_text()
    content = edited(notebook, edit)
    with pytest.raises(ValueError, match=r"differ first at cell \d+, .*; the notebook was edited:"):
        settle(notebook)
    assert text.read_text() == before
    assert digest(read(notebook)) == digest(content)
    settle(notebook, "text")
    assert text.read_text() == before
    settle(notebook, "notebook")
    assert digest(jupytext.read(text)) == digest(content)
    removed = set(before.splitlines()) - set(text.read_text().splitlines())
    assert len(removed) <= 12  # the edited cell; the others keep their layout
    settle(notebook)


def test_where_both_were_edited_it_is_said(notebook):
    edited(notebook, change)
    edit_text(notebook)
    with pytest.raises(ValueError, match=r"the notebook was edited, and the \.md too: --take"):
        settle(notebook)


def test_what_was_not_edited_is_not_taken(notebook):
    edit_text(notebook)
    text = notebook.with_suffix(".md").read_text()
    settle(notebook, "notebook")
    assert notebook.with_suffix(".md").read_text() == text


def test_without_a_stamp_a_difference_is_refused(notebook):
    content = read(notebook)
    del content.metadata[STAMP]
    nbformat.write(content, notebook)
    settle(notebook)
    edit_text(notebook)
    with pytest.raises(ValueError, match="it is not known which was edited: --take notebook"):
        settle(notebook)


def test_an_empty_cell_at_the_end_is_no_edit(notebook):
    edited(notebook, lambda cells: cells.append(nbformat.v4.new_code_cell("")))
    settle(notebook)


def test_the_command_refuses_before_it_executes_anything(notebook):
    root = notebook.parent
    shutil.copy(notebook, root / "first.ipynb")
    shutil.copy(notebook.with_suffix(".md"), root / "first.md")
    (root / "_toc.yml").write_text("root: first.ipynb\nchapters:\n  - file: chapter.ipynb\n")
    edited(notebook, change)
    before = notebook.read_bytes()
    found = CliRunner().invoke(app, ["outputs", "--root", str(root)])
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 1
    assert f"{notebook} and its .md differ first at cell " in found.stderr
    assert notebook.read_bytes() == before
    assert not (root / "_build").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"---\njupytext: [\n---\n\nText.\n", "cannot be read: while parsing"),
        (b"```{code-cell}\n:tags: [x\n\n1\n```\n", "cannot be read: Code cell 0 at line 1"),
        (b"", "is empty"),
    ],
    ids=["not UTF-8", "header", "tags", "empty"],
)
def test_a_text_that_cannot_be_read_is_named_and_replaces_nothing(text, message, notebook):
    notebook.with_suffix(".md").write_bytes(text)
    before = notebook.read_bytes()
    for take in (None, "text"):
        with pytest.raises(ValueError, match=rf"chapter\.md {message}"):
            settle(notebook, take)
    with pytest.raises(ValueError, match=rf"chapter\.md {message}"):
        synchronise(notebook)
    assert notebook.read_bytes() == before
