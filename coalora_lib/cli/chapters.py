"""Commands that make the book."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from coalora_lib.cli.batches import end
from coalora_lib.cli.names import chapter_datasets, chapter_profiles
from coalora_lib.cli.shared import BUILD, Root, Seed, one_of
from coalora_lib.cli.shared import summary as summarise


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
    """Execute every chapter with papermill, render the HTML, print the results.

    Other parameters than the published ones make a page of their own, below _build/book.
    """
    from coalora_lib.batch.chapters import execute_book
    from coalora_lib.batch.progress import shown
    from coalora_lib.experiments.profiles import PUBLISHED
    from coalora_lib.records import read_records

    parameters = {"profile": profile, "dataset": dataset, "seed": seed}
    target = root / BUILD / "book" / f"{profile}-{dataset}-seed{seed}"
    _warn_of_old_text(root)
    with one_at_a_time(target), shown() as progress:
        summary = execute_book(root, target, parameters, jobs, progress)
        if summary.succeeded:
            page = (root / BUILD if parameters == PUBLISHED else target) / "html"
            _render(target / "source", page, strict=False)
    made = root / BUILD / "results" / f"comparison-{dataset}-{profile}-seed{seed}"
    if made.is_dir():
        typer.echo(summarise(read_records(made)))
        typer.echo(f"Records: {made}")
    end(summary)


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
    """Render the committed notebooks as they are; `--strict` makes a Sphinx warning an error."""
    from coalora_lib.book.execution import copy_sources

    source = root / BUILD / "committed"
    _warn_of_old_text(root)
    copy_sources(root, source)
    _render(source, root / BUILD / "html", strict)


def pdf(
    out: Annotated[
        Path | None, typer.Option(help="The file; by default _build/book.pdf.", dir_okay=False)
    ] = None,
    root: Root = Path(),
) -> None:
    """Print the committed notebooks, as they are, to one PDF; needs Chromium.

    The pages on the library and the command line are left out.
    """
    from coalora_lib.book.printing import print_book

    _warn_of_old_text(root)
    file = root / BUILD / "book.pdf" if out is None else out
    file.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"The book: {file.resolve()}, {print_book(root, file)} pages")


def new(
    name: Annotated[str, typer.Argument(help="Number and name of the chapter, as 11_pruning.")],
    title: Annotated[
        str | None, typer.Option(help="Its heading; by default the name in words.")
    ] = None,
    root: Root = Path(),
) -> None:
    """Make a chapter from the template, and enter it into the contents."""
    from coalora_lib.book.new import new_chapter

    text = new_chapter(root, name, title)
    typer.echo(f"{text} and its .ipynb are made, _toc.yml names them.")
    typer.echo(f"Edit the .md, then execute it: coalora outputs {name}")


def _render(source: Path, page: Path, strict: bool) -> None:
    from coalora_lib.book.execution import render as render_html

    typer.echo(f"The book: {render_html(source, page, strict).resolve()}")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder; a RuntimeError if another process of the same command does."""
    from coalora_lib.files import try_lock

    folder.mkdir(parents=True, exist_ok=True)
    file = try_lock(folder / ".lock")
    if file is None:
        raise RuntimeError(f"{folder} is being made by another `coalora book`; wait until it ends")
    with file:
        yield


def _warn_of_old_text(root: Path) -> None:
    from coalora_lib.book.execution import chapters
    from coalora_lib.book.pairs import difference

    for chapter in chapters(root):
        if found := difference(root / chapter):
            typer.echo(f"warning: {found}; `coalora outputs {chapter.stem}` settles it", err=True)
