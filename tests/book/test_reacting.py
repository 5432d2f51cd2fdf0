"""What a figure that reacts holds, and what cannot become one."""

import json
import re

import plotly.graph_objects as go
import pytest

from coalora_lib.book.reacting import Control, State, layer_map, line_plot, react

PLOTS = [go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="<b>")), go.Figure(go.Heatmap())]
CONTROLS = [Control("A device that", ["a", "b"]), Control("Bits", list("234"), 1, slider=True)]
STATES = [
    State(f"{device}{bits}", {(1, 0): {"z": [[int(bits)]]}}, [(device, bits)])
    for device in "ab"
    for bits in "234"
]


def content(html):
    found = re.fullmatch(
        r'<script type="application/json" class="reacting" data-figure="fig-x">([^<]*)</script>',
        html.data,
    )
    return json.loads(found[1])


def test_a_figure_holds_plots_controls_and_a_state_for_each_combination():
    made = content(react("fig-x", PLOTS, CONTROLS, STATES, ("device", "bits")))
    assert made["plots"][0]["data"][0] | {"name": "<b>", "x": [1, 2]} == made["plots"][0]["data"][0]
    assert all("template" not in plot["layout"] for plot in made["plots"])
    first, second = made["controls"]
    assert first == {"label": "A device that", "values": ["a", "b"], "start": 0, "slider": False}
    assert (second["start"], second["slider"]) == (1, True)
    assert [state["says"] for state in made["states"]] == ["a2", "a3", "a4", "b2", "b3", "b4"]
    assert made["states"][4]["traces"] == [[1, 0, {"z": [[3]]}]]
    assert made["states"][4]["rows"] == [["b", "3"]]


def bad(trace=(0, 0), row=("a",), value=1.0):
    return [State("", {trace: {"y": [value]}}, [row])]


@pytest.mark.parametrize(
    ("controls", "states", "message"),
    [
        (CONTROLS, STATES[:-1], "fig-x: 5 states; the controls have 2 x 3 positions"),
        (CONTROLS[:1], STATES, "fig-x: 6 states; the controls have 2 positions"),
        ([], bad((0, 1)), "fig-x: state 0 names trace 1 of plot 0"),
        ([], bad((2, 0)), "fig-x: state 0 names trace 0 of plot 2"),
        ([], bad((-1, 0)), "fig-x: state 0 names trace 0 of plot -1"),
        ([], bad(row=("a", "b")), "fig-x: a row of state 0 has not 1 cells"),
        ([], bad(value=float("nan")), "Out of range float values are not JSON compliant"),
    ],
    ids=["few", "many", "trace", "plot", "negative", "cells", "nan"],
)
def test_what_is_no_figure_is_refused(controls, states, message):
    with pytest.raises(ValueError, match=message):
        react("fig-x", PLOTS, controls, states, ("device",))


def test_a_map_of_layers_and_a_plot_of_lines_are_filled_by_states():
    plots = [layer_map("Bits", ["query", "key"]), line_plot("Loss", "bits", "loss", PLOTS[0].data)]
    state = State("", {(0, 0): {"z": [[2, 3]], "text": [["a", "b"]]}, (1, 0): {"y": [5]}})
    bits, loss = content(react("fig-x", plots, [], [state]))["plots"]
    assert (bits["data"][0]["x"], bits["layout"]["title"]["text"]) == (["query", "key"], "Bits")
    assert loss["layout"]["xaxis"]["title"]["text"] == "bits"
    log = line_plot("", "", "", [], {"type": "log"}).layout.yaxis
    assert log.type == "log"


@pytest.mark.parametrize("start", [-1, 2])
def test_a_control_begins_at_one_of_its_positions(start):
    with pytest.raises(ValueError, match=f"Bits: no position {start} of 2"):
        Control("Bits", ["2", "3"], start)
