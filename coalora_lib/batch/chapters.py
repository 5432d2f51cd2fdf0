"""Chapters as jobs: which there are, what their parameters may be, and the whole book."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coalora_lib.batch import cluster
from coalora_lib.batch.engine import run_batch
from coalora_lib.batch.jobs import chapter_run
from coalora_lib.batch.progress import Progress, Summary
from coalora_lib.book.execution import chapters, copy_sources, parameters_of, take_over
from coalora_lib.validation import not_known


def chapters_named(root: Path, names: Sequence[str]) -> list[Path]:
    """The chapters whose names begin so, in the book's order; a ValueError if none does."""
    there = chapters(root)
    for name in names:
        if not any(chapter.stem.startswith(name) for chapter in there):
            raise ValueError(not_known(f"chapter={name!r}", (each.stem for each in there)))
    return [chapter for chapter in there if chapter.stem.startswith(tuple(names))]


def checked(
    root: Path, wanted: Sequence[Path], given: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """Each chapter with the values of those parameters that it has, each value once.

    Raises:
        ValueError: no chapter has a parameter, or a value is of another type than the chapter's
            own, or not allowed.
    """
    defaults = {chapter: parameters_of(root / chapter) for chapter in wanted}
    known = list(dict.fromkeys(name for each in defaults.values() for name in each))
    for name in given:
        if name not in known:
            raise ValueError(not_known(f"parameter {name!r} of these chapters", known))
    for chapter, own in defaults.items():
        yield (
            chapter,
            {
                name: list(dict.fromkeys(_allowed(name, value, own[name]) for value in values))
                for name, values in given.items()
                if name in own
            },
        )


def _allowed(name: str, value: Any, default: Any) -> Any:
    """A value as the chapter takes it."""
    from coalora_lib.experiments.profiles import CHAPTER_DATASETS, CHAPTER_PROFILES

    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name}={value!r} must be of type {kind.__name__}, as {default!r} is")
    among = {"profile": CHAPTER_PROFILES, "dataset": CHAPTER_DATASETS}.get(name)
    if among is not None and value not in among:
        raise ValueError(not_known(f"{name}={value!r}", among))
    if name == "seed" and not 0 <= value < 2**32:
        raise ValueError(f"seed={value} is not known; allowed: integers from 0 to 4294967295")
    return value


def execute_book(
    root: Path, target: Path, parameters: Mapping[str, Any], jobs: int, progress: Progress
) -> Summary:
    """Execute every chapter, ``jobs`` at a time, beside a copy of the book's sources.

    Each chapter gets those of the parameters that it has. ``target / "source"`` is then what
    jupyter-book reads, with the chapters that succeeded.
    """
    source, executed = target / "source", target / "chapters"
    copy_sources(root, source)
    shutil.rmtree(executed, ignore_errors=True)
    wanted = [(chapter, parameters_of(root / chapter)) for chapter in chapters(root)]
    # Chapters on data train models, the later the longer: begun first, they leave no core idle at
    # the end.
    order = sorted(enumerate(wanted), key=lambda item: ("dataset" in item[1][1], item[0]))
    runs = [
        chapter_run(
            root, chapter, {n: v for n, v in parameters.items() if n in names}, chapter.stem
        )
        for _, (chapter, names) in reversed(order)
    ]
    with cluster.local(jobs) as client:
        summary = run_batch(runs, executed, client, progress, alike=True)
    for run in runs:
        if run.name in summary.made:
            take_over(executed / run.file, source / run.chapter)
    return summary
