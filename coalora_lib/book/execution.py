"""Running chapters with papermill, storing their outputs, rendering the book."""

from __future__ import annotations

import ast
import base64
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from coalora_lib.book.pairs import read_notebook, settle, synchronise
from coalora_lib.files import atomic_file, atomic_folder

#: The README's picture: a chapter, the name of one of its figures, and where it is kept.
README_PICTURE = ("01_quantization", "fig-error-bits", Path("book/figures/error_against_bits.png"))
#: What is kept of papermill's metadata, for the page on executions: seconds, and a date.
KEPT_TIMES = ("duration", "end_time")
#: Names the folder of the data, see :mod:`coalora_lib.tasks`; repeated, since that loads torch.
DATA_VARIABLE = "COALORA_DATA_DIR"


def listed(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` names, in its order, relative to the root; no other pages.

    Raises:
        FileNotFoundError: there is no ``_toc.yml``.
        ValueError: it is not a table of contents.
    """
    contents = root / "_toc.yml"
    if not contents.is_file():
        raise FileNotFoundError(
            f"{root.resolve()} is not the project's folder: it has no _toc.yml; "
            "give the folder with --root"
        )
    try:
        toc = yaml.safe_load(contents.read_text())
        parts = toc.get("parts", [toc])
        files = [toc["root"], *(each["file"] for part in parts for each in part["chapters"])]
        return [Path(file) for file in files if file.endswith(".ipynb")]
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{contents} must name a root, and chapters with a file each: {error!r:.200}"
        ) from None


def chapters(root: Path) -> list[Path]:
    """The notebooks of the book, as :func:`listed`.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is not a notebook.
    """
    found = listed(root)
    for chapter in found:
        if not (root / chapter).is_file():
            text = (root / chapter).with_suffix(".md")
            how = f"; `coalora outputs {chapter.stem}` makes it" if text.is_file() else ""
            raise FileNotFoundError(f"_toc.yml names {chapter}, which does not exist{how}")
        read_notebook(root / chapter)
    return found


def wanted_chapters(root: Path, only: Sequence[str] = ()) -> list[Path]:
    """Those of :func:`listed` whose names begin with one of ``only``; all if it is empty.

    Raises:
        FileNotFoundError: a wanted chapter has no .md.
        ValueError: no chapter begins so, or only a .md that is not in ``_toc.yml``.
    """
    contents = listed(root)
    for name in only:
        if any(chapter.stem.startswith(name) for chapter in contents):
            continue
        for text in sorted((root / "book").glob(f"{name}*.md")):
            entry = text.relative_to(root).with_suffix(".ipynb").as_posix()
            raise ValueError(
                f"book/{text.name} is not in _toc.yml; add this to its chapters: - file: {entry}"
            )
        names = ", ".join(chapter.stem for chapter in contents)
        raise ValueError(f"no chapter begins with {name!r}; there are: {names}")
    wanted = [c for c in contents if not only or c.stem.startswith(tuple(only))]
    for chapter in wanted:
        text = chapter.with_suffix(".md")
        if not (root / text).is_file():
            raise FileNotFoundError(f"_toc.yml names {chapter}, and there is no {text} to make it")
    return wanted


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and values in a chapter's cell tagged ``parameters``, which are plain literals."""
    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(each["default"]) for name, each in found.items()}


def run_chapter(
    notebook: Path, output: Path, parameters: Mapping[str, Any], bar: bool = True
) -> float:
    """Execute a chapter in its own folder and write it to ``output``; the seconds it took.

    On a terminal a progress bar is shown, unless ``bar`` is False.

    Raises:
        RuntimeError: it failed, or its kernel died: chapter, cell, error, in one line. ``output``
            holds it up to there.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if data := os.environ.get(DATA_VARIABLE):  # the kernel has another working folder
        os.environ[DATA_VARIABLE] = os.path.abspath(os.path.expanduser(data))
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # errors are raised as well
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=dict(parameters),
            cwd=str(notebook.parent),
            kernel_name="python3",
            # A kernel that is told to stop calls that an error. What fails in a cell is raised.
            extra_arguments=["--log-level=50"],
            progress_bar=bar and sys.stderr.isatty() and {"desc": notebook.stem},
        )
    except Exception as error:  # of papermill, nbclient, the kernel: none names the chapter
        raise RuntimeError(f"{notebook}{_failure(output, error)}") from error
    return time.perf_counter() - started


def _failure(output: Path, error: Exception) -> str:
    """Which cell failed and how, in one line."""
    said = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else error
    text = " ".join(str(said).split()) or type(error).__name__
    try:
        cells = nbformat.read(output, as_version=4).cells
    except (OSError, ValueError):  # it was never begun
        return f": {text}"
    begun = [
        cell
        for cell in cells
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")
    ]
    if not begun:
        return f": {text}"
    last = begun[-1]
    number = "" if last.execution_count is None else f" [{last.execution_count}]"
    line = last.source.strip().partition("\n")[0]
    return f", cell{number} {line!r}: {text}; executed up to there: {output}"


def refresh_outputs(
    root: Path,
    report: Callable[[str], None] = print,
    only: Sequence[str] = (),
    take: str | None = None,
) -> None:
    """Take over the text of each chapter's .md, execute it with its own parameters, store it.

    This is how the committed outputs are made; a new chapter's notebook is made from its .md, once
    ``_toc.yml`` names it. A chapter that fails, or is interrupted, keeps those it has. ``only``,
    ``take`` and errors are as of :func:`wanted_chapters`, :func:`~coalora_lib.book.pairs.settle`
    (before any is executed) and :func:`run_chapter`.
    """
    wanted = wanted_chapters(root, only)
    for chapter in wanted:
        settle(root / chapter, take)
    for chapter in wanted:
        notebook = root / chapter
        synchronise(notebook)
        executed = root / "_build" / "outputs" / notebook.name
        seconds = run_chapter(notebook, executed, {})
        stored = nbformat.read(executed, as_version=4)
        times = stored.metadata["papermill"]
        for part in (stored, *stored.cells):  # what machines write and readers do not need
            for name in ("execution", "papermill"):
                part.metadata.pop(name, None)
        stored.metadata["papermill"] = {name: times[name] for name in KEPT_TIMES}
        stored.metadata.get("language_info", {}).pop("version", None)
        with atomic_file(notebook) as file:
            nbformat.write(stored, file)
        if chapter.stem == README_PICTURE[0]:
            (root / README_PICTURE[2]).write_bytes(_picture_of(stored, README_PICTURE[1]))
        report(f"{chapter.stem:<32}{seconds:6.0f} s")


def _picture_of(notebook: nbformat.NotebookNode, name: str) -> bytes:
    """The PNG of a captioned figure."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode(cell.outputs[-1].data["image/png"])
    raise KeyError(f"there is no figure {name!r} in the notebook")


def copy_sources(root: Path, target: Path) -> None:
    """Copy what jupyter-book reads: configuration, contents, chapters, other pages, figures.

    It would leave out a chapter that is missing or broken: errors are as of :func:`chapters`.
    """
    chapters(root)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "CITATION.cff"):
        if name != "CITATION.cff" or (root / name).is_file():
            shutil.copy(root / name, target / name)

    def unwanted(folder: str, names: list[str]) -> set[str]:
        pairs = {name for name in names if Path(name).with_suffix(".ipynb").name in names}
        texts = {name for name in pairs if name.endswith(".md")}  # the notebook is the page
        return texts | ({".ipynb_checkpoints", "results"} & set(names))

    shutil.copytree(root / "book", target / "book", ignore=unwanted)


def take_over(executed: Path, source: Path) -> None:
    """Copy an executed chapter to where it is rendered.

    papermill keeps the chapter's own cell of parameters and puts another below it: on the page
    only the one that the chapter was run with is shown.
    """
    notebook = nbformat.read(executed, as_version=4)
    tags = [cell.metadata.setdefault("tags", []) for cell in notebook.cells]
    if any("injected-parameters" in each for each in tags):
        next(each for each in tags if "parameters" in each).append("remove-cell")
    with atomic_file(source) as file:
        nbformat.write(notebook, file)


def build(source: Path, into: Path, builder: str, *flags: str) -> Path:
    """Let jupyter-book build copied sources from clean; the folder with what a builder made.

    Raises:
        RuntimeError: the build failed.
    """
    shutil.rmtree(into, ignore_errors=True)
    program = (sys.executable, "-m", "coalora_lib.book.building")
    words = (*program, "build", source, "--builder", builder, "--path-output", into, *flags)
    if status := subprocess.run(list(map(str, words)), check=False).returncode:
        raise RuntimeError(f"jupyter-book ended with status {status}")
    return into / "_build" / builder


def render(source: Path, page: Path, strict: bool) -> Path:
    """Build the HTML from clean into the folder ``page``; its first page.

    Raises:
        RuntimeError: the build failed, with ``strict`` at a warning of Sphinx; the former page is
            as it was.
    """
    flags = ("-W", "--keep-going") if strict else ("--quiet",)
    made = page.with_name(f"{page.name}-new")
    try:
        built = build(source, made, "html", *flags)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; {page} is as it was") from None
    with atomic_folder(page, "index.html", None) as folder:
        shutil.copytree(built, folder, dirs_exist_ok=True)
    shutil.rmtree(made)
    return page / "index.html"
