"""The table of executions: when and for how long the notebooks ran, from their metadata."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.statemachine import StringList
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEAD = ("chapter", "code cells", "state", "seconds", "executed on")
UNKNOWN = "-"  #: not stored


class Executions(SphinxDirective):
    """``{table-of-executions}``: a row for each notebook of the book."""

    def run(self) -> list[nodes.Node]:
        lines = [f"| {' | '.join(HEAD)} |", "| :-- | --: | :-- | --: | :-- |"]
        for page in sorted(self.env.found_docs):
            file = Path(self.env.doc2path(page))
            if file.suffix == ".ipynb":
                self.env.note_dependency(str(file))
                cells = row(nbformat.read(file, as_version=4))
                lines.append(f"| {{doc}}`/{page}` | {' | '.join(cells)} |")
        found = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, found)
        return found.children


def row(notebook: NotebookNode) -> tuple[str, str, str, str]:
    """Code cells, state, seconds and date of an executed notebook, as papermill writes them."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    done = all(cell.execution_count is not None for cell in cells)
    state = "failed" if failed else "executed" if done else "not executed"
    times = notebook.metadata.get("papermill", {})
    seconds, end = times.get("duration"), times.get("end_time")
    return (
        str(len(cells)),
        state,
        UNKNOWN if seconds is None else f"{seconds:.0f}",
        UNKNOWN if end is None else f"{datetime.fromisoformat(end):%Y-%m-%d}",
    )


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.add_directive("table-of-executions", Executions)
