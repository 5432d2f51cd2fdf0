"""What happens on a worker: is it like the driver, and one job from its start to its bytes.

A job's error, its log and what it left come back as values: exceptions of a worker's packages need
not be known to the driver.
"""

from __future__ import annotations

import faulthandler
import shutil
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from distributed import Worker, get_worker

from coalora_lib.batch.folder import SCRATCH, TOKEN, kept_path
from coalora_lib.batch.jobs import BatchJob, checksum_of
from coalora_lib.validation import flat

#: Topic of the events by which workers tell that a job has begun.
TOPIC = "coalora-batch"
#: Of a failed job's output, bytes from the end are kept.
LOG_BYTES = 2**16
#: Seconds after the limit of a job, in which the driver has given it up.
GRACE = 0.5
_LOG = "output.log"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        content: the result, None if there is none.
        error: why not, in one line; log: the same with its traceback and what was printed.
        kept: the remains of a failed job.
        refused: how the worker differs from the driver, which then was given nothing to do.
    """

    content: bytes | None = None
    error: str = ""
    log: str = ""
    kept: bytes | None = None
    refused: str = ""


@dataclass(frozen=True)
class Home:
    """The results' folder as the driver sees it, and the word that lies in it."""

    folder: Path
    token: str

    def scratch(self, job: BatchJob) -> Path:
        """Where a job may write: below the results, if they are here, else below Dask's folder."""
        if self.is_here:
            place = self.folder / SCRATCH / job.name
            with suppress(FileNotFoundError):  # they went away just now, and are not made again
                place.mkdir(exist_ok=True)
                return place
        local = Path(get_worker().local_directory).parent
        place = local / f"coalora-{self.token}" / job.name
        place.mkdir(parents=True, exist_ok=True)
        return place

    @property
    def is_here(self) -> bool:
        """Whether this machine sees the same folder."""
        try:
            return (self.folder / SCRATCH / TOKEN).read_text() == self.token
        except OSError:
            return False


def facts(datasets: tuple[str, ...]) -> dict[str, str]:
    """What must be the same everywhere, by name: code, packages, data sets."""
    return dict(_facts(datasets))


@lru_cache(maxsize=4)
def _facts(datasets: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    from coalora_lib.records.environment import code_digest, versions

    found = {"code": code_digest()[:12], "python": ".".join(map(str, sys.version_info[:2]))}
    found |= versions()
    for name in datasets:
        try:
            found[f"data {name}"] = checksum_of(name)[:12]
        except (OSError, ValueError) as error:
            found[f"data {name}"] = f"missing ({one_line(error)})"
    return tuple(found.items())


def differences(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """What differs on a worker, "" if nothing does."""
    return "; ".join(
        f"{name} is {theirs.get(name)} there, {value} here"
        for name, value in ours.items()
        if theirs.get(name) != value
    )


def describe_worker(datasets: tuple[str, ...], dask_worker: Worker | None = None) -> dict[str, str]:
    """:func:`facts` of a worker, and its threads: a job has the process for itself.

    ``Client.run`` gives the worker; in a job it is the job's.
    """
    worker = dask_worker or get_worker()
    return facts(datasets) | {"threads a worker": str(worker.state.nthreads)}


def execute(
    key: str,
    job: BatchJob,
    home: Home,
    expected: dict[str, str] | None,
    datasets: tuple[str, ...] = (),
    limit: float | None = None,
) -> Outcome:
    """Run a job; an error is in the outcome.

    A moment after the limit the process ends, whatever it does; its nanny starts another.
    """
    worker = get_worker()
    worker.log_event(TOPIC, {"key": key, "worker": worker.address})
    if expected is not None and (refused := differences(expected, describe_worker(datasets))):
        return Outcome(refused=refused)
    try:
        scratch = home.scratch(job)
    except OSError as error:
        return Outcome(error=f"nothing can be written on the worker: {one_line(error)}")
    log = scratch / _LOG
    try:
        # To a file: what shows progress on terminals is quiet, and a long job's output is not kept
        # in memory.
        with log.open("w") as output, redirect_stdout(output), redirect_stderr(output):
            if limit is not None:
                faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=output)
            try:
                content = job.run(scratch)
            finally:
                faulthandler.cancel_dump_traceback_later()
    except Exception as error:
        return _failed(job, home, scratch, error)
    if not home.is_here:
        shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(content)


def _failed(job: BatchJob, home: Home, scratch: Path, error: Exception) -> Outcome:
    line, kept = one_line(error), None
    if job.kept is not None and (scratch / job.kept).is_file():
        kept = (scratch / job.kept).read_bytes()
        line = line.replace(str(scratch / job.kept), str(kept_path(home.folder, job)))
    trace = "".join(traceback.format_exception(error))
    return Outcome(None, line, f"{line}\n\n{trace}\n{_end_of(scratch / _LOG)}", kept)


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def one_line(error: BaseException) -> str:
    """The message of an error, with its type unless the library raised it."""
    said = flat(error)
    expected = isinstance(error, ValueError | OSError | RuntimeError) and said
    return said if expected else f"{type(error).__name__}: {said}"
