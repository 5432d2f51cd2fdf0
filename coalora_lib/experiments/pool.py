"""Many runs at a time: small models leave most of a GPU idle."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from multiprocessing import Queue, get_context
from pathlib import Path

import torch

from coalora_lib.experiments.profiles import Run
from coalora_lib.experiments.runner import path_of, run_job
from coalora_lib.experiments.setup import prepare
from coalora_lib.records import Job


def run_all(
    jobs: Sequence[Job], run: Run, folder: str | Path, processes: int
) -> Iterator[tuple[Job, Path]]:
    """Run what has no record in the folder yet, and yield job and record as each is done.

    Profile and data set are the run's, ranks and seeds the jobs' own. Processes share the GPUs
    evenly. A job that fails does not stop the others.

    Raises:
        RuntimeError: at the end: jobs failed; the first one is named, its error is the cause.
    """
    open_jobs = [job for job in jobs if not path_of(job, run, folder).exists()]
    context = get_context("spawn")
    devices, visible = context.Queue(), visible_gpus()
    for number in range(processes):
        devices.put(visible[number % len(visible)])
    failed: list[tuple[Job, BaseException]] = []
    with ProcessPoolExecutor(processes, context, _begin, (devices, processes)) as pool:
        waiting = {pool.submit(_run_one, job, run, str(folder)): job for job in open_jobs}
        for done in as_completed(waiting):
            error = done.exception()
            if error is None:
                yield waiting[done], done.result()
            else:
                failed.append((waiting[done], error))
    if failed:
        job, cause = failed[0]
        raise RuntimeError(f"{len(failed)} of {len(open_jobs)} runs failed; first {job}") from cause


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [""] without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    if named == [""]:
        named = [str(number) for number in range(count)]
    return named[:count] or [""]


def _begin(devices: Queue, processes: int) -> None:
    """In each process, before it touches a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _run_one(job: Job, run: Run, folder: str) -> Path:
    try:
        return run_job(_prepared(replace(run, seed=job.seed)), job, folder)
    finally:  # to the processes beside this one
        gc.collect()
        torch.cuda.empty_cache()


_prepared = lru_cache(maxsize=1)(prepare)  # jobs come seed by seed
