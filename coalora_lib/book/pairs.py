"""The two files of a chapter: the .md, which one edits, and the .ipynb with the outputs.

A notebook is stamped with a digest of the text that it was made from. As long as its cells fit the
stamp, nobody edited the notebook, and what differs from the .md is an edit of the .md.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbformat import NotebookNode

from coalora_lib.files import atomic_file

#: Of a notebook's metadata; the .md does not hold it.
STAMP = "coalora_text_sha256"
#: What the .md holds of a cell's metadata.
KEPT = ("mystnb", "tags")
_FORMAT = "md:myst"


def read_text(path: Path) -> NotebookNode:
    """The cells of a chapter's .md; a ValueError that names the file if they cannot be read."""
    try:
        found = jupytext.read(path, fmt=_FORMAT)
    except Exception as error:  # of YAML, jupytext, UTF-8: none names the file
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not _cells(found):
        raise ValueError(f"{path} is empty")
    return found


def read_notebook(path: Path) -> NotebookNode:
    """A notebook of format 4; a ValueError that names the file if it is none."""
    try:
        found = nbformat.read(path, as_version=4)
        nbformat.validate(found)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a notebook: {reason}") from None
    return found


def difference(notebook: Path) -> str | None:
    """Where a notebook's cells first differ from its .md's; None if they do not, or without .md."""
    if not notebook.with_suffix(".md").is_file():
        return None
    text, made = read_text(notebook.with_suffix(".md")), read_notebook(notebook)
    for number, (wanted, found) in enumerate(zip_longest(_cells(text), _cells(made)), 1):
        if wanted != found:
            line = (found or wanted)[1].partition("\n")[0]
            return f"{notebook} and its .md differ first at cell {number}, {line!r}"
    return None


def settle(notebook: Path, take: str | None = None) -> None:
    """Make sure that taking over the .md drops nothing that was written into the .ipynb.

    Args:
        notebook: it may be missing.
        take: which counts if the notebook was edited: its "text", or the "notebook", from whose
            cells the .md is then written.

    Raises:
        ValueError: the notebook was edited, or has no stamp and differs, and ``take`` is None.
    """
    if not notebook.exists() or not (found := difference(notebook)) or take == "text":
        return
    text, made = read_text(notebook.with_suffix(".md")), read_notebook(notebook)
    if made.metadata.get(STAMP) == digest(made):
        return
    if take == "notebook":
        return _write_text(notebook.with_suffix(".md"), text, made)
    if STAMP not in made.metadata:
        why = "it is not known which was edited"
    else:
        too = ", and the .md too" if made.metadata[STAMP] != digest(text) else ""
        why = f"the notebook was edited{too}"
    raise ValueError(
        f"{found}; {why}: --take notebook writes the .md from the notebook, --take text drops "
        "what only the notebook has"
    )


def synchronise(notebook: Path) -> None:
    """Bring a notebook's cells up to its .md, or make it; unchanged cells keep outputs and ids."""
    made = read_text(notebook.with_suffix(".md"))
    if notebook.exists():
        made = combine_inputs_with_outputs(made, read_notebook(notebook), _FORMAT)
    made.metadata[STAMP] = digest(made)
    with atomic_file(notebook) as file:
        file.write_text(jupytext.writes(made, fmt="ipynb") + "\n")


def digest(notebook: NotebookNode) -> str:
    """sha256 of the cells as the .md holds them, in hexadecimal."""
    return hashlib.sha256(json.dumps(_cells(notebook), sort_keys=True).encode()).hexdigest()


def _cells(notebook: NotebookNode) -> list[tuple[str, str, dict[str, Any]]]:
    """Type, source and what is kept of the metadata of each cell that is not blank."""
    return [
        (
            cell.cell_type,
            cell.source.strip(),
            {name: cell.metadata[name] for name in KEPT if cell.metadata.get(name)},
        )
        for cell in notebook.cells
        if cell.source.strip()
    ]


def _write_text(path: Path, text: NotebookNode, made: NotebookNode) -> None:
    """Write a chapter's .md from its notebook; lines that say the same stay as they are.

    jupytext alone would lay out the captions of all figures anew.
    """
    text = nbformat.reads(nbformat.writes(text), as_version=4)  # keys in the notebook's order
    before, after = (jupytext.writes(each, fmt=_FORMAT) for each in (text, made))
    with TemporaryDirectory() as folder:
        versions = [Path(folder) / name for name in ("now", "before", "after")]
        for file, content in zip(versions, (path.read_text(), before, after), strict=True):
            file.write_text(content)
        command = ["git", "merge-file", "-p", "--theirs", *map(str, versions)]
        merged = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if _cells(jupytext.reads(merged, fmt=_FORMAT)) != _cells(made):
        merged = after
    with atomic_file(path) as file:
        file.write_text(merged)
