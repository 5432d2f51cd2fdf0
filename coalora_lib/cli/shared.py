"""What several commands have: options, checks of their values, records as plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coalora_lib.validation import not_known

if TYPE_CHECKING:
    from coalora_lib.records import Record

#: Where commands write unless told otherwise.
BUILD = Path("_build")
#: Gives what an option allows, when it is asked: see :mod:`coalora_lib.cli.names`.
Names = Callable[[], Collection[str]]


def among(names: Names) -> Callable[[Any], Any]:
    """A check of one or several values that refuses others than the allowed ones, and lists
    them."""

    def check(given: str | list[str] | None) -> str | list[str] | None:
        for value in [given] if isinstance(given, str) else given or ():
            allowed = names()
            if value not in allowed:
                raise typer.BadParameter(not_known(repr(value), allowed))
        return given

    return check


def one_of(names: Names, help: str) -> Any:
    """An option that takes one of these, or many given many times; its help names some."""
    return typer.Option(help=help, callback=among(names))


def positive(help: str) -> Any:
    """An option that takes a number above zero; its help says so."""
    return typer.Option(help=f"{help}; above 0.", callback=_above_zero)


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a number above 0")
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Root = Annotated[Path, typer.Option(help="The project's folder.")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=2**32 - 1)]


def summary(records: Sequence[Record]) -> str:
    """Accuracies of records of one seed: a row per method, a column per budget."""
    from coalora_lib.experiments.methods import METHODS
    from coalora_lib.records import accuracy_table

    first, labels = records[0], {slug: method.label for slug, method in METHODS.items()}
    columns, rows = accuracy_table(records, labels)
    data = f"{first.dataset} (synthetic)" if first.synthetic else first.dataset
    lines = [
        f"Accuracy in percent on {data}, {first.results[0].examples} examples, profile "
        f"{first.profile}, seed {first.job.seed}"
    ]
    lines += [
        f"{name:<34}" + "".join(f"{c:>10}" for c in cells) for name, *cells in (columns, *rows)
    ]
    return "\n".join(lines)


def show(
    content: Mapping[str, Any], as_json: bool, heading: str, rows: Sequence[Mapping[str, float]]
) -> None:
    """Print as JSON, or a heading and a table."""
    if as_json:
        typer.echo(json.dumps(content, indent=1, default=str))
        return
    typer.echo(heading)
    if rows:
        typer.echo("".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        typer.echo("".join(f"{_number(name, value):>16}" for name, value in row.items()))


def _number(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "bytes" else f"{value:.4f}"
