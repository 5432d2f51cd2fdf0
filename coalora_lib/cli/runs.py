"""Commands that write records: of runs, of searches on a known front, of time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from coalora_lib.cli.batches import end, run_here
from coalora_lib.cli.names import (
    SLOW_ARM,
    arms,
    compared,
    datasets,
    full_sizes,
    profiles,
    strategies,
)
from coalora_lib.cli.shared import BUILD, Seed, among, one_of, summary

if TYPE_CHECKING:
    from coalora_lib.experiments import Run
    from coalora_lib.records import Job, Result

#: The ranks of chapter 6.
RANKS = (4, 8, 16)
#: A list of runs is made of all seeds before the first one starts.
MOST_SEEDS = 1000

ProfileName = Annotated[str, one_of(profiles, "Size of the run: quick, standard, paper, ...")]
DatasetName = Annotated[str, one_of(datasets, "Data of the experiments: embedded, sst2, ...")]
Epochs = Annotated[float, typer.Option(help="Passes over the training data.", min=0.01)]
Results = Annotated[Path, typer.Option(help="Folder for the records.")]


def experiments(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.", min=1, max=MOST_SEEDS)] = 1,
    rank: Annotated[
        list[int] | None, typer.Option(help="Ranks of LoRA; 4, 8 and 16 if none is named.", min=1)
    ] = None,
    method: Annotated[
        list[str] | None,
        one_of(
            compared, "Such as coa-lora or lq-lora; if none, all of the profile's kind of task."
        ),
    ] = None,
    ablations: Annotated[bool, typer.Option(help="Run the ablations instead.")] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate instead of the profile's; for tuning.", min=0),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    results: Results = BUILD / "results",
) -> None:
    """Run the comparison of chapter 6; with a profile of recovery, that of chapter 5.

    Recovery brings a quantized model's outputs near the unquantized one's: embeddings of sentences,
    or a decoder's distributions of the next token.

    A run whose record is in the folder is not made again; a record of other parameters, data or
    protocol is refused.
    """
    from coalora_lib.experiments import PROFILES, Run
    from coalora_lib.experiments.methods import ablations_of, compared_for
    from coalora_lib.experiments.runner import all_jobs

    run = Run(PROFILES[profile], 0, dataset)
    if learning_rate is not None:
        run = replace(run, profile=replace(run.profile, learning_rate=learning_rate))
    named = method or (ablations_of(run.profile) if ablations else compared_for(run.profile))
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
    from coalora_lib.experiments import PROFILES, Run
    from coalora_lib.experiments.methods import methods_of
    from coalora_lib.experiments.runner import all_jobs, path_of
    from coalora_lib.records import read_record

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
    arm: Annotated[
        list[str] | None,
        one_of(arms, f"Such as search-walk; all but {SLOW_ARM} if none is named."),
    ] = None,
    results: Results = BUILD / "results",
) -> None:
    """Train one model for each way to extend the training set; chapter 4 shows the records.

    An arm whose record is in the folder is not trained again.
    """
    from coalora_lib.experiments import PROFILES, Run
    from coalora_lib.experiments.protocols import sized_for_search
    from coalora_lib.experiments.runner import all_jobs

    named = arm or [slug for slug in arms() if slug != SLOW_ARM]
    run = Run(sized_for_search(PROFILES[profile], epochs), seed, dataset)
    _run_missing(all_jobs(run.profile, [rank], [seed], named), run, results)


def _run_missing(jobs: Sequence[Job], run: Run, results: Path, processes: int = 1) -> None:
    """Make the records that are not in the folder; exit status 1 if one cannot be made."""
    from coalora_lib.batch.jobs import MethodRun
    from coalora_lib.experiments.setup import refuse_misfit

    refuse_misfit(run)  # once, not for each job
    end(run_here((MethodRun(job, run) for job in jobs), results, processes))


def reproduce(
    path: Annotated[Path, typer.Argument(help="A record of an experiment.")],
    results: Results = BUILD / "results",
) -> None:
    """Make a record again from its own settings, and print accuracies or losses of both.

    On a processor they are the same; on a GPU they differ as two runs of one seed do. A record of
    an older protocol is made again by today's protocol, with a warning.
    """
    from coalora_lib.experiments import prepare
    from coalora_lib.experiments.methods import METHODS
    from coalora_lib.experiments.runner import run_job, run_of
    from coalora_lib.records import read_record
    from coalora_lib.tasks import checkpoint_checksum, data_checksum

    stored = read_record(path)
    run = run_of(stored)
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
            raise ValueError(f"the {name} is not what {path} was made from")
    made = read_record(run_job(setup, job, results))
    typer.echo(f"{job.name}, seed {job.seed}: stored, now")
    for before, after in zip(stored.results, made.results, strict=True):
        kind = "arbitrary" if before.budget is None else "allocated"
        typer.echo(f"{before.bits:6.3f} bits, {kind}: {_shown(before)}, {_shown(after)}")


def _shown(result: Result) -> str:
    """Its accuracy in percent, or its loss where it has none."""
    return f"{result.loss:.4f}" if result.accuracy is None else f"{100 * result.accuracy:.2f} %"


def landscape(
    layers: Annotated[
        int, typer.Option(help="Layers of the made-up model, an even number.", min=2)
    ] = 36,
    landscapes: Annotated[
        int, typer.Option(help="Number of landscapes, each with its seed.", min=1)
    ] = 20,
    proposals: Annotated[int, typer.Option(help="Configurations to score.", min=5)] = 100,
    strategy: Annotated[
        list[str] | None,
        one_of(strategies, "Such as walk or nsga2; all but the slow local search if none."),
    ] = None,
    results: Results = BUILD / "results",
) -> None:
    """Search synthetic losses with a known front; chapter 4 shows the records.

    Landscapes that the record holds are not searched again.
    """
    from coalora_lib.testbed.comparison import FIRST_SEED, PLAN, compare_on_landscape

    named = strategy or [name for name in strategies() if name != "local search"]
    plan = replace(PLAN, proposals=proposals)
    path = results / f"synthetic-{layers}.json"
    seeds = range(FIRST_SEED, FIRST_SEED + landscapes)
    record = compare_on_landscape(layers, seeds, plan, named, path)
    for name in named:
        shares = [100 * run.closed(name)[-1] for run in record.runs]
        typer.echo(f"{name.ljust(14)}{mean(shares):6.1f} % of the gap closed")
    typer.echo(f"Record: {path}")


def scale(
    profiles: Annotated[
        list[str],
        typer.Argument(
            help="Sizes of the paper: paper, paper-llama-2-7b, ...", callback=among(full_sizes)
        ),
    ],
    results: Results = BUILD / "results",
) -> None:
    """Measure time and memory of the paper's models at full size, with random weights."""
    from coalora_lib.experiments.scale import measure_scale

    for name in profiles:
        record = measure_scale(name, results)
        spent = ", ".join(f"{what} {seconds:.3g} s" for what, seconds in record.seconds.items())
        typer.echo(f"{name}: {record.parameters / 1e9:.2f} billion parameters, {spent}")
