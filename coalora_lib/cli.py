"""The command line: ``coalora --help``."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from papermill import PapermillExecutionError

from coalora_lib import batch
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.options import compare_options
from coalora_lib.experiments.records import Record, read_record
from coalora_lib.tasks import TASKS

app = typer.Typer(
    help="Run and render the CoA-LoRA book.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
BUILD = Path("_build")


def _among(allowed):
    def check(value: str) -> str:
        if value not in allowed:
            raise typer.BadParameter(f"{value!r} is not known; allowed: {', '.join(allowed)}")
        return value

    return check


Root = Annotated[Path, typer.Option(help="The project's folder.")]
ProfileName = Annotated[str, typer.Option(help="Size of the run.", callback=_among(PROFILES))]
DatasetName = Annotated[
    str,
    typer.Option(help="Data of the experiments.", callback=_among(["embedded", *TASKS])),
]
Jobs = Annotated[int, typer.Option(help="Chapters to execute at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**32 - 1)]


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora book --dataset sst2 --profile standard"
)
def book(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    jobs: Jobs = 2,
    root: Root = Path(),
) -> None:
    """Execute every chapter with papermill, render the HTML, print the results."""
    source = root / BUILD / "source"
    parameters = {"profile": profile, "dataset": dataset, "seed": seed}
    try:
        batch.execute_book(root, source, parameters, jobs, typer.echo)
    except PapermillExecutionError as error:
        typer.echo(
            f"{error}\nThe chapter up to the cell that failed is under {source}/book/.", err=True
        )
        raise typer.Exit(1) from None
    _render(source, root, strict=False)
    for path in sorted((root / BUILD / "results").glob(f"*-{dataset}-{profile}-seed{seed}.json")):
        typer.echo(summary(read_record(path)))
        typer.echo(f"Record: {path}")


@app.command(epilog="Example: coalora outputs && git diff book/")
def outputs(root: Root = Path()) -> None:
    """Execute every chapter in place: bring the committed notebooks up to their .md."""
    batch.refresh_outputs(root, typer.echo)


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora options --dataset sst2 --profile standard"
)
def options(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    rank: Annotated[int, typer.Option(help="Total rank of every run.", min=2)] = 4,
    epochs: Annotated[float, typer.Option(help="Passes over the training data.", min=0.01)] = 1.0,
    results: Annotated[Path, typer.Option(help="Folder for the record.")] = BUILD / "results",
) -> None:
    """Train one model for each option of the adapter; chapter 3 shows the records."""
    size = replace(PROFILES[profile], rank=rank, epochs=epochs)
    record = compare_options(prepare(Run(size, seed, dataset)), results, f"options-rank{rank}")
    typer.echo(summary(record))


@app.command(epilog="Example: coalora render --strict")
def render(strict: bool = False, root: Root = Path()) -> None:
    """Render the committed notebooks as they are; --strict makes a Sphinx warning an error."""
    source = root / BUILD / "committed"
    batch.copy_sources(root, source)
    _render(source, root, strict)


def _render(source: Path, root: Path, strict: bool) -> None:
    try:
        page = batch.render(source, root, strict)
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
    typer.echo(f"The book: {page.resolve()}")


def summary(record: Record) -> str:
    """A record's accuracies as a text table: a row a method, a column a budget."""
    budgets = sorted({r.budget for r in record.results if r.budget is not None})
    methods = list(dict.fromkeys(result.method for result in record.results))
    found = {(r.method, r.budget): f"{100 * r.accuracy:.1f}" for r in record.results}
    data = f"{record.dataset} (synthetic)" if record.synthetic else record.dataset
    examples = record.results[0].examples if record.results else 0
    lines = [
        f"Accuracy in percent on {data}, {examples} examples, profile {record.profile}, "
        f"seed {record.seed}",
        "bits per parameter".ljust(20) + "".join(f"{budget:>8g}" for budget in budgets),
    ]
    for method in methods:
        cells = (found.get((method, budget), "-") for budget in budgets)
        lines.append(method.ljust(20) + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    app()
