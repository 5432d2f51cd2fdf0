"""What must hold for every chapter as it is committed, without executing it."""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from coalora_lib.book.execution import chapters
from coalora_lib.book.pairs import STAMP, digest
from coalora_lib.book.reacting import MARK
from coalora_lib.experiments.profiles import PUBLISHED

ROOT = Path(__file__).parents[2]
CHAPTERS = chapters(ROOT)
CHECKED = "nbval-check-output"
#: Fewest cells a chapter whose outputs nbval compares.
FEWEST_CHECKED = 5
FEWEST_EXERCISES = 4
#: A code cell of a chapter's .md, from its head to its end.
CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)
#: What the bar of a solution says.
SHOW = "code_prompt_show: Show the solution"
LONGEST_CELL = 25
#: Characters of a line of code.
WIDEST = 79

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def stored(chapter):
    return nbformat.read(ROOT / chapter, as_version=4)


def code_cells(chapter):
    return [cell for cell in stored(chapter).cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell's outputs say in words and numbers; pictures and their stand-ins left out.

    Also what a figure that reacts holds: a browser compares it in tests/pages.
    """
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        else:
            for kind, text in output.get("data", {}).items():
                drawn = kind == "image/png" or f'class="{MARK}"' in text
                if not drawn and not str(text).startswith("<Figure"):
                    yield str(text)


def test_every_notebook_is_in_the_contents_and_has_a_pair():
    book = ROOT / "book"
    listed = {chapter.stem for chapter in chapters(ROOT)}
    for suffix in (".md", ".ipynb"):
        there = {path.stem for path in book.glob(f"*{suffix}")}
        assert not there - listed, (
            f"{there - listed} of book/*{suffix} are not in _toc.yml: add - file: book/NAME.ipynb "
            "to its chapters; pages that are not executed belong into book/reference or book/about"
        )
        assert not listed - there, (
            f"_toc.yml names {listed - there}, and book/ has no {suffix} of it: `coalora new NAME` "
            "makes a pair, `coalora outputs NAME` a notebook from its .md"
        )
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    assert toc["root"].endswith(".ipynb"), "the root of _toc.yml must be a notebook"


@each_chapter
def test_pair_has_the_same_cells(chapter):
    def comparable(notebook):
        return [
            (cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", [])))
            for cell in notebook.cells
        ]

    text = jupytext.read((ROOT / chapter).with_suffix(".md"))
    notebook = stored(chapter)
    again = f"`coalora outputs {chapter.stem}` takes over the .md and executes it"
    assert comparable(text) == comparable(notebook), f".md and .ipynb have other cells: {again}"
    assert notebook.metadata.jupytext.formats == "ipynb,md:myst", (
        "the header must be that of the other chapters: `coalora new` writes it"
    )
    assert notebook.metadata.get(STAMP) == digest(notebook), f"the .ipynb was edited: {again}"


@each_chapter
def test_every_code_cell_was_executed_and_none_failed(chapter):
    for cell in code_cells(chapter):
        assert cell.execution_count is not None, (
            f"not executed: `coalora outputs {chapter.stem}` does it:\n{cell.source}"
        )
        assert all(output.output_type != "error" for output in cell.outputs), (
            f"this cell failed; mend it, then `coalora outputs {chapter.stem}`:\n{cell.source}"
        )


@each_chapter
def test_enough_outputs_are_compared(chapter):
    checked = [cell for cell in code_cells(chapter) if CHECKED in cell.metadata.get("tags", [])]
    found = sum(any(texts(cell)) for cell in checked)
    assert found >= FEWEST_CHECKED, (
        f"{found} cells with an output are tagged {CHECKED}, at least {FEWEST_CHECKED} must be: "
        "print what the text says, and tag the cell with :tags: [nbval-check-output]"
    )


@each_chapter
def test_every_number_in_an_output_is_compared(chapter):
    for cell in code_cells(chapter):
        if any(re.search(r"\d", text) for text in texts(cell)):
            assert CHECKED in cell.metadata.get("tags", []), (
                f"an output with a number must be compared: tag the cell {CHECKED}:\n{cell.source}"
            )


@each_chapter
def test_outputs_hold_no_errors_warnings_or_progress_bars(chapter):
    for cell in code_cells(chapter):
        for output in cell.outputs:
            assert output.get("name") != "stderr", (
                f"a warning is on the page; mend its cause or silence it in `begin`: {output.text}"
            )
        assert not any("it/s" in text or "%|" in text for text in texts(cell)), (
            f"a progress bar is on the page; call with progress=False or the like:\n{cell.source}"
        )


@each_chapter
def test_one_parameters_cell_of_plain_literals(chapter):
    tagged = [cell for cell in code_cells(chapter) if "parameters" in cell.metadata.get("tags", [])]
    rule = "one cell, tagged parameters, gives plain literals to profile, seed and maybe others"
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged parameters: {rule}"
    names = {}
    exec(tagged[0].source, {}, names)
    assert {"profile", "seed"} <= set(names), f"it gives {sorted(names)}: {rule}"
    assert all(isinstance(value, str | int | float) for value in names.values()), f"{names}: {rule}"
    for name, value in PUBLISHED.items():
        assert names.get(name, value) == value, (
            f"{name} is {names[name]!r}; the published page has {value!r}: set it back, and give "
            f"yours to papermill with -p {name} {names[name]}"
        )


@each_chapter
def test_cells_are_short_and_have_no_branches_on_the_profile(chapter):
    for cell in code_cells(chapter):
        lines = cell.source.splitlines()
        assert len(lines) <= LONGEST_CELL, (
            f"{len(lines)} lines, at most {LONGEST_CELL} may be: split the cell, or move what is "
            f"not the idea into coalora_lib:\n{cell.source}"
        )
        assert all(len(line) <= WIDEST for line in lines), (
            f"a line is longer than {WIDEST} characters, break it:\n{cell.source}"
        )
        assert "profile ==" not in cell.source, (
            "a cell must do the same in every profile: put the size into "
            f"coalora_lib/experiments/profiles.py:\n{cell.source}"
        )


@each_chapter
def test_a_table_is_the_last_of_its_cell(chapter):
    for cell in code_cells(chapter):
        for statement in ast.parse(cell.source).body[:-1]:
            assert not (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Call)
                and getattr(statement.value.func, "id", "") in ("table", "Markdown")
            ), f"only what ends a cell is shown: move it to the end:\n{cell.source}"


@each_chapter
def test_a_chapter_has_captioned_figures_and_provenance(chapter):
    text = (ROOT / chapter).with_suffix(".md").read_text()
    assert "caption: |" in text, (
        "no figure has a caption: give a cell mystnb: figure: caption, as other chapters do"
    )
    assert "print(provenance(run" in text, "the last cell must print(provenance(run))"


@each_chapter
def test_exercises_have_solutions_that_run(chapter):
    text = (ROOT / chapter).with_suffix(".md").read_text().partition("\n## Exercises\n")[2]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    _, *exercises = re.split(r"^\*\*\d+\.\*\* ", text, flags=re.MULTILINE)
    rule = (
        f"at least {FEWEST_EXERCISES} exercises stand below ## Exercises, each as **1.** Predict: "
        "(or Change:, or Explain:), with a solution that is executed and compared; "
        "book/templates/chapter.md has the form"
    )
    assert len(exercises) >= FEWEST_EXERCISES, f"{len(exercises)} exercises: {rule}"
    for number, exercise in enumerate(exercises, 1):
        assert exercise.startswith(("Predict:", "Change:", "Explain:")), f"{number}: {rule}"
        cells = [cell for cell in CELL.findall(exercise) if "hide-cell" in cell]
        assert all(CHECKED in cell and SHOW in cell for cell in cells), (
            f"{number}: a cell of a solution is tagged [hide-cell, {CHECKED}], and its mystnb has "
            f"{SHOW}: {rule}"
        )
        assert any("assert" in cell for cell in cells), (
            f"{number}: no cell of its solution has an assert that holds what it says: {rule}"
        )
        assert ":::{dropdown} Solution in words" in exercise, (
            f"{number}: the reason is missing, in a :::{{dropdown}} Solution in words: {rule}"
        )


@each_chapter
def test_what_may_warn_at_import_is_imported_after_the_library_which_silences_it(chapter):
    lines = (ROOT / chapter).with_suffix(".md").read_text().splitlines()
    ours = next(i for i, line in enumerate(lines) if line.startswith("from coalora_lib"))
    theirs = [
        i for i, line in enumerate(lines) if line.startswith(("from bitsandbytes", "from peft"))
    ]
    assert all(i > ours for i in theirs)
