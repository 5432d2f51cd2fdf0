"""What must hold for every chapter as it is committed, without executing it."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from coalora_lib.book.execution import chapters
from coalora_lib.experiments.profiles import PUBLISHED

ROOT = Path(__file__).parents[2]
CHAPTERS = chapters(ROOT)
CHECKED = "nbval-check-output"
#: Fewest cells a chapter whose outputs nbval compares.
FEWEST_CHECKED = 5
LONGEST_CELL = 25

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def stored(chapter):
    return nbformat.read(ROOT / chapter, as_version=4)


def code_cells(chapter):
    return [cell for cell in stored(chapter).cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell's outputs say in words and numbers; pictures and their stand-ins left out."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        else:
            for kind, text in output.get("data", {}).items():
                if kind != "image/png" and not str(text).startswith("<Figure"):
                    yield str(text)


def test_every_notebook_is_in_the_contents_and_has_a_pair():
    book = ROOT / "book"
    assert {ROOT / chapter for chapter in CHAPTERS} == set(book.glob("*.ipynb"))
    assert {path.stem for path in book.glob("*.md")} == {chapter.stem for chapter in CHAPTERS}
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    assert toc["root"].endswith(".ipynb")


@each_chapter
def test_pair_has_the_same_cells(chapter):
    def comparable(notebook):
        return [
            (cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", [])))
            for cell in notebook.cells
        ]

    text = jupytext.read((ROOT / chapter).with_suffix(".md"))
    notebook = stored(chapter)
    assert comparable(text) == comparable(notebook), "run `make outputs` after an edit of a .md"
    assert notebook.metadata.jupytext.formats == "ipynb,md:myst"


@each_chapter
def test_every_code_cell_was_executed_and_none_failed(chapter):
    for cell in code_cells(chapter):
        assert cell.execution_count is not None, cell.source
        assert all(output.output_type != "error" for output in cell.outputs), cell.source


@each_chapter
def test_enough_outputs_are_compared(chapter):
    checked = [cell for cell in code_cells(chapter) if CHECKED in cell.metadata.get("tags", [])]
    assert sum(any(texts(cell)) for cell in checked) >= FEWEST_CHECKED


@each_chapter
def test_every_number_in_an_output_is_compared(chapter):
    for cell in code_cells(chapter):
        if any(re.search(r"\d", text) for text in texts(cell)):
            assert CHECKED in cell.metadata.get("tags", []), cell.source


@each_chapter
def test_outputs_hold_no_errors_warnings_or_progress_bars(chapter):
    for cell in code_cells(chapter):
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text
        assert not any("it/s" in text or "%|" in text for text in texts(cell)), cell.source


@each_chapter
def test_one_parameters_cell_of_plain_literals(chapter):
    tagged = [cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {}
    exec(tagged[0].source, {}, names)
    assert {"profile", "seed"} <= set(names)
    assert all(isinstance(value, str | int | float) for value in names.values())
    assert all(names[name] == value for name, value in PUBLISHED.items() if name in names)


@each_chapter
def test_cells_are_short_and_have_no_branches_on_the_profile(chapter):
    for cell in code_cells(chapter):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
        assert all(len(line) <= 79 for line in cell.source.splitlines()), cell.source
        assert "profile ==" not in cell.source


@each_chapter
def test_a_chapter_has_captioned_figures_exercises_and_provenance(chapter):
    text = (ROOT / chapter).with_suffix(".md").read_text()
    assert text.count("caption: |") >= 1
    assert text.count("```{dropdown} Solution") + text.count(":::{dropdown} Solution") >= 2
    assert "print(provenance(run" in text
