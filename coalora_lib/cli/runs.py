"""Commands that write records: of runs, of searches on a known front, of time and memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from tqdm import tqdm

from coalora_lib.cli.shared import BUILD, Seed, among, one_of, summary
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.methods import METHODS, ablations_of, methods_of, sized_for_search
from coalora_lib.experiments.pool import run_all
from coalora_lib.experiments.runner import all_jobs, path_of, run_job, run_of
from coalora_lib.experiments.scale import FULL_SIZES, measure_scale
from coalora_lib.records import Job, read_record
from coalora_lib.search import STRATEGIES
from coalora_lib.tasks import TASKS, checkpoint_checksum, data_checksum
from coalora_lib.testbed.comparison import ALLOCATION, FIRST_SEED, PLAN, compare_on_landscape

COMPARED = methods_of("main", "ablation")
#: The ranks of chapter 5.
RANKS = (4, 8, 16)
ARMS = methods_of("search")
#: Left out if no arm is named, since it is slow.
SLOW = "search-local-search"
#: What `coalora landscape` compares.
SEARCHES = [*STRATEGIES, ALLOCATION]


def several(allowed: Collection[str], otherwise: str) -> Any:
    """An option that takes many of these, given many times."""
    return one_of(allowed, f"Of {', '.join(allowed)}. {otherwise} if none is named.")


ProfileName = Annotated[str, one_of(PROFILES, "Size of the run.")]
DatasetName = Annotated[str, one_of(["embedded", *TASKS], "Data of the experiments.")]
Epochs = Annotated[float, typer.Option(help="Passes over the training data.", min=0.01)]
Results = Annotated[Path, typer.Option(help="Folder for the records.")]


def experiments(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seeds: Annotated[int, typer.Option(help="How many, from 0.", min=1)] = 1,
    rank: Annotated[
        list[int] | None, typer.Option(help="Ranks of LoRA; 4, 8 and 16 if none is named.", min=1)
    ] = None,
    method: Annotated[list[str] | None, several(COMPARED, "All but the ablations")] = None,
    ablations: Annotated[bool, typer.Option(help="Run the ablations instead.")] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="Instead of the profile's; for tuning.", min=0)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    results: Results = BUILD / "results",
) -> None:
    """Run the comparison of chapter 5; a run whose record is in the folder is not made again."""
    run = Run(PROFILES[profile], 0, dataset)
    if learning_rate is not None:
        run = replace(run, profile=replace(run.profile, learning_rate=learning_rate))
    named = method or (ablations_of(run.profile) if ablations else list(methods_of("main")))
    _run_missing(all_jobs(run.profile, rank or RANKS, range(seeds), named), run, results, jobs)


def options(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    rank: Annotated[int, typer.Option(help="Total rank of every run.", min=2)] = 4,
    epochs: Epochs = 1.0,
    results: Results = BUILD / "results",
) -> None:
    """Train one model for each option of the adapter; chapter 3 shows the records.

    An option whose record is in the folder is not trained again.
    """
    run = Run(replace(PROFILES[profile], epochs=epochs), seed, dataset)
    jobs = all_jobs(run.profile, [rank], [seed], list(methods_of("option")))
    _run_missing(jobs, run, results)
    typer.echo(summary([read_record(path_of(job, run, results)) for job in jobs]))


def search_ablation(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    rank: Annotated[int, typer.Option(help="Rank of every run.", min=1)] = 4,
    epochs: Epochs = 2.0,
    arm: Annotated[list[str] | None, several(ARMS, f"All but {SLOW}")] = None,
    results: Results = BUILD / "results",
) -> None:
    """Train one model for each way to extend the training set; chapter 4 shows the records.

    An arm whose record is in the folder is not trained again.
    """
    named = arm or [slug for slug in ARMS if slug != SLOW]
    run = Run(sized_for_search(PROFILES[profile], epochs), seed, dataset)
    _run_missing(all_jobs(run.profile, [rank], [seed], named), run, results)


def _run_missing(jobs: Sequence[Job], run: Run, results: Path, processes: int = 1) -> None:
    """Make the records that are not in the folder, and say where they are."""
    there = sum(path_of(job, run, results).exists() for job in jobs)
    typer.echo(f"{len(jobs)} runs, {there} of them are there")
    with tqdm(total=len(jobs), initial=there, desc="runs", disable=None) as bar:
        for _, path in run_all(jobs, run, results, processes):
            bar.update()
            tqdm.write(str(path))


def reproduce(
    path: Annotated[Path, typer.Argument(help="A record of an experiment.")],
    results: Results = BUILD / "results",
) -> None:
    """Make a record again from what it says of itself, and print both accuracies.

    On a processor they are the same; on a GPU they differ as two runs of one seed do. A record of
    an older protocol is made again by today's, and a warning says so.
    """
    try:
        stored = read_record(path)
        run = run_of(stored)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    job = stored.job
    today = METHODS[job.method].experiment.protocol
    if stored.protocol != today:
        typer.echo(
            f"Made by protocol {stored.protocol} (commit {stored.git_commit}); today's is {today}, "
            "whose results may differ.",
            err=True,
        )
    setup = prepare(run)
    for name, value in (
        ("data", data_checksum(setup.splits)),
        ("model", checkpoint_checksum(run.profile.model)),
    ):
        if value != getattr(stored, f"{name}_checksum"):
            raise typer.BadParameter(f"the {name} is not what {path} was made from")
    made = read_record(run_job(setup, job, results))
    typer.echo(f"{job.name}, seed {job.seed}: stored, now, in percent")
    for before, after in zip(stored.results, made.results, strict=True):
        kind = "arbitrary" if before.budget is None else "allocated"
        typer.echo(
            f"{before.bits:6.3f} bits, {kind}: {100 * before.accuracy:.2f}, "
            f"{100 * after.accuracy:.2f}"
        )


def landscape(
    layers: Annotated[int, typer.Option(help="Of the made-up model; an even number.", min=2)] = 36,
    landscapes: Annotated[int, typer.Option(help=f"Seeds {FIRST_SEED} and up.", min=1)] = 20,
    proposals: Annotated[int, typer.Option(help="Configurations to score.", min=5)] = 100,
    strategy: Annotated[
        list[str] | None, several(SEARCHES, "All but the slow local search")
    ] = None,
    results: Results = BUILD / "results",
) -> None:
    """Search synthetic losses with a known front; chapter 4 shows the records.

    Landscapes that the record holds are not searched again.
    """
    named = strategy or [name for name in SEARCHES if name != "local search"]
    plan = replace(PLAN, proposals=proposals)
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
    profiles: Annotated[
        list[str], typer.Argument(help=f"Of {', '.join(FULL_SIZES)}.", callback=among(FULL_SIZES))
    ],
    results: Results = BUILD / "results",
) -> None:
    """Measure time and memory of the paper's models at full size, with random weights."""
    for name in profiles:
        record = measure_scale(name, results)
        spent = ", ".join(f"{what} {seconds:.3g} s" for what, seconds in record.seconds.items())
        typer.echo(f"{name}: {record.parameters / 1e9:.2f} billion parameters, {spent}")
