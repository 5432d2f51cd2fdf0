"""Rendering the book with jupyter-book, and the picture that the README takes from it."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

#: The README's picture: a chapter, the name of one of its figures, and where it is kept.
README_PICTURE = ("01_quantization", "fig-error-bits", Path("book/figures/error_against_bits.png"))


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

    Nothing is executed. ``source`` is what :func:`copy_sources` made; with ``strict`` a warning of
    Sphinx is an error.

    Raises:
        subprocess.CalledProcessError: the build failed; its output is on the terminal.
    """
    shutil.rmtree(output / "_build" / "html", ignore_errors=True)
    shutil.rmtree(output / "_build" / ".doctrees", ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(path) for path in (program, "build", source, "--path-output", output)]
    flags = ["-W", "--keep-going"] if strict else ["--quiet"]
    subprocess.run([*command, *flags], check=True)
    return output / "_build" / "html" / "index.html"


def picture_of(notebook: nbformat.NotebookNode, name: str) -> bytes:
    """The PNG of a captioned figure.

    Raises:
        KeyError: the notebook has no such figure.
    """
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode(cell.outputs[-1].data["image/png"])
    raise KeyError(f"there is no figure {name!r} in the notebook")
