"""Commands for many runs: a grid on one machine or a cluster, and tables of the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coalora_lib.cli.names import metrics
from coalora_lib.cli.shared import BUILD, AsJson, Root, one_of

if TYPE_CHECKING:
    from distributed import Client

    from coalora_lib.batch import cluster
    from coalora_lib.batch.jobs import BatchJob
    from coalora_lib.batch.progress import Summary


Grid = Annotated[Path | None, typer.Argument(help="YAML: methods or chapters, values.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, such as seeds=[0,1]; replaces the file's value."),
]
Results = Annotated[Path | None, typer.Option(help="Folder, instead of the grid's.")]
Processes = Annotated[int, typer.Option(help="Jobs at a time on this machine.", min=1)]
Memory = Annotated[str | None, typer.Option(help="Memory at which a job is ended, such as 8GB.")]
Scheduler = Annotated[
    str | None, typer.Option(help="A running Dask scheduler: tcp://node:8786, or tls://.")
]
Slurm = Annotated[bool, typer.Option("--slurm", help="Workers from a SLURM queue.")]
Pbs = Annotated[bool, typer.Option("--pbs", help="Workers from a PBS queue.")]
Queue = Annotated[str | None, typer.Option(help="The queue's name.")]
Cores = Annotated[int, typer.Option(help="Cores of a worker in the queue.", min=1)]
NodeMemory = Annotated[str, typer.Option(help="Memory of a worker in the queue.")]
Walltime = Annotated[str, typer.Option(help="Time of a worker in the queue.")]
Workers = Annotated[int, typer.Option(help="Workers to ask the queue for.", min=1)]
Directive = Annotated[
    list[str] | None, typer.Option(help="Directive of the queue, such as --gres=gpu:1.")
]
Retry = Annotated[bool, typer.Option(help="Run again what failed in an earlier batch.")]
Remake = Annotated[bool, typer.Option(help="Replace files of other parameters.")]
Limit = Annotated[float | None, typer.Option(help="Seconds for a job.", min=0.1)]
DryRun = Annotated[bool, typer.Option(help="Only show the jobs and the queue's script.")]


def batch(
    grid: Grid = None,
    set_: Set = None,
    results: Results = None,
    processes: Processes = 2,
    memory: Memory = None,
    scheduler: Scheduler = None,
    slurm: Slurm = False,
    pbs: Pbs = False,
    queue: Queue = None,
    cores: Cores = 4,
    node_memory: NodeMemory = "16GB",
    walltime: Walltime = "04:00:00",
    workers: Workers = 1,
    directive: Directive = None,
    retry: Retry = False,
    remake: Remake = False,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Run a grid; finished jobs are never run again, and a failed one does not stop the others.

    Exit status: 0 if every job succeeded, 1 if one failed, 2 if nothing could be begun.
    """
    from coalora_lib.batch import cluster
    from coalora_lib.batch.grid import Grid

    if sum((slurm, pbs, scheduler is not None)) > 1:
        raise ValueError("only one of --scheduler, --slurm and --pbs can be given")
    wanted = Grid.read(grid, set_ or ())
    jobs, folder = wanted.jobs(root), results or wanted.results
    asked = None
    if slurm or pbs:
        asked = cluster.Queue(
            system="slurm" if slurm else "pbs", name=queue, cores=cores, memory=node_memory,
            walltime=walltime, jobs=workers, directives=tuple(directive or ()),
        )  # fmt: skip
    if dry_run:
        return _say_what_would_run(jobs, [folder, root / "book/results"], asked, as_json)
    place = asked or scheduler
    ways = {"retry": retry, "remake": remake, "limit": limit, "alike": place is None}
    end(_run(jobs, folder, _workers(place, processes, memory), **ways), as_json)


def _say_what_would_run(
    jobs: Sequence[BatchJob], folders: Sequence[Path], asked: cluster.Queue | None, as_json: bool
) -> None:
    """The jobs, how long they take by the results in the folders, of which the first is theirs, and
    a queue's script."""
    from coalora_lib.batch.estimate import estimate
    from coalora_lib.batch.progress import span

    seconds = estimate(jobs, folders)
    about = "" if seconds is None else f", about {span(seconds)} of one process"
    script = asked.script() if asked else ""
    _say(
        {"jobs": [job.name for job in jobs], "seconds": seconds, "script": script},
        as_json,
        [*(job.name for job in jobs), f"{len(jobs)} jobs{about}; results in {folders[0]}", script],
    )


def run_here(jobs: Iterable[BatchJob], folder: Path, processes: int) -> Summary:
    """Run jobs on this machine's cores and GPUs, and show how it goes."""
    return _run(jobs, folder, _workers(None, processes), retry=True, alike=True)


def _workers(
    place: cluster.Queue | str | None, processes: int, memory: str | None = None
) -> AbstractContextManager[Client]:
    """Those of a queue, of the scheduler at an address, or of this machine."""
    from coalora_lib.batch import cluster

    if place is None:
        return cluster.local(processes, cluster.visible_gpus(), memory)
    return cluster.connected(place) if isinstance(place, str) else cluster.queued(place)


def _run(
    jobs: Iterable[BatchJob], folder: Path, opened: AbstractContextManager[Client], **ways: Any
) -> Summary:
    """Run jobs and show how it goes; ``ways`` are those of the engine."""
    from coalora_lib.batch.engine import run_batch
    from coalora_lib.batch.progress import shown

    with opened as client, shown(client.dashboard_link) as progress:
        return run_batch(jobs, folder, client, progress, **ways)


def end(summary: Summary, as_json: bool = False) -> None:
    """Say how a batch ended; exit status 1 if a job failed."""
    failed = summary.earlier | summary.failed
    content = {
        "folder": str(summary.folder),
        "made": summary.made,
        "there": summary.there,
        "failed": failed,
    }
    counts = f"{len(summary.made)} made, {len(summary.there)} there, {len(failed)} failed"
    lines = [f"{name}: {error}" for name, error in failed.items()]
    logs = f"; logs in {summary.folder / 'logs'}" if failed else ""
    _say(content, as_json, [*lines, f"{counts}: {summary.folder}{logs}"])
    if not summary.succeeded:
        raise typer.Exit(1)


def _say(content: Any, as_json: bool, lines: Iterable[str]) -> None:
    typer.echo(json.dumps(content) if as_json else "\n".join(line for line in lines if line))


def results(
    folder: Annotated[Path, typer.Argument(help="Folder of records, those below it too.")] = BUILD
    / "results",
    where: Annotated[
        list[str] | None, typer.Option(help="column=value, such as method=coa-lora.")
    ] = None,
    by: Annotated[str, typer.Option(help="Columns to group by.")] = "method,rank,kind",
    metric: Annotated[
        str | None,
        one_of(metrics, "Such as loss or neighbours; accuracy if none, or loss where it lacks."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two protocols, the second minus the first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all rows: .parquet or .csv.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Send the runs to an MLflow server.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tables of records: means over seeds, with 95 % intervals; shares are in percent."""
    from coalora_lib.batch import results as tables

    records = tables.read_below(folder)
    found = tables.filtered(tables.frame(records), where or ())
    if out is not None:
        tables.write(found, out)
    if mlflow is not None:
        tables.send(records, found, mlflow)
    if compare is None:
        table = tables.grouped(found, by, metric)
    else:
        table = tables.compared(found, by, *compare, metric)
    if as_json:
        typer.echo(table.to_json(orient="records"))
    else:
        typer.echo(table.to_string(index=False, na_rep="-"))
