"""Tables for the book's pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """A Markdown table that a notebook displays: first column left, the others right.

    Args:
        columns: headings.
        rows: one sequence of cells a row; format numbers before, rounded as they shall be read.
    """
    from IPython.display import Markdown  # here, so that scripts need no notebook packages

    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
