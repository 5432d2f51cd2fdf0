"""Commands that make the book.

What executes and renders chapters is imported where it is used: the processes that run experiments
import this module too, and need neither papermill nor plots.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from coalora_lib.cli.shared import BUILD, Root, Seed, one_of, summary
from coalora_lib.experiments.profiles import CHAPTER_DATASETS, CHAPTER_PROFILES
from coalora_lib.records import read_records


def book(
    profile: Annotated[str, one_of(CHAPTER_PROFILES, "Size of the run.")] = "quick",
    dataset: Annotated[str, one_of(CHAPTER_DATASETS, "Data of the experiments.")] = "embedded",
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(help="Chapters to execute at a time.", min=1)] = 2,
    root: Root = Path(),
) -> None:
    """Execute every chapter with papermill, render the HTML, print the results."""
    from papermill import PapermillExecutionError

    from coalora_lib.book.execution import execute_book

    source = root / BUILD / "source"
    parameters = {"profile": profile, "dataset": dataset, "seed": seed}
    try:
        execute_book(root, source, parameters, jobs, typer.echo)
    except PapermillExecutionError as error:
        typer.echo(
            f"{error}\nThe chapter up to the cell that failed is under {source}/book/.", err=True
        )
        raise typer.Exit(1) from None
    _render(source, root, strict=False)
    made = root / BUILD / "results" / f"comparison-{dataset}-{profile}-seed{seed}"
    if made.is_dir():
        typer.echo(summary(read_records(made)))
        typer.echo(f"Records: {made}")


def outputs(
    only: Annotated[
        list[str] | None, typer.Argument(help="How the wanted chapters' names begin; all if none.")
    ] = None,
    root: Root = Path(),
) -> None:
    """Execute every chapter in place: bring the committed notebooks up to their .md."""
    from coalora_lib.book.execution import refresh_outputs

    try:
        refresh_outputs(root, typer.echo, only or ())
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def render(strict: bool = False, root: Root = Path()) -> None:
    """Render the committed notebooks as they are; --strict makes a Sphinx warning an error."""
    from coalora_lib.book.execution import copy_sources

    source = root / BUILD / "committed"
    copy_sources(root, source)
    _render(source, root, strict)


def _render(source: Path, root: Path, strict: bool) -> None:
    from coalora_lib.book.execution import render as render_html

    try:
        page = render_html(source, root, strict)
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
    typer.echo(f"The book: {page.resolve()}")
