"""Running chapters with papermill, storing their outputs, rendering the book."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import papermill
import yaml

from coalora_lib.files import atomic_file

#: The README's picture: a chapter, the name of one of its figures, and where it is kept.
README_PICTURE = ("01_quantization", "fig-error-bits", Path("book/figures/error_against_bits.png"))
#: Names the folder of the data, see :mod:`coalora_lib.tasks`; repeated, since that loads torch.
DATA_VARIABLE = "COALORA_DATA_DIR"


def listed(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` names, in its order, relative to the root."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [Path(toc["root"]), *(Path(chapter["file"]) for chapter in toc["chapters"])]


def chapters(root: Path) -> list[Path]:
    """The notebooks of the book, as :func:`listed`; a FileNotFoundError if one is missing."""
    found = listed(root)
    for chapter in found:
        if not (root / chapter).is_file():
            text = (root / chapter).with_suffix(".md")
            how = f"; `coalora outputs {chapter.stem}` makes it" if text.is_file() else ""
            raise FileNotFoundError(f"_toc.yml names {chapter}, which does not exist{how}")
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


def parameters_of(notebook: Path) -> list[str]:
    """The names in a chapter's cell tagged ``parameters``."""
    return list(papermill.inspect_notebook(str(notebook)))


def run_chapter(
    notebook: Path, output: Path, parameters: Mapping[str, Any], line: int = 0
) -> float:
    """Execute a chapter in its own folder and write it to ``output``; the seconds it took.

    One that fails is written up to the cell that failed, and papermill.PapermillExecutionError
    raised. ``line`` is the terminal's for the progress bar.
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
    jobs: int,
    report: Callable[[str], None],
) -> None:
    """Execute every chapter into a copy of the book's sources under ``target``, ``jobs`` at a time.

    Each chapter gets those of the parameters that it has, and its part of the processor's threads.

    Raises:
        papermill.PapermillExecutionError: a chapter failed; those not begun are left out.
    """
    copy_sources(root, target)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Processes: papermill's folder is the whole process's. Spawned: a fork would copy locks.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _limit_threads, (threads,)) as pool:
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
    ``_toc.yml`` names it. A chapter that fails, or is interrupted, keeps those it has. ``only`` and
    errors are as of :func:`wanted_chapters`, and :func:`run_chapter`'s.
    """
    for chapter in wanted_chapters(root, only):
        notebook = root / chapter
        _synchronise(notebook)
        with TemporaryDirectory() as folder:
            executed = Path(folder) / notebook.name
            seconds = run_chapter(notebook, executed, {})
            stored = nbformat.read(executed, as_version=4)
        for part in (stored, *stored.cells):  # what machines write and readers do not need
            for name in ("execution", "papermill"):
                part.metadata.pop(name, None)
        stored.metadata.get("language_info", {}).pop("version", None)
        with atomic_file(notebook) as file:
            nbformat.write(stored, file)
        if chapter.stem == README_PICTURE[0]:
            (root / README_PICTURE[2]).write_bytes(_picture_of(stored, README_PICTURE[1]))
        report(f"{chapter.stem:<32}{seconds:6.0f} s")


def _synchronise(notebook: Path) -> None:
    """Bring a notebook's cells up to its .md, or make it; unchanged cells keep outputs and ids."""
    command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--update"]
    subprocess.run([*command, notebook.with_suffix(".md")], check=True, capture_output=True)


def _picture_of(notebook: nbformat.NotebookNode, name: str) -> bytes:
    """The PNG of a captioned figure."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode(cell.outputs[-1].data["image/png"])
    raise KeyError(f"there is no figure {name!r} in the notebook")


def copy_sources(root: Path, target: Path) -> None:
    """Copy what jupyter-book reads: configuration, contents, chapters, figures."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(root / name, target / name)
    unwanted = shutil.ignore_patterns("*.md", ".ipynb_checkpoints", "results")
    shutil.copytree(root / "book", target / "book", ignore=unwanted)


def render(source: Path, output: Path, strict: bool) -> Path:
    """Build the HTML from clean into ``_build/html`` under ``output``; the first page.

    ``source`` is what :func:`copy_sources` made. If the build fails, with ``strict`` at a warning
    of Sphinx, subprocess.CalledProcessError is raised.
    """
    shutil.rmtree(output / "_build" / "html", ignore_errors=True)
    shutil.rmtree(output / "_build" / ".doctrees", ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(path) for path in (program, "build", source, "--path-output", output)]
    flags = ["-W", "--keep-going"] if strict else ["--quiet"]
    subprocess.run([*command, *flags], check=True)
    return output / "_build" / "html" / "index.html"
