"""Commands that measure without training on a task: searches on a known front, time and memory."""

from __future__ import annotations

from statistics import mean
from typing import Annotated

import typer

from coalora_lib.cli.shared import BUILD, Results, among
from coalora_lib.experiments.scale import FULL_SIZES, measure_scale
from coalora_lib.search import STRATEGIES
from coalora_lib.testbed.comparison import (
    ALLOCATION,
    FIRST_SEED,
    compare_on_landscape,
    synthetic_plan,
)

#: What `coalora landscape` compares.
COMPARED = [*STRATEGIES, ALLOCATION]


def landscape(
    layers: Annotated[int, typer.Option(help="Of the made-up model; an even number.", min=2)] = 36,
    landscapes: Annotated[
        int, typer.Option(help=f"How many, seeds {FIRST_SEED} and up.", min=1)
    ] = 20,
    proposals: Annotated[int, typer.Option(help="Configurations to score.", min=5)] = 100,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(COMPARED)}; all but local search, which is slow, if none is named."
        ),
    ] = None,
    results: Results = BUILD / "results",
) -> None:
    """Search synthetic losses with a known front; chapter 4 shows the records.

    Landscapes that the record holds are not searched again.
    """
    named = [among(COMPARED)(name) for name in strategy or ()]
    named = named or [name for name in COMPARED if name != "local search"]
    plan = synthetic_plan(proposals)
    path = results / f"synthetic-{layers}.json"
    seeds = range(FIRST_SEED, FIRST_SEED + landscapes)
    try:
        record = compare_on_landscape(layers, seeds, plan, named, path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for name in named:
        shares = [100 * run.closed(name)[-1] for run in record.runs]
        typer.echo(f"{name.ljust(14)}{mean(shares):6.1f} % of the gap closed")
    typer.echo(f"Record: {path}")


def scale(
    profiles: Annotated[list[str], typer.Argument(help=f"Of {', '.join(FULL_SIZES)}.")],
    results: Results = BUILD / "results",
) -> None:
    """Measure time and memory of the paper's models at full size, with random weights."""
    for name in [among(FULL_SIZES)(name) for name in profiles]:
        record = measure_scale(name, results)
        spent = ", ".join(f"{what} {seconds:.3g} s" for what, seconds in record.seconds.items())
        typer.echo(f"{name}: {record.parameters / 1e9:.2f} billion parameters, {spent}")
