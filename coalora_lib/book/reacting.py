"""Figures that react to sliders and menus on a rendered page, without a server.

A cell shows a picture with a caption; what :func:`react` returns names it and holds what may
stand in its place: drawings of plotly, controls, and what each combination of their positions
shows. On the rendered page ``reacting.js`` puts it there. In print, in a notebook and without
JavaScript the picture stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML
    from plotly.graph_objects import Figure

#: The class of the element that holds a figure's data; ``reacting.js`` and the pages look for it.
MARK = "reacting"


@dataclass(frozen=True)
class Control:
    """A slider, or by default a menu; ValueError if there is no position, or no such first one."""

    label: str
    values: Sequence[str]  #: what each position is called
    start: int = 0  #: the position at first
    slider: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < len(self.values):
            raise ValueError(f"{self.label}: no position {self.start} of {len(self.values)}")


@dataclass(frozen=True)
class State:
    """What the figure shows at one combination of positions."""

    says: str  #: a sentence or more, read aloud when it changes
    #: (plot, trace) to the trace's attributes that are other than in the plot
    traces: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    rows: Sequence[Sequence[str]] = ()  #: of the table below the plots


def react(
    name: str,
    plots: Sequence[Figure],
    controls: Sequence[Control],
    states: Sequence[State],
    head: Sequence[str] = (),
) -> HTML:
    """What takes the place of the picture in the figure called ``name``.

    Args:
        name: as in the picture's cell, ``mystnb: figure: name:``.
        plots: figures of plotly. ``reacting.js`` decides colours of text and axes, which follow the
            page's theme, and a plot's width: half of the text's where there are several.
        controls: in the order of the states.
        states: one for each combination of positions, that of the last control fastest.
        head: of the table; without it there is none.

    Raises:
        ValueError: there are more or fewer states than combinations; a state names a trace that no
            plot has, or a row has other cells than the head; a number is not finite.
    """
    from IPython.display import HTML  # here, so that scripts need no notebook packages

    sizes = [len(control.values) for control in controls]
    if len(states) != math.prod(sizes):
        wanted = " x ".join(map(str, sizes))
        raise ValueError(f"{name}: {len(states)} states; the controls have {wanted} positions")
    drawn = [_drawing(plot) for plot in plots]
    for number, state in enumerate(states):
        for plot, trace in state.traces:
            if not (0 <= plot < len(drawn) and 0 <= trace < len(drawn[plot]["data"])):
                raise ValueError(f"{name}: state {number} names trace {trace} of plot {plot}")
        if any(len(row) != len(head) for row in state.rows):
            raise ValueError(f"{name}: a row of state {number} has not {len(head)} cells")
    content = {
        "plots": drawn,
        "controls": [vars(control) for control in controls],
        "head": head,
        "states": [
            {"says": s.says, "rows": s.rows, "traces": [[*at, new] for at, new in s.traces.items()]}
            for s in states
        ],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    kind = f'type="application/json" class="{MARK}" data-figure="{name}"'
    return HTML(f"<script {kind}>{text}</script>")


def layer_map(title: str, columns: Sequence[str]) -> Figure:
    """An empty heat map of bits: blocks by ``columns``, each layer's bits in its cell.

    A state gives the trace its ``z``, (blocks, columns), and as ``text`` what else the pointer is
    told of a layer.
    """
    import plotly.graph_objects as go  # here, so that rendering a page does not load it

    cells = go.Heatmap(
        x=columns,
        zmin=2,
        zmax=6,
        colorscale="Cividis",  # told apart by all eyes
        showscale=False,
        texttemplate="%{z:.1f}",
        hovertemplate="block %{y}, %{x}<br>%{z:.3f} bits: %{text}<extra></extra>",
    )
    axis = {"autorange": "reversed", "dtick": 1, "title": "block"}
    return go.Figure(cells, {"title": {"text": title}, "yaxis": axis})


def line_plot(
    title: str, x: str, y: str, traces: Sequence[Any], y_axis: Mapping[str, Any] | None = None
) -> Figure:
    """Traces of plotly with a title and labelled axes; ``y_axis`` has more of the second."""
    import plotly.graph_objects as go

    axes = {"xaxis": {"title": x}, "yaxis": {"title": y, **(y_axis or {})}}
    return go.Figure(list(traces), {"title": {"text": title}, **axes})


def _drawing(plot: Figure) -> dict[str, Any]:
    """Data and layout of a figure of plotly, without the template that it brings."""
    drawn = json.loads(plot.to_json())
    drawn["layout"].pop("template", None)
    return drawn
