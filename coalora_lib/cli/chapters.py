"""Commands that make the book."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coalora_lib.cli.names import chapter_datasets, chapter_profiles
from coalora_lib.cli.shared import BUILD, Root, Seed, one_of, summary


def book(
    profile: Annotated[
        str, one_of(chapter_profiles, "Size of the run: quick, standard or paper.")
    ] = "quick",
    dataset: Annotated[
        str, one_of(chapter_datasets, "Data of the experiments: embedded, sst2, ...")
    ] = "embedded",
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(help="Chapters to execute at a time.", min=1)] = 2,
    root: Root = Path(),
) -> None:
    """Execute every chapter with papermill, render the HTML, print the results."""
    from coalora_lib.book.execution import execute_book
    from coalora_lib.records import read_records

    source = root / BUILD / "source"
    parameters = {"profile": profile, "dataset": dataset, "seed": seed}
    _warn_of_old_text(root)
    execute_book(root, source, parameters, jobs, typer.echo)
    _render(source, root, strict=False)
    made = root / BUILD / "results" / f"comparison-{dataset}-{profile}-seed{seed}"
    if made.is_dir():
        typer.echo(summary(read_records(made)))
        typer.echo(f"Records: {made}")


def outputs(
    only: Annotated[
        list[str] | None, typer.Argument(help="How the wanted chapters' names begin; all if none.")
    ] = None,
    take: Annotated[
        str | None,
        one_of(
            lambda: ("text", "notebook"),
            "What counts where an .ipynb was edited by hand: text, its .md, which drops that edit; "
            "or notebook, from which the .md is written. Refused unless given.",
        ),
    ] = None,
    root: Root = Path(),
) -> None:
    """Execute every chapter in place: bring the committed notebooks up to their .md."""
    from coalora_lib.book.execution import refresh_outputs

    refresh_outputs(root, typer.echo, only or (), take)


def render(strict: bool = False, root: Root = Path()) -> None:
    """Render the committed notebooks as they are; --strict makes a Sphinx warning an error."""
    from coalora_lib.book.execution import copy_sources

    source = root / BUILD / "committed"
    _warn_of_old_text(root)
    copy_sources(root, source)
    _render(source, root, strict)


def _render(source: Path, root: Path, strict: bool) -> None:
    from coalora_lib.book.execution import render as render_html

    typer.echo(f"The book: {render_html(source, root, strict).resolve()}")


def _warn_of_old_text(root: Path) -> None:
    from coalora_lib.book.execution import chapters
    from coalora_lib.book.pairs import difference

    for chapter in chapters(root):
        if found := difference(root / chapter):
            typer.echo(f"warning: {found}; `coalora outputs {chapter.stem}` settles it", err=True)
