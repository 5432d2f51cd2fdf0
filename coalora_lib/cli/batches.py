"""Commands for many runs: a grid on one machine or a cluster, and tables of the results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coalora_lib.cli.names import metrics
from coalora_lib.cli.shared import BUILD, AsJson, Root, one_of

if TYPE_CHECKING:
    from distributed import Client

    from coalora_lib.batch.jobs import BatchJob
    from coalora_lib.batch.progress import Summary


def batch(
    grid: Annotated[Path | None, typer.Argument(help="YAML: methods or chapters, values.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, such as seeds=[0,1]; replaces the file's value."),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Folder, instead of the grid's.")] = None,
    processes: Annotated[int, typer.Option(help="Jobs at a time on this machine.", min=1)] = 2,
    memory: Annotated[
        str | None, typer.Option(help="Memory at which a job is ended, such as 8GB.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A running Dask scheduler: tcp://node:8786, or tls://.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Workers from a SLURM queue.")] = False,
    pbs: Annotated[bool, typer.Option("--pbs", help="Workers from a PBS queue.")] = False,
    queue: Annotated[str | None, typer.Option(help="The queue's name.")] = None,
    cores: Annotated[int, typer.Option(help="Cores of a worker in the queue.", min=1)] = 4,
    node_memory: Annotated[str, typer.Option(help="Memory of a worker in the queue.")] = "16GB",
    walltime: Annotated[str, typer.Option(help="Time of a worker in the queue.")] = "04:00:00",
    workers: Annotated[int, typer.Option(help="Workers to ask the queue for.", min=1)] = 1,
    directive: Annotated[
        list[str] | None, typer.Option(help="Directive of the queue, such as --gres=gpu:1.")
    ] = None,
    retry: Annotated[bool, typer.Option(help="Run again what failed in an earlier batch.")] = False,
    remake: Annotated[bool, typer.Option(help="Replace files of other parameters.")] = False,
    limit: Annotated[float | None, typer.Option(help="Seconds for a job.", min=0.1)] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Only show the jobs and the queue's script.")
    ] = False,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Run a grid; finished jobs are never run again, and a failed one does not stop the others.

    Exit status: 0 if every job succeeded, 1 if one failed, 2 if nothing could be begun.
    """
    from coalora_lib.batch import cluster
    from coalora_lib.batch.engine import run_batch
    from coalora_lib.batch.estimate import estimate
    from coalora_lib.batch.grid import Grid
    from coalora_lib.batch.progress import shown, span

    if sum((slurm, pbs, scheduler is not None)) > 1:
        raise ValueError("only one of --scheduler, --slurm and --pbs can be given")
    wanted = Grid.read(grid, set_ or ())
    jobs, folder = wanted.jobs(root), results or wanted.results
    asked = None
    if slurm or pbs:
        asked = cluster.Queue(
            system="slurm" if slurm else "pbs",
            name=queue,
            cores=cores,
            memory=node_memory,
            walltime=walltime,
            jobs=workers,
            directives=tuple(directive or ()),
        )
    if dry_run:
        seconds = estimate(jobs, [folder, root / "book/results"])
        about = "" if seconds is None else f", about {span(seconds)} of one process"
        script = asked.script() if asked else ""
        _say(
            {"jobs": [job.name for job in jobs], "seconds": seconds, "script": script},
            as_json,
            [*(job.name for job in jobs), f"{len(jobs)} jobs{about}; results in {folder}", script],
        )
        return
    opened: AbstractContextManager[Client]
    if scheduler is not None:
        opened = cluster.connected(scheduler)
    elif asked is not None:
        opened = cluster.queued(asked)
    else:
        opened = cluster.local(processes, cluster.visible_gpus(), memory)
    with opened as client, shown(client.dashboard_link) as progress:
        summary = run_batch(
            jobs,
            folder,
            client,
            progress,
            retry=retry,
            remake=remake,
            limit=limit,
            alike=scheduler is None and asked is None,
        )
    end(summary, as_json)


def run_here(jobs: Iterable[BatchJob], folder: Path, processes: int) -> Summary:
    """Run jobs on this machine's cores and GPUs, and show how it goes."""
    from coalora_lib.batch import cluster
    from coalora_lib.batch.engine import run_batch
    from coalora_lib.batch.progress import shown

    with cluster.local(processes, cluster.visible_gpus()) as client, shown() as progress:
        return run_batch(jobs, folder, client, progress, retry=True, alike=True)


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
