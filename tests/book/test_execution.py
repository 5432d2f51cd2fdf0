"""The chapters' way through papermill, on small notebooks made here."""

import jupytext
import nbformat
import pytest
from papermill import PapermillExecutionError
from typer.testing import CliRunner

from coalora_lib.book.execution import chapters, parameters_of, refresh_outputs, run_chapter
from coalora_lib.cli import app

BEGIN = """from coalora_lib.book import begin
run = begin(globals(), "profile", "seed")"""


@pytest.fixture
def notebook(tmp_path):
    cell = nbformat.v4.new_code_cell(
        "profile = 'quick'\nseed = 0", metadata={"tags": ["parameters"]}
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = nbformat.v4.new_notebook(
        cells=[cell, nbformat.v4.new_code_cell("print(profile, seed)")], metadata=kernel
    )
    path = tmp_path / "chapter.ipynb"
    nbformat.write(made, path)
    return path


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        o.text for cell in cells if cell.cell_type == "code" for o in cell.outputs if "text" in o
    )


def test_parameters_reach_a_chapter(notebook, tmp_path):
    assert parameters_of(notebook) == ["profile", "seed"]
    run_chapter(notebook, tmp_path / "out" / "done.ipynb", {"seed": 7})
    assert printed(tmp_path / "out" / "done.ipynb") == "quick 7\n"


def test_a_relative_folder_of_data_is_the_same_in_a_chapter(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COALORA_DATA_DIR", "glue")
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].source = "import os\nprint(os.environ['COALORA_DATA_DIR'])"
    (tmp_path / "book").mkdir()
    nbformat.write(content, tmp_path / "book" / "chapter.ipynb")
    run_chapter(tmp_path / "book" / "chapter.ipynb", tmp_path / "out.ipynb", {})
    assert printed(tmp_path / "out.ipynb") == f"{tmp_path / 'glue'}\n"


def test_unknown_parameters_stop_a_chapter_and_its_notebook_is_kept(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(nbformat.v4.new_code_cell(BEGIN))
    nbformat.write(content, notebook)
    with pytest.raises(PapermillExecutionError, match="no parameter 'sede'; allowed: profile, s"):
        run_chapter(notebook, tmp_path / "out.ipynb", {"sede": 7})
    assert printed(tmp_path / "out.ipynb") == "quick 0\n"


def test_a_chapter_gets_new_outputs_and_one_that_fails_keeps_its_old_ones(notebook, tmp_path):
    (tmp_path / "_toc.yml").write_text("root: chapter.ipynb\nchapters: []\n")
    text = notebook.with_suffix(".md")
    jupytext.write(nbformat.read(notebook, as_version=4), text, fmt="md:myst")
    refresh_outputs(tmp_path, report=lambda line: None)
    assert printed(notebook) == "quick 0\n"
    assert "papermill" not in nbformat.read(notebook, as_version=4).metadata
    text.write_text(text.read_text() + "\n```{code-cell} ipython3\n1 / 0\n```\n")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        refresh_outputs(tmp_path, report=lambda line: None)
    assert printed(notebook) == "quick 0\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "_toc.yml",
        "chapter.ipynb",
        "chapter.md",
    ]


def test_contents_must_exist(tmp_path):
    (tmp_path / "_toc.yml").write_text("root: book/a.ipynb\nchapters:\n  - file: book/b.ipynb\n")
    with pytest.raises(FileNotFoundError, match=r"_toc.yml names book/a.ipynb"):
        chapters(tmp_path)


def test_a_new_chapter_is_made_from_its_md_once_the_contents_name_it(notebook, tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    text = folder / "07_new.md"
    jupytext.write(nbformat.read(notebook, as_version=4), text, fmt="md:myst")
    contents = tmp_path / "_toc.yml"
    contents.write_text("root: chapter.ipynb\nchapters: []\n")
    command = ["outputs", "07", "--root", str(tmp_path)]
    refused = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert refused.exit_code == 2
    line = "- file: book/07_new.ipynb"
    assert f"book/07_new.md is not in _toc.yml; add this to its chapters: {line}" in refused.output
    contents.write_text(f"root: chapter.ipynb\nchapters:\n  {line}\n")
    with pytest.raises(FileNotFoundError, match="`coalora outputs 07_new` makes it"):
        chapters(tmp_path)
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert printed(folder / "07_new.ipynb") == "quick 0\n"
    text.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no book/07_new\.md to make it"):
        refresh_outputs(tmp_path, only=["07"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["book", "--profile", "quik"], "allowed: quick, standard, paper"),
        (["book", "--dataset", "imdb"], "allowed: embedded, sst2"),
        (["book", "--seed", "-1"], "greater than or equal to 0"),
        (["outputs", "9"], "no chapter begins with '9'; there are: 00_introduction"),
        (
            ["search-ablation", "--arm", "climb"],
            "allowed: search-frozen, search-walk, search-walk-all-kept",
        ),
        (["landscape", "--strategy", "climb"], "allowed: walk, random, nsga2"),
        (["landscape", "--layers", "3"], "layers=3 must be an even number"),
    ],
)
def test_the_command_line_lists_what_is_allowed(arguments, message):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    "command", ["book", "outputs", "options", "search-ablation", "landscape", "render"]
)
def test_help_has_an_example(command):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
