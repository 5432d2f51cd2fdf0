"""The command line: ``coalora --help``."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from papermill import PapermillExecutionError
from tqdm import tqdm

from coalora_lib.book import execution, rendering
from coalora_lib.book.chapter import CHAPTER_DATASETS
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.experiments.comparison import all_jobs, job_of, path_of, run_job
from coalora_lib.experiments.methods import EVERY_METHOD, METHODS, ablations_of
from coalora_lib.experiments.options import compare_options
from coalora_lib.experiments.pool import run_all
from coalora_lib.experiments.profiles import CHAPTER_PROFILES
from coalora_lib.experiments.records import (
    Record,
    code_digest,
    read_record,
    read_records,
    record_path,
)
from coalora_lib.experiments.scale import FULL_SIZES, measure_scale
from coalora_lib.experiments.search_ablation import (
    ALLOCATION,
    ARMS,
    FIRST_SEED,
    ablation_size,
    compare_on_landscape,
    experiment_name,
    synthetic_plan,
    train_with_strategy,
)
from coalora_lib.search import STRATEGIES
from coalora_lib.tasks import TASKS, checkpoint_checksum, data_checksum

app = typer.Typer(
    help="Run and render the CoA-LoRA book.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
BUILD = Path("_build")
#: What `coalora landscape` compares.
COMPARED = [*STRATEGIES, ALLOCATION]


def _among(allowed):
    def check(value: str) -> str:
        if value not in allowed:
            between = "; " if any("," in name for name in allowed) else ", "
            raise typer.BadParameter(f"{value!r} is not known; allowed: {between.join(allowed)}")
        return value

    return check


Root = Annotated[Path, typer.Option(help="The project's folder.")]
ProfileName = Annotated[str, typer.Option(help="Size of the run.", callback=_among(PROFILES))]
DatasetName = Annotated[
    str,
    typer.Option(help="Data of the experiments.", callback=_among(["embedded", *TASKS])),
]
Jobs = Annotated[int, typer.Option(help="Chapters to execute at a time.", min=1)]
Results = Annotated[Path, typer.Option(help="Folder for the records.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**32 - 1)]


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora book --dataset sst2 --profile standard"
)
def book(
    profile: Annotated[
        str, typer.Option(help="Size of the run.", callback=_among(CHAPTER_PROFILES))
    ] = "quick",
    dataset: Annotated[
        str, typer.Option(help="Data of the experiments.", callback=_among(CHAPTER_DATASETS))
    ] = "embedded",
    seed: Seed = 0,
    jobs: Jobs = 2,
    root: Root = Path(),
) -> None:
    """Execute every chapter with papermill, render the HTML, print the results."""
    source = root / BUILD / "source"
    parameters = {"profile": profile, "dataset": dataset, "seed": seed}
    try:
        execution.execute_book(root, source, parameters, jobs, typer.echo)
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


@app.command(epilog="Example: coalora outputs 04 && git diff book/")
def outputs(
    only: Annotated[
        list[str] | None, typer.Argument(help="How the wanted chapters' names begin; all if none.")
    ] = None,
    root: Root = Path(),
) -> None:
    """Execute every chapter in place: bring the committed notebooks up to their .md."""
    try:
        execution.refresh_outputs(root, typer.echo, only or ())
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora options --dataset sst2 --profile standard"
)
def options(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    rank: Annotated[int, typer.Option(help="Total rank of every run.", min=2)] = 4,
    epochs: Annotated[float, typer.Option(help="Passes over the training data.", min=0.01)] = 1.0,
    results: Results = BUILD / "results",
) -> None:
    """Train one model for each option of the adapter; chapter 3 shows the records."""
    size = replace(PROFILES[profile], rank=rank, epochs=epochs)
    record = compare_options(prepare(Run(size, seed, dataset)), results, f"options-rank{rank}")
    typer.echo(summary([record]))


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora search-ablation --dataset sst2 "
    "--profile standard --arm walk --arm frozen"
)
def search_ablation(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seed: Seed = 0,
    rank: Annotated[int, typer.Option(help="Rank of every run.", min=1)] = 4,
    epochs: Annotated[float, typer.Option(help="Passes over the training data.", min=0.01)] = 2.0,
    arm: Annotated[
        list[str],
        typer.Option(help=f"Of {'; '.join(ARMS)}. All but local search if none is named."),
    ] = (),
    results: Results = BUILD / "results",
) -> None:
    """Train one model for each way to extend the training set; chapter 4 shows the records.

    An arm whose record is in the folder is not trained again.
    """
    arms = [_among(ARMS)(name) for name in arm] or [name for name in ARMS if name != "local search"]
    size = ablation_size(PROFILES[profile], rank, epochs)
    experiment = f"search-rank{rank}"
    setup = None
    for name in arms:
        there = record_path(results, experiment_name(experiment, name), dataset, profile, seed)
        if there.exists():
            typer.echo(f"{name}: {there} is there")
            continue
        setup = setup or prepare(Run(size, seed, dataset))
        train_with_strategy(setup, name, results, experiment)
        typer.echo(f"{name}: {there}")


@app.command(epilog="Example: coalora landscape --layers 36 --landscapes 20 --strategy walk")
def landscape(
    layers: Annotated[int, typer.Option(help="Of the made-up model; an even number.", min=2)] = 36,
    landscapes: Annotated[
        int, typer.Option(help=f"How many, seeds {FIRST_SEED} and up.", min=1)
    ] = 20,
    proposals: Annotated[int, typer.Option(help="Configurations to score.", min=5)] = 100,
    strategy: Annotated[
        list[str],
        typer.Option(
            help=f"Of {', '.join(COMPARED)}; all but local search, which is slow, if none is named."
        ),
    ] = (),
    results: Results = BUILD / "results",
) -> None:
    """Search synthetic losses with a known front; chapter 4 shows the records.

    Landscapes that the record holds are not searched again.
    """
    named = [_among(COMPARED)(name) for name in strategy]
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


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora experiments --dataset sst2 "
    "--profile standard --seeds 3 --jobs 12"
)
def experiments(
    profile: ProfileName = "quick",
    dataset: DatasetName = "embedded",
    seeds: Annotated[int, typer.Option(help="How many, from 0.", min=1)] = 1,
    rank: Annotated[list[int], typer.Option(help="Ranks of LoRA.", min=1)] = (4, 8, 16),
    method: Annotated[
        list[str],
        typer.Option(help=f"Of {'; '.join(EVERY_METHOD)}. All but the ablations if none is named."),
    ] = (),
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
    try:
        named = method or (ablations_of(run.profile) if ablations else list(METHODS))
        wanted = all_jobs(run.profile, rank, range(seeds), named)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    there = sum(path_of(job, run, results).exists() for job in wanted)
    typer.echo(f"{len(wanted)} runs, {there} of them are there")
    bar = tqdm(total=len(wanted), initial=there, desc="runs", disable=None)
    with bar:
        for _, path in run_all(wanted, run, results, jobs):
            bar.update()
            tqdm.write(str(path))


@app.command(
    epilog="Example: COALORA_DATA_DIR=~/glue coalora reproduce "
    "book/results/sst2/coa-lora-rank4-sst2-standard-seed0.json"
)
def reproduce(
    path: Annotated[Path, typer.Argument(help="A record of the comparison.")],
    results: Results = BUILD / "results",
) -> None:
    """Make a record again from what it says of itself, and print both accuracies.

    On a processor they are the same; on a GPU they differ as two runs of one seed do. A record of
    an older library is made again by this one, and a warning says so.
    """
    try:
        stored = read_record(path)
        job, run = job_of(stored)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if stored.code != code_digest():
        typer.echo(
            f"Made by another version of the library (commit {stored.git_commit}); today's may "
            "train otherwise.",
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
    typer.echo(f"{job.method}, rank {job.rank}, seed {job.seed}: stored, now, in percent")
    for before, after in zip(stored.results, made.results, strict=True):
        kind = "arbitrary" if before.budget is None else "allocated"
        typer.echo(
            f"{before.bits:6.3f} bits, {kind}: {100 * before.accuracy:.2f}, "
            f"{100 * after.accuracy:.2f}"
        )


@app.command(epilog="Example: coalora scale paper paper-llama-2-7b --results book/results/scale")
def scale(
    profiles: Annotated[list[str], typer.Argument(help=f"Of {', '.join(FULL_SIZES)}.")],
    results: Results = BUILD / "results",
) -> None:
    """Measure time and memory of the paper's models at full size, with random weights."""
    for name in [_among(FULL_SIZES)(name) for name in profiles]:
        record = measure_scale(name, results)
        spent = ", ".join(f"{what} {seconds:.3g} s" for what, seconds in record.seconds.items())
        typer.echo(f"{name}: {record.parameters / 1e9:.2f} billion parameters, {spent}")


@app.command(epilog="Example: coalora render --strict")
def render(strict: bool = False, root: Root = Path()) -> None:
    """Render the committed notebooks as they are; --strict makes a Sphinx warning an error."""
    source = root / BUILD / "committed"
    rendering.copy_sources(root, source)
    _render(source, root, strict)


def _render(source: Path, root: Path, strict: bool) -> None:
    try:
        page = rendering.render(source, root, strict)
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
    typer.echo(f"The book: {page.resolve()}")


def summary(records: Sequence[Record]) -> str:
    """Accuracies of records of one seed as a text table: a row a method, a column a budget."""
    record, results = records[0], [result for each in records for result in each.results]
    budgets = sorted({r.budget for r in results if r.budget is not None})
    methods = list(dict.fromkeys(result.method for result in results))
    found = {(r.method, r.budget): f"{100 * r.accuracy:.1f}" for r in results}
    data = f"{record.dataset} (synthetic)" if record.synthetic else record.dataset
    examples = results[0].examples if results else 0
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
