"""How the book's figures and tables look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from IPython.display import Markdown

#: One colour an idea, used in every chapter (Okabe and Ito's palette, told apart by all eyes).
COLOURS = {
    "CoA-LoRA": "#0072B2",
    "Shared-LoRA": "#E69F00",
    "QLoRA": "#009E73",
    "LQ-LoRA": "#56B4E9",
    "LoRA by bit width": "#8A5A44",
    "front": "#D55E00",
    "proposed": "#CC79A7",
    "muted": "#8A8F98",
}


def use_style() -> None:
    """Set matplotlib's defaults for the book."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E4E6EA",
            "grid.linewidth": 0.8,
            "axes.edgecolor": "#5B616B",
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "viridis",
        }
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """A Markdown table that a notebook displays: first column left, the others right.

    Numbers are to be formatted before, rounded as they shall be read.
    """
    from IPython.display import Markdown  # here, so that scripts need no notebook packages

    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
