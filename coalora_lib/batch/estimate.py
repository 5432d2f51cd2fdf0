"""How long a batch will take, from records of like jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from coalora_lib.batch.jobs import BatchJob, MethodRun
from coalora_lib.records import read_record


def estimate(jobs: Sequence[BatchJob], folders: Sequence[Path]) -> float | None:
    """Seconds of one process for all jobs; None if one of them has no similar record.

    Like are runs of the same method and budget on the same data and profile, whatever their seed.
    """
    times: dict[str, list[float]] = defaultdict(list)
    wanted = {_kind(job.name) for job in jobs if isinstance(job, MethodRun)}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            if _kind(path.stem) in wanted:
                try:
                    times[_kind(path.stem)].append(sum(read_record(path).phases.values()))
                except ValueError:  # another kind of file
                    continue
    if any(_kind(job.name) not in times for job in jobs):
        return None
    return sum(median(times[_kind(job.name)]) for job in jobs)


def _kind(name: str) -> str:
    """A record's name without its seed."""
    return name.rpartition("-seed")[0]
