"""The engine of batches: it keeps finished results, makes missing ones, and names failed jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from distributed import Client

from coalora_lib.batch.folder import ResultFolder
from coalora_lib.batch.jobs import BatchJob
from coalora_lib.batch.progress import Progress, Summary
from coalora_lib.batch.running import Batch

_NAME = r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*"


def run_batch(
    jobs: Iterable[BatchJob],
    folder: str | Path,
    client: Client,
    progress: Progress,
    *,
    retry: bool = False,
    remake: bool = False,
    limit: float | None = None,
    alike: bool = False,
) -> Summary:
    """Make the results that are not in the folder; a job that fails does not stop the others.

    Batches into one folder share the work. A job whose process dies is begun again, twice at most,
    from its checkpoint if it has one.

    Args:
        retry: try again what failed in an earlier batch.
        remake: replace a file that is not its job's result; else such files are refused.
        limit: seconds that a job may take; then it has failed, and its process ends.
        alike: the workers are this machine's own, and need not be compared with it.

    Raises:
        ValueError: a name is not safe, two jobs have one name, a file is not its job's result, or
            a worker's code, packages or data are not the driver's.
        OSError: the folder cannot be written into, or is full.
        NotWritten: that happened later; where the results are instead is said.
        ConnectionError: the scheduler is gone, and did not come back.
        KeyboardInterrupt: what was lost is told to ``progress`` before.
    """
    unique = _unique(jobs)
    batch = Batch(ResultFolder(folder), client, progress, retry, remake, limit)
    batch.look_at(unique)
    if not alike and batch.waiting:
        batch.compare_workers(tuple(sorted({job.dataset for job in unique if job.dataset})))
    return batch.run()


def _unique(jobs: Iterable[BatchJob]) -> list[BatchJob]:
    """Each job once, in their order."""
    named: dict[str, BatchJob] = {}
    for job in jobs:
        if not re.fullmatch(_NAME, job.name) or len(job.name) > 200:
            raise ValueError(
                f"job {job.name!r} is not a safe name; allowed: letters and digits, with single "
                "dots, dashes or underscores between"
            )
        if Path(job.file).name != job.file or job.file.startswith("."):
            raise ValueError(f"job {job.name}: its file {job.file!r} is not in the folder")
        if named.setdefault(job.name, job) != job:
            raise ValueError(f"two jobs have the name {job.name}")
    return list(named.values())
