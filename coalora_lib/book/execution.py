"""Running chapters with papermill, and how the stored outputs are made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
import papermill
import yaml

from coalora_lib.book.rendering import README_PICTURE, copy_sources, picture_of
from coalora_lib.files import atomic_file

#: Notebook metadata that machines write and readers do not need.
EXECUTION_METADATA = ("execution", "papermill")
#: Names the folder of the data, see :mod:`coalora_lib.tasks`; repeated, since that loads torch.
DATA_VARIABLE = "COALORA_DATA_DIR"


def listed(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` names, in its order, relative to the root.

    Raises:
        FileNotFoundError: there is no ``_toc.yml``.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [Path(toc["root"]), *(Path(chapter["file"]) for chapter in toc["chapters"])]


def chapters(root: Path) -> list[Path]:
    """The notebooks of the book, as :func:`listed`; all of them exist.

    Raises:
        FileNotFoundError: there is no ``_toc.yml``, or a notebook it names is missing.
    """
    found = listed(root)
    for chapter in found:
        if not (root / chapter).is_file():
            text = chapter.with_suffix(".md")
            how = f"; `coalora outputs {chapter.stem}` makes it" if (root / text).is_file() else ""
            raise FileNotFoundError(f"_toc.yml names {chapter}, which does not exist{how}")
    return found


def wanted_chapters(root: Path, only: Sequence[str] = ()) -> list[Path]:
    """Those of :func:`listed` whose names begin with one of ``only``; all if it is empty.

    Raises:
        FileNotFoundError: a wanted chapter has no .md.
        ValueError: no chapter begins so; a .md that does, and is not in ``_toc.yml``, is named
            with the line to add.
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


def parameters_of(notebook: Path) -> list[str]:
    """The names in a chapter's cell tagged ``parameters``."""
    return list(papermill.inspect_notebook(str(notebook)))


def run_chapter(
    notebook: Path, output: Path, parameters: Mapping[str, Any], line: int = 0
) -> float:
    """Execute one chapter, in its own folder, and write it with its outputs.

    A chapter that fails is written too, up to the cell that failed.

    Args:
        notebook: the chapter.
        output: where the executed notebook goes.
        parameters: for its cell tagged ``parameters``.
        line: of the terminal that its progress bar takes.

    Returns:
        Wall time in seconds.

    Raises:
        papermill.PapermillExecutionError: a cell raised.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if data := os.environ.get(DATA_VARIABLE):  # the kernel has another working folder
        os.environ[DATA_VARIABLE] = os.path.abspath(os.path.expanduser(data))
    started = time.perf_counter()
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters=dict(parameters),
        cwd=str(notebook.parent),
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only: a warning at each start says nothing
        progress_bar=sys.stderr.isatty() and {"desc": notebook.stem, "position": line},
    )
    return time.perf_counter() - started


def execute_book(
    root: Path,
    target: Path,
    parameters: Mapping[str, Any],
    jobs: int = 1,
    report: Callable[[str], None] = print,
) -> None:
    """Execute every chapter into a copy of the book's sources under ``target``.

    Args:
        root: the project's folder.
        target: emptied first, then holds ``_config.yml``, ``_toc.yml`` and ``book/``.
        parameters: each chapter gets those of them that it has.
        jobs: chapters at a time; each gets its part of the processor's threads.
        report: called with one line per chapter.

    Raises:
        papermill.PapermillExecutionError: a chapter failed; those not begun are left out.
    """
    copy_sources(root, target)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Processes: papermill's folder is the whole process's. Spawned: a fork would copy locks.
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_limit_threads, initargs=(threads,)
    ) as pool:
        running = {}
        wanted = [(chapter, parameters_of(root / chapter)) for chapter in chapters(root)]
        # Chapters on data train models, the later the longer: begun first, they leave no core
        # idle at the end.
        order = sorted(enumerate(wanted), key=lambda item: ("dataset" in item[1][1], item[0]))
        for line, (chapter, names) in reversed(order):
            given = {name: value for name, value in parameters.items() if name in names}
            job = pool.submit(run_chapter, root / chapter, target / chapter, given, line)
            running[job] = chapter
        try:
            for job in as_completed(running):
                report(f"{running[job].stem:<32}{job.result():6.0f} s")
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise


def _limit_threads(count: int) -> None:
    """Let the kernels that this process starts use so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(count)


def refresh_outputs(
    root: Path, report: Callable[[str], None] = print, only: Sequence[str] = ()
) -> None:
    """Take over the text of each chapter's .md, execute it with its own parameters, store it.

    This is how the committed outputs are made; a new chapter's notebook is made from its .md, once
    ``_toc.yml`` names it. A chapter that fails, or is interrupted, keeps those
    it has.

    Args:
        root: the project's folder.
        report: is told of each chapter.
        only: how the names of the wanted chapters begin ("04"); all if empty.

    Raises:
        FileNotFoundError, ValueError: as :func:`wanted_chapters`.
        papermill.PapermillExecutionError: a cell raised.
    """
    for chapter in wanted_chapters(root, only):
        notebook = root / chapter
        synchronise(notebook)
        with TemporaryDirectory() as folder:
            executed = Path(folder) / notebook.name
            seconds = run_chapter(notebook, executed, {})
            stored = nbformat.read(executed, as_version=4)
        for part in (stored, *stored.cells):
            for name in EXECUTION_METADATA:
                part.metadata.pop(name, None)
        stored.metadata.get("language_info", {}).pop("version", None)
        with atomic_file(notebook) as file:
            nbformat.write(stored, file)
        if chapter.stem == README_PICTURE[0]:
            (root / README_PICTURE[2]).write_bytes(picture_of(stored, README_PICTURE[1]))
        report(f"{chapter.stem:<32}{seconds:6.0f} s")


def synchronise(notebook: Path) -> None:
    """Bring a notebook's cells up to its paired .md, keeping outputs and ids of unchanged cells.

    A notebook that is not there is made.
    """
    subprocess.run(
        [
            sys.executable,
            "-m",
            "jupytext",
            "--to",
            "ipynb",
            "--update",
            notebook.with_suffix(".md"),
        ],
        check=True,
        capture_output=True,
    )


def paired_text(notebook: Path) -> nbformat.NotebookNode:
    """The notebook that a chapter's .md stands for, without outputs."""
    return jupytext.read(notebook.with_suffix(".md"))
