"""The chapters' way through papermill, on small notebooks made here."""

import re
import signal
import subprocess
import sys
import time

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from coalora_lib.book.execution import (
    chapters,
    copy_sources,
    parameters_of,
    refresh_outputs,
    render,
    run_chapter,
)
from coalora_lib.book.pairs import synchronise
from coalora_lib.cli import app
from coalora_lib.files import try_lock

#: What `begin` reads, without the library, which takes long to import.
BEGIN = """for cell in In:
    if cell.startswith("# Parameters") and "sede = 7" in cell:
        raise ValueError("no parameter 'sede'")"""


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
    assert parameters_of(notebook) == {"profile": "quick", "seed": 0}
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
    with pytest.raises(RuntimeError, match=r"cell \[4\] .* ValueError: no parameter 'sede'; exe"):
        run_chapter(notebook, tmp_path / "out.ipynb", {"sede": 7})
    assert printed(tmp_path / "out.ipynb") == "quick 0\n"


def test_a_chapter_gets_new_outputs_and_one_that_fails_keeps_its_old_ones(notebook, tmp_path):
    (tmp_path / "_toc.yml").write_text("root: chapter.ipynb\nchapters: []\n")
    text = notebook.with_suffix(".md")
    jupytext.write(nbformat.read(notebook, as_version=4), text, fmt="md:myst")
    refresh_outputs(tmp_path, report=lambda line: None)
    assert printed(notebook) == "quick 0\n"
    metadata = nbformat.read(notebook, as_version=4).metadata
    assert set(metadata.papermill) == {"duration", "end_time"}
    synchronise(notebook)  # an edit of the text alone keeps them
    assert nbformat.read(notebook, as_version=4).metadata.papermill == metadata.papermill
    text.write_text(text.read_text() + "\n```{code-cell} ipython3\n1 / 0\n```\n")
    kept = tmp_path / "_build" / "outputs" / "chapter.ipynb"
    failure = (
        f"{notebook}, cell [3] '1 / 0': ZeroDivisionError: division by zero; "
        f"executed up to there: {kept}"
    )
    with pytest.raises(RuntimeError, match=re.escape(failure)):
        refresh_outputs(tmp_path, report=lambda line: None)
    assert printed(kept) == "quick 0\n"
    assert printed(notebook) == "quick 0\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "_toc.yml",
        "chapter.ipynb",
        "chapter.md",
    ]


@pytest.fixture
def project(notebook, tmp_path):
    """A root page, and a chapter whose second cell a test changes; both as `outputs` makes them."""
    folder = tmp_path / "book"
    folder.mkdir()
    for name in ("a", "b"):
        content = nbformat.read(notebook, as_version=4)
        content.cells.insert(0, nbformat.v4.new_markdown_cell(f"# Chapter {name}"))
        jupytext.write(content, folder / f"{name}.md", fmt="md:myst")
        synchronise(folder / f"{name}.ipynb")
    contents = "format: jb-book\nroot: book/a.ipynb\nchapters:\n  - file: book/b.ipynb\n"
    (tmp_path / "_toc.yml").write_text(contents)
    (tmp_path / "_config.yml").write_text("title: T\nexecute:\n  execute_notebooks: 'off'\n")
    notebook.unlink()
    return tmp_path


def command(project, *words):
    """Status and stderr's lines of a command in a process of its own."""
    line = [sys.executable, "-m", "coalora_lib", *words, "--root", str(project)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()


def test_a_kernel_that_dies_is_one_line_that_names_the_chapter(project):
    text = project / "book" / "b.md"
    text.write_text(text.read_text().replace("print(profile, seed)", "import os\nos._exit(1)"))
    status, lines = command(project, "outputs", "b")
    assert status == 2
    kept = project / "_build" / "outputs" / "b.ipynb"
    chapter, end = project / "book" / "b.ipynb", f"executed up to there: {kept}"
    assert len(lines) == 1
    lines[0] = lines[0].replace("cell [2]", "cell")  # the number may die with the kernel
    assert lines == [f"coalora: {chapter}, cell 'import os': Kernel died; {end}"]


def test_an_interrupted_command_ends_its_kernel_and_says_so(project):
    text, begun = project / "book" / "b.md", project / "begun"
    wait = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(120)"
    text.write_text(text.read_text().replace("print(profile, seed)", wait))
    line = [sys.executable, "-m", "coalora_lib", "outputs", "b", "--root", str(project)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        started = time.monotonic()
        while not begun.exists():
            assert time.monotonic() < started + 60
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "coalora: interrupted"


@pytest.mark.parametrize("name", ["book", "outputs", "render"])
def test_outside_the_project_a_command_says_so_and_writes_nothing(name, tmp_path):
    found = CliRunner().invoke(app, [name, "--root", str(tmp_path)])
    assert found.exit_code == 2
    message = (
        f"{tmp_path} is not the project's folder: it has no _toc.yml; give the folder with --root"
    )
    assert found.stderr == f"coalora: {message}\n"
    assert not list(tmp_path.iterdir())


def test_two_books_of_the_same_parameters_are_not_made_at_once(project):
    folder = project / "_build" / "book" / "quick-embedded-seed3"
    folder.mkdir(parents=True)
    with try_lock(folder / ".lock"):
        found = CliRunner().invoke(app, ["book", "--seed", "3", "--root", str(project)])
    assert found.exit_code == 2
    assert f"{folder} is being made by another `coalora book`" in found.stderr


@pytest.mark.parametrize(
    ("broken", "content", "message"),
    [
        ("book/b.ipynb", None, "b.ipynb, which does not exist; `coalora outputs b` makes it"),
        ("book/b.ipynb", "", "b.ipynb is not a notebook: Notebook does not appear to be JSON"),
        ("book/b.ipynb", "{}", "b.ipynb is not a notebook"),
        ("book/b.ipynb", "[1]", "b.ipynb is not a notebook"),
        ("_toc.yml", "chapters: [", "_toc.yml must name a root, and chapters with a file each"),
        ("_toc.yml", "root: book/a.ipynb", "_toc.yml must name a root"),
        ("_toc.yml", "- a", "_toc.yml must name a root"),
    ],
    ids=["missing", "empty", "no notebook", "a list", "no YAML", "no chapters", "no mapping"],
)
@pytest.mark.parametrize("name", ["book", "render"])
def test_a_book_with_a_broken_part_is_refused_and_the_former_page_stays(
    name, broken, content, message, project
):
    page = project / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("former")
    (project / broken).unlink()
    if content is not None:
        (project / broken).write_text(content)
    found = CliRunner().invoke(app, [name, "--root", str(project)])
    assert found.exit_code == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert page.read_text() == "former"


@pytest.mark.slow
def test_a_page_is_replaced_whole_and_only_if_the_build_ends_well(project):
    source, page = project / "_build" / "committed", project / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("former")
    copy_sources(project, source)
    (source / "_config.yml").write_text("title: [")
    with pytest.raises(RuntimeError, match="jupyter-book ended with status 1"):
        render(source, page.parent, strict=False)
    assert page.read_text() == "former"
    copy_sources(project, source)
    assert render(source, page.parent, strict=False) == page
    assert page.read_text() != "former"
    assert "Chapter b" in (page.parent / "book" / "b.html").read_text()
    assert not (project / "_build" / "html-new").exists()


def test_a_book_whose_text_is_newer_than_its_notebooks_says_so(project):
    text = project / "book" / "b.md"
    text.write_text(text.read_text() + "\nA new end.\n")
    (project / "_config.yml").unlink()  # it ends there
    found = CliRunner().invoke(app, ["render", "--root", str(project)])
    warning = "b.ipynb and its .md differ first at cell 4, 'A new end.'; `coalora outputs b` settle"
    assert warning in found.stderr


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
        (["book", "--profile", "quik"], "did you mean quick? allowed: quick, standard, paper"),
        (["book", "--dataset", "imdb"], "allowed: embedded, sst2"),
        (["experiments", "--method", "coa-lorra"], "did you mean coa-lora? allowed: coa-lora, "),
        (["scale", "quick"], "allowed: paper, paper-qwen2.5-1.5b"),
        (["outputs", "--take", "md"], "allowed: text, notebook"),
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
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
